"""Raw data: which files a source names, how they are cut into chunks of work, and what records a chunk holds."""
