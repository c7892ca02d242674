from __future__ import annotations

import pytest
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.controller import actions_to_resume, step
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.policies import STOP_TIMEOUT_S, keep_ranks, retry_delay
from drivetrain_workers.protocol.reasons import Reason
from hypothesis import given
from hypothesis import strategies as st_

DATASET = "/data/v1"
PLACE = st.Allocation((("node", 2),), 1.0)


def after(*events: ev.Event) -> tuple[st.State, list[ev.Action]]:
    """Return the state after events from the start, and the actions of the last event."""
    state: st.State = st.Queued()
    actions: list[ev.Action] = []
    for event in events:
        state, actions = step(state, event)
    return state, actions


TO_TRAINING = (
    ev.Admitted(),
    ev.Prepared(DATASET),
    ev.AllocationGranted(PLACE),
    ev.GangPlaced(),
    ev.RanksReady(1, 0),
)


def lost(generation: int, reason: Reason = Reason.RANK_KILLED, at: float = 100.0) -> ev.RankLost:
    return ev.RankLost(generation, reason, "rank 1 was killed", at)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ev.Admitted(), "admitted"),
        (
            ev.AllocationGranted(st.Allocation((("a" * 56, 2), ("b", 1)))),
            "allocation granted: 2 on node aaaaaaaaaaaa, 1 on node b",
        ),
        (ev.PreemptionRequested("node b is draining"), "preemption requested: node b is draining"),
        (lost(3), "rank lost: generation 3, reason rank_killed, rank 1 was killed"),
        (ev.Failed(Reason.USER_CODE, "first\n\tsecond \x1b[31mred"), "failed: reason user_code, first second [31mred"),
    ],
)
def test_events_are_one_line_of_text(event: ev.Event, words: str) -> None:
    assert str(event) == words


def test_undisturbed_life() -> None:
    assert after(ev.Admitted()) == (st.Preparing(), [ev.Prepare()])
    assert after(*TO_TRAINING[:2]) == (st.Ready(DATASET), [ev.ReleaseAllocation()])
    assert after(*TO_TRAINING[:3]) == (st.Placing(DATASET, PLACE), [ev.PlaceGang(DATASET, PLACE)])
    state, actions = after(*TO_TRAINING[:4])
    assert isinstance(state, st.Starting)
    assert actions == [ev.StartGeneration(1)]
    state, actions = after(*TO_TRAINING, ev.Stepped(1, 1), ev.RanksFinished(1, complete=True))
    assert isinstance(state, st.Finishing)
    assert actions == [ev.Conclude(DATASET)]
    state, actions = step(state, ev.Concluded())
    assert isinstance(state, st.Ended)
    assert state.reason is Reason.COMPLETED
    assert actions == [ev.Release(Reason.COMPLETED, "")]


def test_lost_rank_starts_the_next_generation_at_once() -> None:
    state, actions = after(*TO_TRAINING, ev.Stepped(1, 5), lost(1))
    assert isinstance(state, st.Starting)
    assert actions == [ev.StartGeneration(2)]
    assert (state.progress.restarts, state.progress.failures) == (1, {Reason.RANK_KILLED: 1})
    same, nothing = step(state, lost(1))  # the peers of the dead rank die too; these events are outdated
    assert same is state
    assert nothing == []


def test_generation_begins_where_its_checkpoint_ends() -> None:
    state, _ = after(*TO_TRAINING, ev.Stepped(1, 5), ev.Committed(1, 4), lost(1), ev.RanksReady(2, 4))
    assert isinstance(state, st.Training)
    assert (state.progress.step, state.progress.committed_step) == (4, 4)


def test_progress_forgives_failures_and_repetition_does_not() -> None:
    state, _ = after(*TO_TRAINING, ev.Stepped(1, 5), lost(1), ev.RanksReady(2, 4), ev.Stepped(2, 5))
    assert state.progress.failures == {
        Reason.RANK_KILLED: 1
    }  # step 5 was reached before the failure: its repetition is no progress
    state, _ = step(state, ev.Stepped(2, 6))
    assert state.progress.failures == {}


def test_repeated_failures_wait_and_then_end_the_run() -> None:
    state, _ = after(*TO_TRAINING)
    delays = []
    while not isinstance(state, st.Ended):
        state, actions = step(state, lost(state.progress.generation))
        if isinstance(state, st.Waiting):
            assert actions == [ev.StopRanks()]
            delays.append(state.not_before - 100.0)
            early, nothing = step(state, ev.Tick(state.not_before - 0.1))
            assert early is state
            assert nothing == []
            state, _ = step(state, ev.Tick(state.not_before))
    assert delays == [1.0, 2.0, 4.0, 8.0]
    assert state.reason is Reason.RANK_KILLED
    assert state.progress.failures == {Reason.RANK_KILLED: 6}
    assert state.detail == "rank 1 was killed; failed 6 times for this reason without progress beyond step 0"


