"""The formats of raw files: one table, by which files are listed, divided into chunks and read."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain_pipelines.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}  # ending -> name of the compression
ANY = "any"  # the format of a source that the job's own function reads
AUTO = "auto"


@dataclass(frozen=True)
class FileFormat:
    """What is known about a format from its name.

    Attributes:
        endings: endings of file names, in lower case, without that of a compression.
        records: what one record is, for the documentation.
        selected: ``auto`` may select the format.
        compressible: files may have the ending of a compression in addition.
        file_per_record: each file is one record, with a label.
        splits_at: the places at which a file can be divided: ``lines``, ``parts`` (row groups, record batches) or none.
        may_be_empty: a file of no bytes is a file of no records.
        magic: the first bytes of every file; empty where they vary.
    """

    endings: tuple[str, ...]
    records: str
    selected: bool = True
    compressible: bool = False
    file_per_record: bool = False
    splits_at: str = ""
    may_be_empty: bool = False
    magic: tuple[bytes, ...] = ()


_TEXT = (".txt", ".md", ".text", ".raw")

FORMATS: dict[str, FileFormat] = {
    "text": FileFormat(_TEXT, "running text", compressible=True, splits_at="lines", may_be_empty=True),
    "jsonl": FileFormat(
        (".jsonl", ".ndjson"), "one object per line", compressible=True, splits_at="lines", may_be_empty=True
    ),
    "json": FileFormat((".json",), "one object of an array, or one object per line", compressible=True),
    "csv": FileFormat((".csv", ".tsv"), "one row", compressible=True),
    "parquet": FileFormat((".parquet",), "one row", splits_at="parts", magic=(b"PAR1",)),
    "arrow": FileFormat(
        (".arrow", ".feather"), "one row", splits_at="parts", magic=(b"ARROW1", b"\xff\xff\xff\xff", b"FEA1")
    ),
    "huggingface": FileFormat((".arrow",), "one row", selected=False, magic=(b"ARROW1", b"\xff\xff\xff\xff")),
    "images": FileFormat(
        (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
        "one file",
        file_per_record=True,
    ),
    "audio": FileFormat((".wav", ".flac", ".ogg", ".mp3"), "one file", file_per_record=True),
    "documents": FileFormat(_TEXT[:3], "one file", selected=False, file_per_record=True),
    "webdataset": FileFormat((".tar",), "files with the same stem", compressible=True),
}


def endings_of(format_: str) -> tuple[str, ...]:
    """Return the endings of the names of a format's files, those of compressed files last."""
    kind = FORMATS[format_]
    compressed = tuple(ending + more for ending in kind.endings for more in COMPRESSIONS) if kind.compressible else ()
    return kind.endings + compressed


def matches(name: str, format_: str) -> bool:
    """Check whether a file has the name of a format."""
    return format_ == ANY or name.lower().endswith(endings_of(format_))


def format_of_name(name: str) -> str:
    """Return the format that the ending of a file's name shows; empty for an unknown ending."""
    return next((kind for kind in FORMATS if FORMATS[kind].selected and matches(name, kind)), "")


def compression_of(name: str) -> str:
    """Return the compression that the ending of a file's name shows; empty for none."""
    return next((kind for ending, kind in COMPRESSIONS.items() if name.lower().endswith(ending)), "")


def format_of(urls: list[str], format_: str, key: str = "data.format") -> str:
    """Return the format of some files: as given, or the one that all names show.

    Raises:
        InputError: ``auto``, and the names show no format, or several.
    """
    if format_ != AUTO:
        return format_
    found = {kind: url for url in reversed(urls) if (kind := format_of_name(url))}
    if len(found) == 1:
        return next(iter(found))
    given = " and ".join(f"{kind} ({url})" for kind, url in sorted(found.items())) or repr(urls[0] if urls else "")
    raise InputError(key, given, f"files of one format, whose names end with {known_endings()}")


def known_endings() -> str:
    """Return the endings of the formats that ``auto`` selects."""
    return " ".join(ending for kind in FORMATS.values() if kind.selected for ending in kind.endings)


def how_to_choose() -> str:
    """Return a sentence that names the formats and the keys that select one."""
    return f"Set data.format ({', '.join(FORMATS)}), or data.reader for files of any other kind."
