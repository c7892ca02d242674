"""Raw data: the files of a source, the chunks of work, and the records in a chunk.

checks: checks of the data section against the files.
chunks: pieces of the files of a source.
compression: compressed files.
contents: the first bytes of a file, compared with its name.
fields: names of the columns of records.
finding: what is below a path, a URL or a pattern.
formats: the table of formats, and what a name shows.
labels: labels of files that are one record each.
layouts: layouts of well-known tools.
listing: the files of a source, used and ignored.
package_archives: data inside packages of PyPI, npm or Debian.
records: the records in a chunk.
selection: the files of one format, and a reason for every other.
sources: raw files, opened and described.
splits: splits that names show.
tokenizer_config: the special tokens that the configuration of a published tokenizer names.
windows: running text in windows of a fixed size.
"""
