"""From shards to batches: mapping, caching, gathering, prefetching.

address_range: address ranges into which files are mapped.
arena: all shards of a split as one array per column.
cache: a node's bounded cache of remote shards.
columns: one column of many shards as one array.
dataset: a dataset version, opened for reading.
files: where a reader gets its shard files from.
reader: streaming a split to one rank.
"""
