"""What the first bytes of a file say, compared with what its name says."""

from __future__ import annotations

import re

from drivetrain_pipelines.raw.formats import FORMATS, compression_of

HEAD_BYTES = 1024  # enough for every magic number, and for the beginning of a page

_MAGIC = {
    "gzip data": b"\x1f\x8b",
    "zstd data": b"\x28\xb5\x2f\xfd",
    "bz2 data": b"BZh",
    "xz data": b"\xfd7zXZ\x00",
    "a zip archive": b"PK\x03\x04",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c",
    "a RAR archive": b"Rar!",
    "a Parquet file": b"PAR1",
    "an Arrow file": b"ARROW1",
    "a PNG image": b"\x89PNG",
    "a JPEG image": b"\xff\xd8\xff",
    "a PDF document": b"%PDF-",
    "an SQLite database": b"SQLite format 3\x00",
    "an HDF5 file": b"\x89HDF",
    "a NumPy array": b"\x93NUMPY",
    "an ELF program": b"\x7fELF",
}
_COMPRESSED = {"gzip": "gzip data", "bz2": "bz2 data", "xz": "xz data", "zstd": "zstd data"}
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|\?xml)", re.IGNORECASE)


def contradiction(name: str, head: bytes, format_: str) -> str:
    """Return what a file is instead of what its name and the format say; empty where they agree.

    Args:
        name: name or URL of the file.
        head: the first `HEAD_BYTES` of the file, not decompressed.
        format_: the format of the file.
    """
    if format_ not in FORMATS:
        return ""
    kind, compression = FORMATS[format_], compression_of(name)
    seen = next((what for what, magic in _MAGIC.items() if head.startswith(magic)), "")
    if not head:
        found = "" if kind.may_be_empty and not compression else "an empty file"
    elif head.startswith(_POINTER):
        found = "a pointer of Git LFS, not the file itself (git lfs pull downloads it)"
    elif format_ != "text" and _PAGE.match(head):
        found = "a web page or an XML document, such as the error message of a server"
    elif compression:
        found = "" if seen == _COMPRESSED[compression] else seen or f"not {_COMPRESSED[compression]}"
    elif kind.magic:
        found = "" if head.startswith(kind.magic) else seen or f"no file of the format {format_}"
    else:
        found = "" if format_ in ("images", "audio") else seen
    return found


def content_problem(name: str, head: bytes, format_: str) -> str:
    """Return a sentence for `contradiction`; empty for none."""
    found = contradiction(name, head, format_)
    return f"{name} is used as {format_}, but is {found}" if found else ""
