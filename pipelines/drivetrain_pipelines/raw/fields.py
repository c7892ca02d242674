"""Names of the columns that records have once they are read: only what the job names, converted and checked."""

from __future__ import annotations

TEXT = "text"  # large_string, never null
BEFORE, AFTER = "before", "after"  # running text only: the text around a window, so that it is encoded in its context
LABEL = "label"  # large_string: the label as text, a whole number in its shortest form
GROUP = "group"  # large_string: the value of `data.split_by`
SAMPLE = "sample"  # an image or the energies of a recording, decoded; large_binary where the job decodes online
_COLUMN = "column:"  # before the name of each of `data.columns`: numbers of one shape


def column(name: str) -> str:
    """Return the field of one of the job's ``data.columns``."""
    return _COLUMN + name


def column_names(fields: list[str]) -> list[str]:
    """Return the names of the job's columns among ``fields``."""
    return [field.removeprefix(_COLUMN) for field in fields if field.startswith(_COLUMN)]
