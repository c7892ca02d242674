"""From shards to batches: mapping, caching, gathering, prefetching."""
