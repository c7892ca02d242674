"""The numbers of the labels, from those of all records of a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.parts import Part, Task
from drivetrain_pipelines.prepare.units import check_label_count
from drivetrain_pipelines.spec import DataSpec

_WHOLE = re.compile("0|[1-9][0-9]{0,17}")  # in its shortest form: 007 is a name


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.

    Attributes:
        numbers: number of each label; None without labels.
        classes: names of the labels 0, 1, ...; empty where labels are numbers that are not consecutive.
        parts: the parts, without records that lack a label.
    """

    numbers: dict[str, int] | None
    classes: list[str]
    parts: list[Part]


def settle_labels(spec: DataSpec, tasks: Sequence[Task], parts: Sequence[Part]) -> Labels:
    """Number the labels: by `data.classes`; or as they are, if all are whole numbers; or by their sorted names.

    Raises:
        PrepareError: a label that is not in `data.classes`; records with and without labels.
    """
    labelled = [number for number, part in enumerate(parts) if part.labels is not None]
    if not labelled:
        return Labels(None, spec.classes or [], list(parts))
    kept = _with_labels(spec, tasks, parts)
    first_at: dict[str, int] = {}
    for number in labelled:
        for label in parts[number].labels or ():
            first_at.setdefault(label, number)
    check_label_count(first_at)
    if spec.classes:
        return Labels(_by_name(spec.classes, first_at, tasks), spec.classes, kept)
    if all(_WHOLE.fullmatch(label) for label in first_at):
        numbers = {label: int(label) for label in first_at}
        consecutive = max(numbers.values(), default=0) == len(numbers) - 1
        return Labels(numbers, [str(n) for n in range(len(numbers))] if consecutive else [], kept)
    names = sorted(first_at)
    return Labels({name: number for number, name in enumerate(names)}, names, kept)


def _with_labels(spec: DataSpec, tasks: Sequence[Task], parts: Sequence[Part]) -> list[Part]:
    """Return the parts; those without labels lose their records, which are bad where others have labels."""
    kept = []
    for task, part in zip(tasks, parts, strict=True):
        if part.labels is not None or not part.records:
            kept.append(part)
            continue
        problem = f"{task.chunk.urls[0]}: records without a label, which others have"
        if spec.on_error == "fail":
            raise PrepareError(problem, "Set data.on_error to skip to leave such records out")
        listed = (*part.first_skipped, problem)
        skipped = part.skipped + part.records
        kept.append(replace(part, blocks=(), records=0, dropped_tokens=0, skipped=skipped, first_skipped=listed))
    return kept


def _by_name(classes: list[str], first_at: dict[str, int], tasks: Sequence[Task]) -> dict[str, int]:
    """Return the number of each label, which is one of the names or its number."""
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name: number for number, name in enumerate(classes)}
    if unknown := sorted(first_at.keys() - numbers.keys()):
        url = tasks[first_at[unknown[0]]].chunk.urls[0]
        more = f", as are {len(unknown) - 1} other labels" if len(unknown) > 1 else ""
        names = ", ".join(classes[:20])
        raise PrepareError(
            f"the label {unknown[0]!r} (first in {url}) is neither one of data.classes ({names}) nor its number{more}"
        )
    return {label: numbers[label] for label in first_at}