def test_each_reason_has_its_own_budget() -> None:
    """Lost machines do not reduce the retries for errors in user code."""
    state, _ = after(*TO_TRAINING, lost(1), lost(2, Reason.USER_CODE))
    assert isinstance(state, st.Waiting)
    state, _ = step(state, ev.Tick(state.not_before))
    state, _ = step(state, lost(3, Reason.USER_CODE))
    assert isinstance(state, st.Ended)
    assert state.reason is Reason.USER_CODE
    assert "2 times" in state.detail


def test_wrong_input_is_not_tried_again() -> None:
    state, actions = after(*TO_TRAINING, lost(1, Reason.INPUT))
    assert isinstance(state, st.Ended)
    assert actions == [ev.Release(Reason.INPUT, "rank 1 was killed")]


def test_a_lost_agent_is_placed_again() -> None:
    state, actions = after(*TO_TRAINING, ev.AgentLost(1, "gone"))
    assert isinstance(state, st.Placing)
    assert actions == [ev.StopRanks(), ev.PlaceGang(DATASET, PLACE)]
    state, actions = step(state, ev.GangPlaced())
    assert actions == [ev.StartGeneration(2)]


@pytest.mark.parametrize("reached", range(5))
def test_cancel_anywhere(reached: int) -> None:
    state, actions = after(*TO_TRAINING[:reached], ev.CancelRequested())
    assert isinstance(state, st.Ended)
    assert isinstance(actions[0], ev.Release)


def test_cancel_while_training_saves_first() -> None:
    state, actions = after(*TO_TRAINING, ev.CancelRequested())
    assert isinstance(state, st.Stopping)
    assert actions == [ev.RequestStop()]
    state, _ = step(state, ev.RanksFinished(1, complete=False))
    assert isinstance(state, st.Ended)
    assert state.reason is Reason.CANCELLED


def test_a_preempted_run_saves_and_waits_for_an_allocation() -> None:
    state, actions = after(*TO_TRAINING, ev.PreemptionRequested("preempted"))
    assert state == st.Stopping(DATASET, PLACE, "preempted", progress=state.progress)
    assert actions == [ev.RequestStop()]
    ready, actions = step(state, ev.RanksFinished(1, complete=False))
    assert ready == st.Ready(DATASET, "preempted", progress=state.progress)
    assert actions == [ev.ReleaseAllocation()]
    assert isinstance(step(state, lost(1))[0], st.Ready)
    assert isinstance(step(state, ev.AgentLost(1, "gone"))[0], st.Ready)
    cancelled, _ = step(state, ev.CancelRequested())
    ended, _ = step(cancelled, ev.RanksFinished(1, complete=False))
    assert isinstance(ended, st.Ended)


def test_a_spent_budget_saves_and_says_so() -> None:
    spent = ev.CancelRequested(Reason.BUDGET_SPENT, "budget.hours of 3 is spent")
    state, actions = after(*TO_TRAINING, ev.PreemptionRequested("preempted"), spent)
    assert actions == []  # it is already stopping
    ended, _ = step(state, ev.RanksFinished(1, complete=False))
    assert isinstance(ended, st.Ended)
    assert ended.reason is Reason.BUDGET_SPENT
    assert ended.detail == "budget.hours of 3 is spent; stopped after step 0, with a checkpoint"
    waiting, _ = after(*TO_TRAINING[:2], spent)
    assert isinstance(waiting, st.Ended)
    assert waiting.reason is Reason.BUDGET_SPENT


@pytest.mark.parametrize("reached", [3, 4])
def test_a_run_that_does_not_train_yet_yields_at_once(reached: int) -> None:
    state, actions = after(*TO_TRAINING[:reached], ev.PreemptionRequested("preempted"))
    assert isinstance(state, st.Ready)
    assert actions == [ev.ReleaseAllocation()]


def test_a_lost_node_requires_another_allocation() -> None:
    state, _ = after(*TO_TRAINING, ev.AgentLost(1, "gone"))
    ready, actions = step(state, ev.AllocationLost("the node has left"))
    assert ready == st.Ready(DATASET, "the node has left", PLACE.placement, progress=state.progress)
    assert actions == [ev.ReleaseAllocation(keep_copies=True)]
    again, _ = step(ready, ev.AllocationGranted(st.Allocation((("other", 1),))))
    assert step(again, ev.GangPlaced())[1] == [ev.StartGeneration(2)]


def test_an_unusable_allocation_is_released_up_to_the_retries_of_an_agent() -> None:
    state, _ = after(*TO_TRAINING[:3])
    for failures in range(1, OUTCOMES[Reason.AGENT_LOST].retries + 1):
        ready, actions = step(state, ev.AllocationUnusable("its agent dies at once"))
        assert isinstance(ready, st.Ready)
        assert ready.progress.failures == {Reason.AGENT_LOST: failures}
        assert actions == [ev.ReleaseAllocation(keep_copies=True)]
        state, _ = step(ready, ev.AllocationGranted(PLACE))
    ended, _ = step(state, ev.AllocationUnusable("its agent dies at once"))
    assert isinstance(ended, st.Ended)
    assert ended.reason is Reason.AGENT_LOST


