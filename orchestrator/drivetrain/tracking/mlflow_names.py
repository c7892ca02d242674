"""Names that MLflow accepts."""

from __future__ import annotations

import re
from hashlib import sha256

from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, path_not_unique, validate_param_and_metric_name

_UNSAFE = re.compile(r"[#?%\x00-\x1f\x7f\ud800-\udfff]")
_DIGEST = 8  # hexadecimal digits that keep different names apart: half of all collisions need 77,000 names in one run


def accepted_name(name: str) -> str:
    """Return the name itself if MLflow accepts it for metrics, parameters and tags; else one made from it.

    The same name always becomes the same one, in every run, and different names become different ones.
    """
    if _accepts(name):
        return name
    readable = "".join(each if _of_accepted_characters(f"{each}-") else "_" for each in name)
    if readable.startswith(".."):
        readable = f"__{readable[2:]}"
    segments = ("_" * max(len(each), 1) if each in ("", ".", "..") else each for each in readable.split("/"))
    return f"{'/'.join(segments)[: MAX_ENTITY_KEY_LENGTH - _DIGEST - 1]}-{_digest(name)}"


def accepted_file(name: str) -> str:
    """Return the name of a file or folder itself if MLflow stores it under this name; else one made from it.

    MLflow's client puts names into URLs as they are: the server takes ``a#b.py`` for ``a``, and ``a%20b`` for ``a b``.
    """
    if not _UNSAFE.search(name):
        return name
    stem, dot, ending = _UNSAFE.sub("_", name).rpartition(".")
    return f"{stem}-{_digest(name)}{dot}{ending}" if stem else f"{ending}-{_digest(name)}"


def _digest(name: str) -> str:
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]


def _accepts(name: str) -> bool:
    unique = not path_not_unique(name)  # type: ignore[no-untyped-call]  # MLflow's
    return unique and _of_accepted_characters(name) and len(name) <= MAX_ENTITY_KEY_LENGTH


def _of_accepted_characters(name: str) -> bool:
    matched = validate_param_and_metric_name(name)  # type: ignore[no-untyped-call]  # MLflow's
    return bool(matched) and not name.endswith("\n")  # which the pattern overlooks
