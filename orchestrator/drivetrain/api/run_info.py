"""What is known of runs without a coordinator: from the run database, and from the files in a run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from drivetrain_workers.engine.batching import total_steps
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.interface import RunInfo, Transition
from drivetrain.home import Home
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Ended
from drivetrain.runs.store import RunRecord, RunStore, last_changes
from drivetrain.runs.view import RunView
from drivetrain.tracking.spool import SpoolReader


def list_infos(home: Home, store: RunStore, records: Iterable[RunRecord]) -> tuple[RunInfo, ...]:
    """Return runs as lists show them: without view, history and account."""
    records = list(records)
    changed = last_changes(store, [record.id for record in records])
    return tuple(info_of(home, record, changed.get(record.id, record.created)) for record in records)


def info_of(home: Home, record: RunRecord, updated: float) -> RunInfo:
    """Return a run as lists show it. Args: ``updated``: when its phase changed last."""
    folder, step = home.run(record.id), record.state.progress.step
    if not isinstance(record.state, Ended):  # steps are stored with a transition; what was logged is newer
        step = max(step, SpoolReader(folder.spool).update().newest_step("train"))
    return RunInfo(
        id=record.id,
        user=record.user,
        phase=record.state.phase,
        reason=record.facts.reason,
        ended=record.ended,
        step=step,
        steps=_steps_of(folder, record.facts),
        created=record.created,
        updated=updated,
        progress=record.state.progress,
        facts=record.facts,
    )


def full_info(
    home: Home, store: RunStore, accounts: RunAccountCache, record: RunRecord, live: RunView | None = None
) -> RunInfo:
    """Return a run with its figures, its history and its account.

    Args:
        live: figures from the coordinator; None takes those that the run has logged.
    """
    history = tuple(Transition(at, state.phase, why) for at, why, state in store.history(record.id))
    info = info_of(home, record, history[-1].time if history else record.created)
    view = live or view_of(home, record)
    account = accounts.of(record.id).to_json()
    # The figures of the coordinator are newer than those that it has logged.
    steps, step = view.steps or info.steps, max(view.step, info.step)
    return replace(info, step=step, steps=steps, view=view, history=history, account=account)


def view_of(home: Home, record: RunRecord) -> RunView:
    """Return the figures that a run has logged."""
    folder, progress = home.run(record.id), record.state.progress
    totals = SpoolReader(folder.spool).update()
    newest, steps = totals.newest.get("train", {}), _steps_of(folder, record.facts)
    eval_loss, metrics = totals.evaluation()
    step = max(progress.step, totals.newest_step("train"))
    step_s = newest.get("step_s")
    return RunView(
        record.id,
        phase=record.state.phase,
        version=step,
        step=step,
        steps=steps,
        loss=newest.get("loss"),
        eval_loss=eval_loss,
        metrics=metrics,
        learning_rate=newest.get("learning_rate"),
        tokens_per_s=newest.get("tokens_per_s"),
        step_s=step_s,
        data_wait_share=newest.get("data_wait_share"),
        eta_s=None if step_s is None else max(0, steps - step) * step_s,
        generation=progress.generation,
        restarts=progress.restarts,
        facts=record.facts,
    )


def _steps_of(folder: RunFolder, facts: RunFacts) -> int:
    """Return how many steps the job asks for; 0 while that is not known.

    The file is not parsed as a job: a list of a thousand runs would take seconds.
    """
    try:
        training = folder.resolved()["training"]
        steps, epochs, batch = training["steps"], training["epochs"], training["global_batch_size"]
    except (OSError, ValueError, KeyError):
        return 0
    if steps is None and facts.train_samples is None:
        return 0
    return total_steps(steps, epochs, facts.train_samples or 0, batch)
