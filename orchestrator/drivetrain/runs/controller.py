"""The behavior of a run as one pure function from state and event to state and actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.policies import STOP_TIMEOUT_S, keep_ranks, retry_delay
from drivetrain.scheduling.model import Placement

Decision = tuple[st.State, list[ev.Action]]


def step(state: st.State, event: ev.Event) -> Decision:
    """Return the next state and the actions. An event that does not apply to this state changes nothing.

    Raises:
        ValueError: a handler violated the transition table, which is a bug.
    """
    handler = _HANDLERS.get(type(event))
    new, actions = handler(state, event) if handler else (state, [])
    if new is not state and type(new) is not type(state) and type(new) not in st.TRANSITIONS[type(state)]:
        raise ValueError(f"no transition from {state.phase} to {new.phase} on {event}")
    return new, actions


def is_transition(before: st.State, after: st.State) -> bool:
    """Check whether a change must be stored before it is acted on: all but progress within a generation."""
    same_generation = after.progress.generation == before.progress.generation
    return not same_generation or replace(after, progress=before.progress) != before


def actions_to_resume(state: st.State) -> list[ev.Action]:
    """Return the actions with which a restarted coordinator resumes a run from its stored state."""
    attach = ev.Attach(state.progress.generation)
    actions: list[ev.Action] = []
    match state:
        case st.Preparing():
            actions = [ev.Prepare()]
        case st.Ready():
            actions = [ev.ReleaseAllocation(keep_copies=bool(state.lost))]
        case st.Placing():
            actions = [ev.PlaceGang(state.dataset, state.allocation)]
        case st.Starting() | st.Training() | st.Waiting():
            actions = [attach]
        case st.Stopping():
            actions = [attach, ev.RequestStop()]
        case st.Finishing():
            actions = [attach, ev.Conclude(state.dataset)]
        case st.Ended():
            actions = [ev.Release(state.reason, state.detail)]
    return actions


def _admitted(state: st.State, _: ev.Event) -> Decision:
    if not isinstance(state, st.Queued):
        return state, []
    return st.Preparing(progress=state.progress), [ev.Prepare()]


def _prepared(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.Prepared", event)
    if not isinstance(state, st.Preparing):
        return state, []
    return _ready(state, event.dataset, "")


def _allocation_granted(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.AllocationGranted", event)
    if not isinstance(state, st.Ready):
        return state, []
    placement = keep_ranks(event.allocation.placement, state.lost)
    return _placing(state, replace(event.allocation, placement=placement))


def _allocation_lost(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.AllocationLost", event)
    if not isinstance(state, st.Allocated) or isinstance(state, st.Finishing):
        return state, []
    if isinstance(state, st.Stopping):
        return _stopped(state, f"{event.detail}; the previous checkpoint is kept")
    return _ready(state, state.dataset, event.detail, lost=state.allocation.placement)


def _allocation_unusable(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.AllocationUnusable", event)
    if not isinstance(state, st.Placing):
        return state, []
    state = replace(state, progress=_count_failure(state.progress, Reason.AGENT_LOST))
    if retry_delay(state.progress, Reason.AGENT_LOST) is None:
        return _give_up(state, Reason.AGENT_LOST, event.detail)
    return _ready(state, state.dataset, event.detail, lost=state.allocation.placement)


def _preemption_requested(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.PreemptionRequested", event)
    match state:
        case st.Training():
            return st.Stopping(state.dataset, state.allocation, event.why, progress=state.progress), [ev.RequestStop()]
        case st.Placing() | st.Starting() | st.Waiting():
            return _ready(state, state.dataset, event.why)
        case _:
            return state, []


def _placed(state: st.State, _: ev.Event) -> Decision:
    if not isinstance(state, st.Placing):
        return state, []
    return _next_generation(state, state.progress)


def _failed(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.Failed", event)
    if isinstance(state, st.Ended):
        return state, []
    return _end(state, event.reason, event.detail)


def _ranks_ready(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.RanksReady", event)
    if not isinstance(state, st.Starting) or event.generation != state.progress.generation:
        return state, []
    # Steps after the last checkpoint are discarded: the generation starts from the checkpoint.
    return st.Training(state.dataset, state.allocation, progress=replace(state.progress, step=event.step)), []


def _stepped(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.Stepped", event)
    if not _concerns(state, event.generation):
        return state, []
    return replace(state, progress=_advanced(state.progress, event.step)), []


def _advanced(progress: st.Progress, step_done: int) -> st.Progress:
    failures = {} if step_done > progress.failed_at_step else progress.failures
    return replace(progress, step=step_done, failures=failures)


def _committed(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.Committed", event)
    if not _concerns(state, event.generation):
        return state, []
    return replace(state, progress=replace(state.progress, committed_step=event.step)), []


def _rank_lost(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.RankLost", event)
    if not _concerns(state, event.generation):
        return state, []
    if isinstance(state, st.Stopping):
        return _stopped(state, "a rank was lost while stopping; the previous checkpoint is kept")
    progress = _count_failure(state.progress, event.reason)
    delay = retry_delay(progress, event.reason)
    if delay is None:
        return _give_up(replace(state, progress=progress), event.reason, event.detail)
    allocated = cast("st.Allocated", state)
    if delay == 0:
        return _next_generation(allocated, progress)
    return st.Waiting(allocated.dataset, allocated.allocation, event.time + delay, progress=progress), [ev.StopRanks()]


def _agent_lost(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.AgentLost", event)
    if isinstance(state, st.Waiting):
        return _placing(state, state.allocation)
    if not _concerns(state, event.generation):
        return state, []
    if isinstance(state, st.Stopping):
        return _stopped(state, "an agent was lost while stopping; the previous checkpoint is kept")
    progress = _count_failure(state.progress, Reason.AGENT_LOST)
    if retry_delay(progress, Reason.AGENT_LOST) is None:
        return _give_up(replace(state, progress=progress), Reason.AGENT_LOST, event.detail)
    allocated = replace(cast("st.Allocated", state), progress=progress)
    placing, actions = _placing(allocated, allocated.allocation)
    return placing, [ev.StopRanks(), *actions]


def _ranks_finished(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.RanksFinished", event)
    if not _concerns(state, event.generation):
        return state, []
    allocated = cast("st.Allocated", state)
    if event.complete:
        finishing = st.Finishing(allocated.dataset, allocated.allocation, progress=state.progress)
        return finishing, [ev.Conclude(allocated.dataset)]
    return _stopped(allocated, f"stopped after step {state.progress.step}, with a checkpoint")


def _cancel_requested(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.CancelRequested", event)
    match state:
        case st.Training(dataset, allocation):
            stopping = st.Stopping(dataset, allocation, "", event.reason, event.detail, progress=state.progress)
            return stopping, [ev.RequestStop()]
        case st.Stopping():
            return replace(state, yields_for="", reason=event.reason, detail=event.detail), []
        case st.Queued() | st.Preparing() | st.Ready() | st.Placing() | st.Starting() | st.Waiting():
            return _end(state, event.reason, event.detail or f"stopped while {state.phase}")
        case st.Finishing() if event.reason is Reason.CANCELLED:  # the model is trained
            return _end(state, Reason.COMPLETED, "cancelled after the last step; sample and assessment may be missing")
        case _:
            return state, []


def _concluded(state: st.State, _: ev.Event) -> Decision:
    return _end(state, Reason.COMPLETED, "") if isinstance(state, st.Finishing) else (state, [])


def _tick(state: st.State, event: ev.Event) -> Decision:
    event = cast("ev.Tick", event)
    match state:
        case st.Waiting() if event.now >= state.not_before:
            return _next_generation(state, state.progress)
        case st.Stopping() if state.deadline is None:
            return replace(state, deadline=event.now + STOP_TIMEOUT_S), []
        case st.Stopping(deadline=float(deadline)) if event.now >= deadline:
            return _stopped(
                state, f"the ranks did not end within {STOP_TIMEOUT_S:g} s; the previous checkpoint is kept"
            )
        case _:
            return state, []


def _next_generation(state: st.Allocated, progress: st.Progress) -> Decision:
    progress = replace(progress, generation=progress.generation + 1)
    return st.Starting(state.dataset, state.allocation, progress=progress), [ev.StartGeneration(progress.generation)]


def _ready(state: st.State, dataset: str, why: str, lost: Placement = ()) -> Decision:
    return st.Ready(dataset, why, lost, progress=state.progress), [ev.ReleaseAllocation(keep_copies=bool(lost))]


def _placing(state: st.Ready | st.Allocated, allocation: st.Allocation) -> Decision:
    return st.Placing(state.dataset, allocation, progress=state.progress), [ev.PlaceGang(state.dataset, allocation)]


def _stopped(state: st.Allocated, detail: str) -> Decision:
    """End the run, or requeue it if it was preempted: the ranks have ended before the last step."""
    if not isinstance(state, st.Stopping):
        return _end(state, Reason.CANCELLED, detail)
    if state.yields_for:
        return _ready(state, state.dataset, state.yields_for)
    return _end(state, state.reason, "; ".join(filter(None, (state.detail, detail))))


def _count_failure(progress: st.Progress, reason: Reason) -> st.Progress:
    return replace(
        progress,
        failures={**progress.failures, reason: progress.failures.get(reason, 0) + 1},
        failed_at_step=max(progress.step, progress.failed_at_step),
        restarts=progress.restarts + 1,
    )


def _concerns(state: st.State, generation: int) -> bool:
    live = isinstance(state, st.Starting | st.Training | st.Stopping)
    return live and generation == state.progress.generation


def _give_up(state: st.State, reason: Reason, detail: str) -> Decision:
    """End the run: its failures, this one included, exceed the number of retries."""
    if (failures := state.progress.failures[reason]) > 1:
        detail += (
            f"; failed {failures} times for this reason without progress beyond step {state.progress.failed_at_step}"
        )
    return _end(state, reason, detail)


def _end(state: st.State, reason: Reason, detail: str) -> Decision:
    return st.Ended(reason, detail, progress=state.progress), [ev.Release(reason, detail)]


_HANDLERS: dict[type[ev.Event], Callable[[st.State, ev.Event], Decision]] = {
    ev.Admitted: _admitted,
    ev.Prepared: _prepared,
    ev.AllocationGranted: _allocation_granted,
    ev.AllocationLost: _allocation_lost,
    ev.AllocationUnusable: _allocation_unusable,
    ev.PreemptionRequested: _preemption_requested,
    ev.GangPlaced: _placed,
    ev.Failed: _failed,
    ev.RanksReady: _ranks_ready,
    ev.Stepped: _stepped,
    ev.Committed: _committed,
    ev.RankLost: _rank_lost,
    ev.AgentLost: _agent_lost,
    ev.RanksFinished: _ranks_finished,
    ev.CancelRequested: _cancel_requested,
    ev.Concluded: _concluded,
    ev.Tick: _tick,
}
