"""Readers of raw files: one per format. They read what is needed, convert nothing, and name each record's place.

columnar: Parquet and Arrow.
delimited: CSV and TSV.
errors: sentences for files that cannot be read.
every: the reader of each format.
json_documents: JSON files with an array of records.
json_lines: JSON lines.
running_text: running text in windows.
single_files: files that are one record each.
tar_archives: WebDataset archives.
"""
