"""Files and folders on any storage: shards, checksums, fetching."""
