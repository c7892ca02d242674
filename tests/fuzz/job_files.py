"""Mutations of job files, and what a job file says, read independently of the loader."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ODD_VALUES = [
    "null", "true", "no", "on", "0", "-1", "007", "010", "0x10", "0b11", "0o17", "1_000", "12:30", "1e3", "1.5", "1.0",
    ".5", "5.", "+3", ".inf", "-.INF", ".nan", "1e400", "9223372036854775808", "''", '""', "' '", "text", "2024-01-01",
    "[]", "{}", "[1, 2]", "{a: 1}", "[[1]]", "~", "é", "東京", "a b", "../..", "/", "/dev/null", "/etc/passwd", ".",
    "s3://bucket/key", "http://x", "pypi:x", "file:///", "model:make", "model:nothing", ":", "a:", ":b", "model.make",
    "*alias", "&anchor 1", "!!python/object:os.system x", "!!binary aGVsbG8=", "|\n  block", "'\\0'", '"\\u0000"',
    "a" * 300, "-", "?", "@", "`", "%", "x # comment", "<<", "=", "1,5", "1 000", "128k", "50%", "10s", "∞",
]  # fmt: skip


_LIKELY = ["1", "2", "3", "8", "16", "64", "0.5", "1e-3", "2E+2", "0.0", "1e1", "true", "false", "null", "x", "model"]


def mutated(text: str, choose: random.Random) -> bytes:
    """Return a job file with one to three random changes, as bytes."""
    for _ in range(choose.choice([1, 1, 1, 2, 3])):
        text = choose.choice(_MUTATIONS)(text, choose)
    content = text.encode()
    if choose.random() < 0.05:
        content = choose.choice([b"\xef\xbb\xbf" + content, text.encode("utf-16"), content + b"\xff", b"\0" + content])
    return content


def _value(text: str, choose: random.Random) -> str:
    lines = text.splitlines()
    number = choose.choice([n for n, line in enumerate(lines) if ": " in line] or [0])
    key = lines[number].partition(":")[0] if lines else "name"
    lines[number : number + 1] = [f"{key}: {choose.choice([*ODD_VALUES, *_LIKELY * 4])}"]
    return "\n".join(lines) + "\n"


def _flow_value(text: str, choose: random.Random) -> str:
    """Change a number or word somewhere."""
    words = text.split(" ")
    number = choose.randrange(len(words))
    kept = words[number][len(words[number].rstrip("],}\n")) :]
    words[number] = choose.choice([*ODD_VALUES, *_LIKELY * 4]) + kept
    return " ".join(words)


def _line(text: str, choose: random.Random) -> str:
    """Delete, repeat, move or indent a line."""
    lines = text.splitlines() or [""]
    number = choose.randrange(len(lines))
    line = lines[number]
    kind = choose.randrange(5)
    if kind == 0:
        del lines[number]
    elif kind == 1:
        lines.insert(choose.randrange(len(lines)), line)
    elif kind == 2:
        lines[number] = "  " + line
    elif kind == 3:
        lines[number] = line.lstrip()
    else:
        lines[number] = line.replace("  ", "\t", 1)
    return "\n".join(lines) + "\n"


def _character(text: str, choose: random.Random) -> str:
    at = choose.randrange(len(text) + 1)
    return text[:at] + choose.choice(string.printable + "é\u2028\ufeff🙂") + text[at + choose.randint(0, 1) :]


def _key(text: str, choose: random.Random) -> str:
    """Misspell a key."""
    at = [n for n, character in enumerate(text) if character == ":" and n and text[n - 1].isalpha()]
    end = choose.choice(at or [1])
    return text[: end - 1] + choose.choice(["", "x", "s", "-", "_", text[end - 1].upper()]) + text[end:]


_RENAMED = {
    "zero": "zero_stage", "schedule": "lr_schedule", "hang_after_s": "hang_timeout_s", "register_as": "registered_model"
}  # fmt: skip
_MUTATIONS = (_value, _value, _flow_value, _line, _character, _key)


def repeated_keys(node: yaml.Node | None) -> bool:
    """Check whether a key stands twice in one mapping."""
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        return len(set(keys)) < len(keys) or any(repeated_keys(value) for _, value in node.value)
    return isinstance(node, yaml.SequenceNode) and any(map(repeated_keys, node.value))


def differences(written: Any, loaded: Any, folder: Path, key: str = "") -> Iterator[str]:
    """Yield each key whose loaded value is not what is written.

    Args:
        written: the document with every scalar as text.
        loaded: the resolved job, from JSON.
    """
    if isinstance(written, dict):
        for name, value in written.items():
            name = _RENAMED.get(name, name)
            if not isinstance(loaded, dict) or name not in loaded:
                yield f"{key}.{name}: lost"
            else:
                yield from differences(value, loaded[name], folder, f"{key}.{name}")
    elif isinstance(written, list) and isinstance(loaded, list):
        if len(written) != len(loaded):
            yield f"{key}: {written} as {loaded}"
        for number, (one, other) in enumerate(zip(written, loaded, strict=False)):
            yield from differences(one, other, folder, f"{key}.{number}")
    elif isinstance(loaded, dict):  # the short form of a section, such as `keep: 2`
        if not any(_same(written, value, folder) for value in loaded.values()):
            yield f"{key}: {written!r} as {loaded!r}"
    elif not _same(written, loaded, folder):
        yield f"{key}: {written!r} as {loaded!r}"


def _same(written: Any, loaded: Any, folder: Path) -> bool:
    try:
        if loaded is None:
            return written in ("", "null", "~", "Null", "NULL")
        if isinstance(loaded, bool):
            return str(written).lower() == str(loaded).lower()
        if isinstance(loaded, int):
            return int(str(written), 0 if str(written)[:2] in ("0x", "0o") else 10) == loaded
        if isinstance(loaded, float):
            return float(str(written)) == loaded
    except ValueError:
        return False
    return str(loaded) in (written, str((folder / str(written)).resolve()), str(written).rstrip("/"))
