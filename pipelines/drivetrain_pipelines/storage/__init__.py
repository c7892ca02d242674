"""Files and folders on any storage: shards, checksums, fetching.

access: missing and wrong credentials.
arrow_types: what an Arrow type means for rows.
checksums: digests of bytes, files and JSON values.
fetch: verified downloads from object storage, with retries.
folder: files by URL through fsspec.
json_files: atomic writes, and JSON with a checksum.
paths: which text is a path, and the URLs of paths.
proxies: direct access to services of this machine.
shards: Arrow shards and the manifest of a dataset version.
yaml_files: YAML as people expect it.
"""
