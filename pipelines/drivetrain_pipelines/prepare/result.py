"""The manifest of a prepared dataset: its statistics, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.facts import Facts
from drivetrain_pipelines.prepare.origins import Origins
from drivetrain_pipelines.prepare.preprocessor import ShardResult
from drivetrain_pipelines.prepare.splitting import AUTO, EVAL, TRAIN
from drivetrain_pipelines.prepare.units import layout_of
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.shards import Manifest, Shard, schema_from_text, unigram_entropy

_LARGE_SHARE = 0.1  # of bad records, which is worth a note


def manifest_of(
    spec: DataSpec,
    version: str,
    made_from: JsonObject,
    origins: Origins,
    facts: Facts,
    results: Sequence[ShardResult],
) -> Manifest:
    """Return the manifest of a dataset.

    Raises:
        PrepareError: a split, or a source of a mixture, has no sample.
    """
    splits = {split: [result.shards[split] for result in results if split in result.shards] for split in (TRAIN, EVAL)}
    _check_samples(spec, facts, splits)
    statistics = {
        "files": float(origins.files),
        "ignored_files": float(origins.ignored),
        "records": float(facts.records),
        "skipped": float(facts.skipped),
        "dropped_tokens": float(facts.dropped_tokens),
    }
    if facts.classes:
        statistics["classes"] = float(len(facts.classes))
    if spec.kind == "tokens":
        counts = np.array([result.token_counts for result in results], np.int64).sum(axis=0)
        statistics |= {
            "train_tokens": float(counts.sum()),
            "vocab_size": float(facts.conversion.vocab_size),
            "unigram_entropy": unigram_entropy(counts.tolist()),
        }
    (schema,) = {result.schema for result in results if result.schema}
    return Manifest(
        spec.name,
        version,
        schema_from_text(schema),
        splits,
        statistics,
        made_from,
        facts.classes,
        facts.first_skipped,
        list(origins.notes),
    )


def notes_of(manifest: Manifest, origins: Origins) -> tuple[str, ...]:
    """Return sentences about data that was left out: files that are ignored now, and many bad records."""
    skipped, used = manifest.statistics.get("skipped", 0.0), manifest.statistics.get("records", 0.0)
    if skipped < _LARGE_SHARE * (skipped + used):
        return origins.notes
    share = skipped / (skipped + used)
    return (
        *origins.notes,
        f"{skipped:,.0f} of {skipped + used:,.0f} records ({share:.0%}) are bad and were left out; "
        f"the first: {manifest.skipped[0]}",
    )


def _check_samples(spec: DataSpec, facts: Facts, splits: dict[str, list[Shard]]) -> None:
    """Check that every split, and every source, has a sample."""
    if facts.skipped and not facts.records:
        raise PrepareError(f"all {facts.skipped:,} records are bad; the first: {facts.first_skipped[0]}")
    if not facts.records:
        raise PrepareError("the data has no records", "Check data.source")
    bad = f"; {facts.skipped:,} records are bad, the first: {facts.first_skipped[0]}" if facts.skipped else ""
    if not splits[TRAIN]:
        raise PrepareError(f"not one sample for train: {_amount(spec, facts, TRAIN)}{bad}", _fix_train(spec))
    if not splits[EVAL]:
        raise PrepareError(f"not one sample for eval: {_amount(spec, facts, EVAL)}{bad}", _fix_eval(spec, facts))
    found = {shard.stream for shard in splits[TRAIN]}
    for number, entry in enumerate(spec.mixture):
        if number not in found:
            raise PrepareError(
                f"data.source.{number}.source: not one sample for train of {entry.source}",
                "Leave it out of the mixture",
            )


def _amount(spec: DataSpec, facts: Facts, split: str) -> str:
    """Describe how little there is of a split."""
    records = f"{facts.records:,} {'record' if facts.records == 1 else 'records'}"
    size = facts.sizes.get(split, 0) + facts.sizes.get(AUTO, 0)
    if layout_of(spec) == "tokens" and size < spec.sequence_length + 1:
        whole = f"{size:,} tokens of {records} are fewer than the {spec.sequence_length + 1:,} of one sample"
        return f"{whole} (data.sequence_length {spec.sequence_length})"
    if split == EVAL and not spec.eval_source:
        by = f" by data.split_by {spec.split_by}" if spec.split_by else ""
        return f"data.eval_fraction {spec.eval_fraction:g} of {records}, chosen{by} by a hash of their content, is none"
    return f"there are {records} in all"


def _fix_train(spec: DataSpec) -> str:
    keys = ["data.sequence_length to fewer tokens"] if layout_of(spec) == "tokens" else []
    keys += ["data.train_fraction to a larger share"] if spec.train_fraction < 1 else []
    keys += [] if spec.eval_source else ["data.eval_fraction to a smaller share"]
    return f"Set {', or '.join(keys)}, or add data" if keys else "Add data"


def _fix_eval(spec: DataSpec, facts: Facts) -> str:
    if spec.eval_source:
        fix = "Add data to data.eval_source"
        return f"{fix}, or set data.sequence_length to fewer tokens" if layout_of(spec) == "tokens" else fix
    larger = min(0.5, max(2 * spec.eval_fraction, 5 / max(10, facts.records)))
    shorter = ", data.sequence_length to fewer tokens" if layout_of(spec) == "tokens" else ""
    share = f"data.eval_fraction to a larger share, such as {larger:.2g} (equal records count as one)"
    return f"Set {share}{shorter}, or data.eval_source"
