"""One clear sentence for the errors that pydantic finds in a job file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import MEANING_OF_PATTERN
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from drivetrain.job.spec import JobSpec

_ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
}


def first_error(errors: list[ErrorDetails]) -> InputError:
    """Return the most useful error: unknown keys first, since a misspelled key also makes another one missing."""
    error = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    path = _path(error)
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        allowed = sorted(_section(path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        fix = f"Did you mean {'.'.join([*path[:-1], close[0]])}?" if close else ""
        return InputError(key, "an unknown key", ", ".join(allowed), fix)
    if error["type"] == "missing":
        return InputError(key, "nothing", "a value; the key is required")
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return InputError(key or "job", "incompatible settings", _allowed(error))
    # A value that may have several forms has an error for each.
    forms = dict.fromkeys(_allowed(other) for other in errors if _path(other) == path)
    return InputError(key or "job", _shown(error["input"]), " or ".join(forms), _close_to(error))


def _allowed(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        pattern = context["pattern"]
        return MEANING_OF_PATTERN.get(pattern, f"text that matches {pattern}")
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"a section with keys such as {', '.join(list(_section(_path(error)).model_fields)[:4])}"
    if error["type"] in _ALLOWED:
        return _ALLOWED[error["type"]].format(**context).replace("'", "")
    return error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _close_to(error: ErrorDetails) -> str:
    """Return a hint where the value resembles one of the allowed words."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    words = error["ctx"]["expected"].replace(" or ", ", ").split(", ")
    by_lower = {word.strip("'").lower(): word.strip("'") for word in words}
    close = difflib.get_close_matches(error["input"].lower(), by_lower, n=1)
    return f"Did you mean {by_lower[close[0]]}?" if close else ""


def _shown(value: Any) -> str:
    """Show a value as a job file writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)[:200]


def _path(error: ErrorDetails) -> list[str]:
    """Return the key of an error as a job file has it: pydantic adds the forms of a value that has several."""
    names: list[str] = []
    annotation: Any = JobSpec
    for number, part in enumerate(error["loc"]):
        models = [model for model in models_in(annotation) if part in model.model_fields]
        unknown_key = error["type"] == "extra_forbidden" and number == len(error["loc"]) - 1
        if models:
            annotation = models[0].model_fields[str(part)].annotation
        elif not (isinstance(part, int) or unknown_key or _is_mapping(annotation)):
            continue
        names.append(str(part))
    return names


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(_is_mapping(part) for part in get_args(annotation))


def _section(path: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = JobSpec
    for name in path:
        if name in section.model_fields:
            section = next(models_in(section.model_fields[name].annotation))
    return section


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
