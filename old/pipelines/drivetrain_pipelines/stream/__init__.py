"""Batches from shards: mapping, caching, gathering, prefetching.

address_range: address ranges into which files are mapped.
arena: all shards of a split as one array per column.
cache: a node's bounded cache of remote shards.
columns: one column of many shards as one array.
dataset: a dataset version, opened for reading.
files: access to the shard files of a reader.
reader: the stream of a split to one rank.
"""
