"""WebDataset archives: the members of a tar with the same key are one record."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.readers.errors import REPAIR, readable
from drivetrain_pipelines.raw.readers.json_lines import decoded, parse_json
from drivetrain_pipelines.raw.records import FlawedRow, Needed, Row, Rows
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec

_SAMPLES = {
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
    "audio": ("wav", "flac", "ogg", "mp3"),
}
_TEXTS, _LABELS = ("txt", "text"), ("cls",)
_RESERVED = "file"


def read_tar(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Rows:
    """Read the records of an archive: a record for each key, the path up to the first dot of the base name.

    A record has each member by its suffix; ``bytes``: its image or recording; ``text``: of txt; ``label``: of cls; and
    the fields of json. Raises `PrepareError`.
    """
    (url,) = chunk.urls
    with readable(url, "a tar archive"), open_file(url, storage) as file:
        content = bytes(file.read())
    members: dict[str, Row] = {}
    bad: dict[str, str] = {}
    last, damage = "", ""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                if not (found := _split(member)):
                    continue
                last, suffix = found
                record = members.setdefault(last, {})
                if suffix in record:
                    bad[last] = f"the archive has {last}.{suffix} twice"
                opened = tar.extractfile(member)
                record[suffix] = opened.read() if opened else b""
            if content[tar.offset : tar.offset + tarfile.BLOCKSIZE].strip(b"\0") or tar.offset >= len(content):
                damage = "the archive is cut off or damaged after this record"
    except (tarfile.TarError, EOFError, ValueError, OSError):
        damage = "the archive is cut off or damaged in or after this record"
    if damage and not last:
        raise PrepareError(f"{url} is not a tar archive, or is damaged (no record in it is whole)", REPAIR)
    if damage:
        bad[last] = damage
    kinds = _SAMPLES[needed.kind] if needed and needed.kind in _SAMPLES else sum(_SAMPLES.values(), ())
    keys = list(members)
    rows = [_row(f"{url}/{key}", members[key], kinds) for key in keys]
    return Rows(url, rows, lambda row: f"{url}/{keys[row]}", {keys.index(key): text for key, text in bad.items()})


def _split(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return key and suffix of a member; None for what is no part of a record."""
    folder, slash, base = member.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not member.isreg() or not stem or not dot or not suffix or (base.startswith("__") and base.endswith("__")):
        return None
    return folder + slash + stem, suffix.lower()


def _row(file: str, members: dict[str, bytes], samples: tuple[str, ...]) -> Row:
    """Return the fields of a record; those with several values that differ have none."""
    fields: dict[str, dict[str, Any]] = {name: {name: content} for name, content in members.items()}
    for suffix, content in members.items():
        ending = suffix.rpartition(".")[2]
        if ending in samples:
            fields.setdefault("bytes", {})[suffix] = content
        if suffix in _TEXTS:
            fields.setdefault("text", {}).pop("text", None)
            fields["text"][suffix] = _text(content)
        if suffix in _LABELS:
            fields.setdefault("label", {})[suffix] = _text(content).strip()
    otherwise = ""
    if "json" in members:
        document, otherwise = _json(members["json"])
        for name, value in document.items():
            fields.setdefault(name, {})[f"{name!r} of json"] = value
    row: Row = {}
    flaws: dict[str, str] = {}
    for name, values in fields.items():
        first, *others = values.values()
        if any(type(other) is not type(first) or other != first for other in others) or (name == "bytes" and others):
            flaws[name] = f"it has {' and '.join(values)}; choose one in data.transform"
        else:
            row[name] = first
    row.setdefault(_RESERVED, file)
    return FlawedRow(row, flaws, otherwise)


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="surrogateescape")


def _json(content: bytes) -> tuple[Row, str]:
    """Return the fields in a json member, and why it has none."""
    try:
        document = parse_json(decoded(content))
    except ValueError as error:
        return {}, f"its json member is not usable: {error}"
    if isinstance(document, FlawedRow):
        return document, ""
    return (document, "") if isinstance(document, dict) else ({}, "its json member is not an object")
