"""The assessment of a trained model, in its own process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.storage.json_files import JsonObject, atomic_write
from drivetrain_pipelines.user_code import load_function

from drivetrain_workers.assessment.baselines import standard_baseline
from drivetrain_workers.assessment.explain import explain
from drivetrain_workers.assessment.judging import (
    Judge,
    Judgements,
    judge_all,
    next_token_judge,
    token_counts,
    vocabulary,
)
from drivetrain_workers.assessment.pictures import draw_reliability
from drivetrain_workers.assessment.scores import scores, worst_slices
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.model_processes.requests import AssessRequest
from drivetrain_workers.model_processes.trained import load_trained, print_answer
from drivetrain_workers.modeling.objective import check_names, describe_value, load_objective, number_of
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import BaselineSpec, TrainJob

_MAX_SLICES = 5  # slices, the worst first
Result = JsonObject


def assess(request: AssessRequest) -> str:
    """Assess a run's newest checkpoint. Returns JSON, which is also stored in the run's folder.

    ``scores``: on the eval split, by name. ``slices``: the worst, each with ``name``, ``decisions``, ``accuracy`` and
    ``loss``. ``baseline``, if the job has one: ``name``, ``scores``, the ``metric`` and ``mode`` of the comparison,
    the ``network``'s value of the metric, and the ``winner``. ``pictures``: paths.

    Raises:
        CheckpointError: the run has no valid checkpoint.
        InputError: a function of the job returned an invalid value.
    """
    folder = RunFolder(Path(request.run_folder))
    trained = load_trained(request.run_folder, request.dataset_folder)
    job = trained.job
    online = OnlineTransform.of(job.data, folder.code, job.seed)
    folder.assessment.mkdir(exist_ok=True)
    found: Result = {"scores": {}, "slices": [], "pictures": []}
    objective = load_objective(job.model, str(folder.code))
    judge: Judge | None = None
    next_token = job.model.loss is None and job.data.kind == "tokens" and not objective.has_outcomes
    needs_train = bool(job.baseline or job.model.assess or next_token)
    splits = Splits.read(trained.dataset, online, needs_train)
    if objective.has_outcomes:
        judge = objective.outcomes
    elif next_token:
        judge = next_token_judge(token_counts(splits.train, vocabulary(splits)))
    if judge:
        _describe(judge_all(trained.model, judge, splits, job.seed), folder.assessment, found)
    network = found["scores"] | request.metrics  # those of the evaluation cover the whole eval split
    if job.model.assess:
        function = load_function(job.model.assess, str(folder.code), "model.assess")
        assessed = _numbers(function(trained.model, splits), "model.assess")
        found["scores"] |= assessed
        network |= assessed
    _store(found, folder)  # so that a later failure loses nothing
    if job.explain:
        assert judge, "a job that cannot be explained is rejected before it starts"
        picture = explain(trained.model, judge, splits, job.seed, folder.assessment)
        found["pictures"].append(str(picture))
    if job.baseline:
        found["baseline"] = _compare(job, splits, network, folder.code)
    _store(found, folder)
    return json.dumps(found)


def _store(found: Result, folder: RunFolder) -> None:
    with atomic_write(folder.assessment / "assessment.json") as sink:
        sink.write(json.dumps(found, indent=2).encode())


def _describe(judgement: Judgements, folder: Path, found: Result) -> None:
    """Add scores, slices and the reliability diagram of the decisions."""
    outcomes = judgement.outcomes
    if outcomes is None:
        found["scores"]["error"] = float(judgement.errors.mean())
        slices = worst_slices(judgement.slices, judgement.errors, None)
    else:
        found["scores"] |= scores(outcomes)
        slices = worst_slices(outcomes.slices, outcomes.loss, outcomes.correct)
        found["pictures"].append(str(draw_reliability(outcomes, folder / "reliability.png")))
    found["slices"] = [asdict(each) for each in slices[:_MAX_SLICES]]


def _compare(job: TrainJob, splits: Splits, network: dict[str, float], code: Path) -> Result:
    """Return the scores of the baseline and of the network."""
    asked = BaselineSpec() if isinstance(job.baseline, bool) else job.baseline
    best = job.training.best
    metric, mode = (asked.metric, asked.mode) if asked.metric else (best.metric, best.mode)
    if path := asked.function:
        function: Callable[[Splits], Any] = load_function(path, str(code), "baseline.function")
        name = path.partition(":")[2].replace("_", " ")
    else:
        name, function = standard_baseline(splits)
    of_baseline = _numbers(function(splits), "baseline.function")
    sides = {"network": network, name: of_baseline}
    if metric == "loss" and all("log_loss" in values for values in sides.values()):
        metric = "log_loss"  # available for both, whatever loss the network was trained with
    if lacking := [side for side, values in sides.items() if metric not in values]:
        have = ", ".join(sides[lacking[0]]) or "nothing"
        fix = "Set baseline.metric and baseline.mode."
        raise InputError("baseline", f"{metric!r}, which the {lacking[0]} lacks", f"one of both; it has {have}", fix)
    ahead = (network[metric] - of_baseline[metric]) * (1 if mode == "max" else -1)
    winner = "network" if ahead > 0 else "neither" if ahead == 0 else name
    return {
        "name": name,
        "scores": of_baseline,
        "metric": metric,
        "mode": mode,
        "network": network[metric],
        "winner": winner,
    }


def _numbers(values: Any, key: str) -> dict[str, float]:
    check_names(values, key, "numbers")
    numbers: dict[str, float] = {}
    for name, value in values.items():
        number = number_of(value)
        if number is None:
            raise InputError(
                key,
                f"a function that returned {name!r} = {describe_value(value)}",
                "a number, or a tensor with one element",
            )
        numbers[name] = number
    if odd := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise InputError(key, f"a function that returned {odd[0]} = {numbers[odd[0]]}", "finite numbers")
    return numbers


if __name__ == "__main__":
    print_answer(AssessRequest, assess)
