from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drivetrain.accounting.goodput import CLASSES, Goodput, account, stays
from drivetrain_workers.records.step_times import TURN, StepTimes, Turns, read_turns
from hypothesis import given
from hypothesis import strategies as st

from tests.clock import Clock


def turns(first: int, last: int, began: float, step_s: float = 1.0) -> Turns:
    """Steps that take ``step_s``: six tenths for computing, one each for the other parts."""
    parts = (0.1 * step_s, 0.6 * step_s, 0.1 * step_s, 0.1 * step_s, 0.1 * step_s)
    return np.array([(step, began + (step - first) * step_s, *parts) for step in range(first, last + 1)], TURN)


def spent(goodput: Goodput) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in goodput.seconds.items() if seconds > 1e-6}


UNDISTURBED = [
    (102.0, "preparing", 0),
    (105.0, "ready", 0),
    (106.0, "placing", 0),
    (108.0, "starting", 1),
    (111.0, "training", 1),
]


def test_an_undisturbed_run() -> None:
    history = [*UNDISTURBED, (122.5, "finishing", 1), (124.0, "ended", 1)]
    found = account(stays(100.0, history, 999.0), {1: turns(1, 10, 112.0)})
    assert found.wall_s == 24.0
    assert spent(found) == {
        "queued": 3.0,
        "preparing": 3.0,
        "provisioning": 2.0,
        "starting": 4.0,
        "computing": 6.0,
        "waiting for data": 1.0,
        "communicating": 1.0,
        "evaluating": 1.0,
        "saving": 1.5,
        "finishing": 1.5,
    }
    assert found.share == pytest.approx(7 / 18)


def test_what_is_done_again_and_what_was_lost() -> None:
    """Killed in the midst of step 9, begun again after step 4."""
    history = [
        *UNDISTURBED,
        (120.5, "starting", 2),
        (122.0, "training", 2),
        (133.0, "finishing", 2),
        (133.0, "ended", 2),
    ]
    found = account(stays(100.0, history, 999.0), {1: turns(1, 8, 112.0), 2: turns(5, 14, 123.0)})
    seconds = spent(found)
    assert seconds["recomputing"] == 0.5 + 4.0
    assert seconds["recovering"] == 2.5
    assert seconds["starting"] == 4.0
    assert seconds["computing"] == pytest.approx(0.6 * 14)
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s) == 33.0


def test_a_run_that_made_room_waits_in_the_queue() -> None:
    history = [
        *UNDISTURBED,
        (114.0, "stopping", 1),
        (116.0, "ready", 1),
        (126.0, "placing", 1),
        (127.0, "starting", 2),
        (128.0, "training", 2),
    ]
    found = account(stays(100.0, history, 131.5), {1: turns(1, 3, 112.0), 2: turns(4, 6, 128.5)})
    seconds = spent(found)
    assert (seconds["queued"], seconds["provisioning"], seconds["starting"]) == (13.0, 3.0, 5.5)
    assert "recovering" not in seconds
    assert "recomputing" not in seconds


def test_a_gap_between_turns_is_idle() -> None:
    records = np.concatenate([turns(1, 3, 112.0), turns(4, 4, 117.0)])
    found = account(stays(100.0, [*UNDISTURBED, (118.0, "finishing", 1), (118.0, "ended", 1)], 0.0), {1: records})
    assert spent(found)["idle"] == 2.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ready", "placing", "starting", "training", "waiting", "stopping"]),
            st.floats(0, 30),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30), st.floats(90, 300), st.floats(0, 3)), max_size=6),
)
def test_every_second_is_in_one_class(
    entries: list[tuple[str, float, bool]], steps: list[tuple[int, int, float, float]]
) -> None:
    """Whatever the records say: clocks that differ, turns that overlap, generations that nobody knows."""
    at, generation, history = 100.0, 1, []
    for phase, after, next_one in entries:
        at, generation = at + after, generation + next_one
        history.append((at, phase, generation))
    records = {number: turns(1, count, began, step_s) for number, count, began, step_s in steps}
    found = account(stays(100.0, history, at + 5.0), records)
    assert (found.ends >= found.begins).all()
    assert (found.begins[1:] == found.ends[:-1]).all()
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    assert found.wall_s == pytest.approx(at - 95.0)


def test_over_time() -> None:
    history = [*UNDISTURBED, (122.0, "finishing", 1), (124.0, "ended", 1)]
    shares = account(stays(100.0, history, 0.0), {1: turns(1, 10, 112.0)}).over_time(24)
    assert shares.shape == (len(CLASSES), 24)
    assert shares.sum(axis=0) == pytest.approx(1.0)
    assert shares[list(CLASSES).index("queued"), :2] == pytest.approx(1.0)


def test_turns_are_written_and_read_while_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("drivetrain_workers.records.step_times.time", clock)
    times = StepTimes(tmp_path, generation=3)
    for step in (7, 8):
        times.enter("data")
        clock.now += 2
        times.enter("compute")
        clock.now += 3
        times.end_turn(step, 1.0)
    times.close()
    with (tmp_path / "000003.times").open("ab") as file:
        file.write(b"torn")
    (found,) = read_turns(tmp_path).values()
    assert found["step"].tolist() == [7, 8]
    assert found["data"].tolist() == [2.0, 2.0]
    assert found["compute"].tolist() == [2.0, 2.0]
    assert found["communicate"].tolist() == [1.0, 1.0]
    assert found["began"].tolist() == [1000.0, 1005.0]
    assert list(read_turns(tmp_path)) == [3]