EVENTS = st_.one_of(
    st_.sampled_from(
        [
            ev.Admitted(),
            ev.Prepared(DATASET),
            ev.AllocationGranted(PLACE),
            ev.AllocationLost("a node is gone"),
            ev.AllocationUnusable("agents die at once"),
            ev.PreemptionRequested("for another"),
            ev.GangPlaced(),
            ev.CancelRequested(),
            ev.Concluded(),
        ]
    ),
    st_.builds(ev.Failed, st_.sampled_from([Reason.PREPARE_FAILED, Reason.PLACEMENT_FAILED]), st_.just("")),
    st_.builds(ev.RanksReady, st_.integers(0, 4), st_.integers(0, 9)),
    st_.builds(ev.Stepped, st_.integers(0, 4), st_.integers(0, 9)),
    st_.builds(ev.Committed, st_.integers(0, 4), st_.integers(0, 9)),
    st_.builds(lost, st_.integers(0, 4), st_.sampled_from(list(Reason))),
    st_.builds(ev.AgentLost, st_.integers(0, 4), st_.just("")),
    st_.builds(ev.RanksFinished, st_.integers(0, 4), st_.booleans()),
    st_.builds(ev.Tick, st_.floats(0, 1000)),
)


@given(st_.lists(EVENTS, max_size=40))
def test_any_events_in_any_order(events: list[ev.Event]) -> None:
    """The table is never violated, generations only increase and start once, and an ended run stays ended."""
    state: st.State = st.Queued()
    started = []
    for event in events:
        new, actions = step(state, event)
        started += [action.generation for action in actions if isinstance(action, ev.StartGeneration)]
        assert new.progress.generation >= state.progress.generation
        if isinstance(state, st.Ended):
            assert new is state
            assert actions == []
        assert st.from_record(st.to_record(new)) == new
        state = new
    assert started == sorted(set(started))


@given(st_.lists(EVENTS, max_size=40))
def test_a_cancelled_run_ends_in_every_state_without_help(events: list[ev.Event]) -> None:
    """Whatever has happened, and although nothing more is heard of ranks, agents and threads: time alone is enough."""
    state: st.State = st.Queued()
    for event in events:
        state, _ = step(state, event)
    state, _ = step(state, ev.CancelRequested())
    for now in (2000.0, 2000.0 + STOP_TIMEOUT_S, 1e9):
        state, _ = step(state, ev.Tick(now))
    assert isinstance(state, st.Ended)


def test_ranks_that_do_not_end_are_not_waited_for() -> None:
    for asked in (ev.CancelRequested(), ev.PreemptionRequested("for another")):
        stopping, _ = after(*TO_TRAINING, asked, ev.Tick(10.0), ev.Tick(9.0 + STOP_TIMEOUT_S))
        assert isinstance(stopping, st.Stopping)
        state, _ = step(stopping, ev.Tick(10.0 + STOP_TIMEOUT_S))
        assert isinstance(state, st.Ended if isinstance(asked, ev.CancelRequested) else st.Ready)
        if isinstance(state, st.Ended):
            assert state.reason is Reason.CANCELLED
            assert "did not end within 1800 s" in state.detail


def test_a_trained_run_that_is_cancelled_is_complete() -> None:
    state, _ = after(*TO_TRAINING, ev.RanksFinished(1, complete=True), ev.CancelRequested())
    assert isinstance(state, st.Ended)
    assert state.reason is Reason.COMPLETED
    assert step(state, ev.Concluded())[0] is state


def test_records_with_unknown_keys_load() -> None:
    record = {**st.to_record(st.Training(DATASET, PLACE)), "from_the_future": 1}
    record["progress"] = {"step": 3, "also_new": 2}
    assert st.from_record(record) == st.Training(DATASET, PLACE, progress=st.Progress(step=3))


def test_every_state_can_be_resumed() -> None:
    states = [
        st.Queued(),
        st.Preparing(),
        st.Ready(DATASET),
        st.Placing(DATASET, PLACE),
        st.Starting(DATASET, PLACE),
        st.Training(DATASET, PLACE),
        st.Waiting(DATASET, PLACE, 1.0),
        st.Stopping(DATASET, PLACE),
        st.Finishing(DATASET, PLACE),
        st.Ended(Reason.COMPLETED),
    ]
    assert {type(state) for state in states} == set(st.TRANSITIONS)
    idle = [state.phase for state in states if not actions_to_resume(state)]
    assert idle == ["queued"]


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_an_outcome_and_a_bound(reason: Reason) -> None:
    outcome = OUTCOMES[reason]
    assert outcome.meaning
    assert retry_delay(st.Progress(failures={reason: outcome.retries + 1}), reason) is None


@pytest.mark.parametrize(
    ("nodes", "before", "kept"),
    [
        ("ab", "", "ab"),
        ("ab", "ab", "ab"),
        ("ba", "ab", "ab"),
        ("bc", "ab", "cb"),
        ("xc", "abc", "xc"),
        ("cde", "abc", "dec"),
        ("abc", "c", "cab"),
    ],
)
def test_nodes_keep_their_ranks(nodes: str, before: str, kept: str) -> None:
    placement, earlier = tuple((node, 1) for node in nodes), tuple((node, 1) for node in before)
    assert "".join(node for node, _ in keep_ranks(placement, earlier)) == kept
