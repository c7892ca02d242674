"""Files and folders on any storage: shards, checksums, fetching.

arrow_types: what an Arrow type means for rows.
checksums: block checksums and atomic writes of files.
fetch: verified downloads from object storage, with retries.
folder: files by URL through fsspec.
shards: Arrow shards and the manifest of a dataset version.
"""
