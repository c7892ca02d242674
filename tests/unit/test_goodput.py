from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from drivetrain.accounting import running_totals
from drivetrain.accounting.goodput import CLASSES, Timeline, account, phase_intervals
from drivetrain.accounting.running_totals import RunningTotals
from drivetrain_workers.records.step_times import ITERATION, Iterations, StepTimes, read_iterations
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clock import Clock


def iterations(first: int, last: int, began: float, step_s: float = 1.0) -> Iterations:
    """Return iterations that take ``step_s``: six tenths computing, one tenth each for the other parts."""
    parts = (0.1 * step_s, 0.6 * step_s, 0.1 * step_s, 0.1 * step_s, 0.1 * step_s)
    return np.array([(step, began + (step - first) * step_s, *parts) for step in range(first, last + 1)], ITERATION)


def spent(timeline: Timeline) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in timeline.goodput.seconds.items() if seconds > 1e-6}


UNDISTURBED = [
    (102.0, "preparing", 0),
    (105.0, "ready", 0),
    (106.0, "placing", 0),
    (108.0, "starting", 1),
    (111.0, "training", 1),
]


def test_an_undisturbed_run() -> None:
    history = [*UNDISTURBED, (122.5, "finishing", 1), (124.0, "ended", 1)]
    found = account(phase_intervals(100.0, history, 999.0), {1: iterations(1, 10, 112.0)})
    assert found.goodput.wall_s == 24.0
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
    assert found.goodput.share == pytest.approx(7 / 18)


def test_recomputed_and_lost_time() -> None:
    """Killed during step 9, restarted after step 4."""
    history = [
        *UNDISTURBED,
        (120.5, "starting", 2),
        (122.0, "training", 2),
        (133.0, "finishing", 2),
        (133.0, "ended", 2),
    ]
    found = account(phase_intervals(100.0, history, 999.0), {1: iterations(1, 8, 112.0), 2: iterations(5, 14, 123.0)})
    seconds = spent(found)
    assert seconds["recomputing"] == 0.5 + 4.0
    assert seconds["recovering"] == 2.5
    assert seconds["starting"] == 4.0
    assert seconds["computing"] == pytest.approx(0.6 * 14)
    assert sum(found.goodput.seconds.values()) == pytest.approx(found.goodput.wall_s) == 33.0


def test_a_preempted_run_is_queued() -> None:
    history = [
        *UNDISTURBED,
        (114.0, "stopping", 1),
        (116.0, "ready", 1),
        (126.0, "placing", 1),
        (127.0, "starting", 2),
        (128.0, "training", 2),
    ]
    found = account(phase_intervals(100.0, history, 131.5), {1: iterations(1, 3, 112.0), 2: iterations(4, 6, 128.5)})
    seconds = spent(found)
    assert (seconds["queued"], seconds["provisioning"], seconds["starting"]) == (13.0, 3.0, 5.5)
    assert "recovering" not in seconds
    assert "recomputing" not in seconds


def test_a_gap_between_iterations_is_idle() -> None:
    records = np.concatenate([iterations(1, 3, 112.0), iterations(4, 4, 117.0)])
    found = account(
        phase_intervals(100.0, [*UNDISTURBED, (118.0, "finishing", 1), (118.0, "ended", 1)], 0.0), {1: records}
    )
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
    """This holds for any records: different clocks, overlapping iterations, unknown generations."""
    at, generation, history = 100.0, 1, []
    for phase, after, next_one in entries:
        at, generation = at + after, generation + next_one
        history.append((at, phase, generation))
    records = {number: iterations(1, count, began, step_s) for number, count, began, step_s in steps}
    found = account(phase_intervals(100.0, history, at + 5.0), records)
    assert (found.ends >= found.begins).all()
    assert (found.begins[1:] == found.ends[:-1]).all()
    assert sum(found.goodput.seconds.values()) == pytest.approx(found.goodput.wall_s)
    assert found.goodput.wall_s == pytest.approx(at - 95.0)


def test_over_time() -> None:
    history = [*UNDISTURBED, (122.0, "finishing", 1), (124.0, "ended", 1)]
    shares = account(phase_intervals(100.0, history, 0.0), {1: iterations(1, 10, 112.0)}).over_time(24)
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
        times.end_iteration(step, 1.0)
    times.close()
    with (tmp_path / "000003.times").open("ab") as file:
        file.write(b"torn")
    (found,) = read_iterations(tmp_path).values()
    assert found["step"].tolist() == [7, 8]
    assert found["data"].tolist() == [2.0, 2.0]
    assert found["compute"].tolist() == [2.0, 2.0]
    assert found["communicate"].tolist() == [1.0, 1.0]
    assert found["began"].tolist() == [1000.0, 1005.0]
    assert list(read_iterations(tmp_path)) == [3]


Happening = tuple[str, int, float, float]


def happenings() -> st.SearchStrategy[list[Happening]]:
    """Generate events: kind, generation, delay after the previous one, step time or delay of the transition."""
    seconds = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 5.0])
    turn = st.tuples(st.just("turn"), st.sampled_from([0, 0, 0, 0, 1, 2]), seconds, seconds)
    transition = st.tuples(st.sampled_from(_PHASES), st.integers(0, 1), seconds, seconds)
    redone = st.tuples(st.just("loaded"), st.integers(0, 8), st.just(0.0), st.just(0.0))
    question = st.tuples(st.just("?"), st.just(0), seconds, st.just(0.0))
    return st.lists(st.one_of(turn, turn, turn, turn, transition, redone, question, question), min_size=20, max_size=60)


_PHASES = ("ready", "placing", "starting", "training", "starting", "training", "waiting", "stopping", "ended")


@settings(max_examples=300, deadline=None)
@given(happenings(), st.integers(1, 9), st.sampled_from([-4.0, -0.5, 0.0, 0.0, 0.0, 0.5, 4.0]))
def test_running_totals_equal_the_totals_of_all_iterations(entries: list[Happening], piece: int, skew: float) -> None:
    """While iterations are written and states change: repeated steps, late records, different clocks.

    Read bit by bit or all at once, the sums are the same to the bit; those of every stretch differ by the order in
    which they are added alone.
    """
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(running_totals, "_CHUNK_ITERATIONS", piece)
        folder, now, generation, steps = Path(name), 100.0, 1, {0: 0}
        history = [(now, "training", generation)]
        run = RunningTotals(folder)
        for what, which, after, seconds in entries:
            now += after
            match what:
                case "?":
                    found = phase_intervals(100.0, history, now)
                    grown = run.goodput(found)
                    assert grown == RunningTotals(folder).goodput(found)
                    whole = account(found, read_iterations(folder)).goodput
                    assert grown.wall_s == pytest.approx(whole.wall_s)
                    assert grown.seconds == pytest.approx(whole.seconds, abs=1e-9)
                case "turn":
                    of = max(1, generation - which)
                    steps[of] = steps.get(of, 0) + 1
                    with (folder / f"{of:06d}.times").open("ab") as file:
                        file.write(iterations(steps[of], steps[of], now - seconds + skew, seconds).tobytes())
                case "loaded":
                    steps[generation] = max(0, steps.get(generation, 0) - which)
                case _:
                    generation += which
                    steps.setdefault(generation, max(0, steps.get(generation - 1, 0) - 3))
                    history.append((max(now - seconds, history[-1][0]), what, generation))


def test_an_iteration_is_read_once(tmp_path: Path) -> None:
    """For an active run, only new records and the last iteration are read again."""
    history = [*UNDISTURBED]
    path = tmp_path / "000001.times"
    run = RunningTotals(tmp_path)
    for last in (10, 20, 30):
        path.write_bytes(iterations(1, last, 112.0).tobytes())
        assert run.goodput(phase_intervals(100.0, history, 112.0 + last)).seconds["computing"] == pytest.approx(
            0.6 * last
        )
        assert len(run.generation(1)._pending) == 1
        damaged = iterations(1, last, 112.0)
        damaged["compute"] = 1000.0
        path.write_bytes(damaged.tobytes())  # nothing of it is read


def test_a_late_iteration_of_an_older_generation_is_counted(tmp_path: Path) -> None:
    """The repeated steps of the newer generation are counted again: the older one had reached a later step."""
    history = [*UNDISTURBED, (120.5, "starting", 2), (122.0, "training", 2)]
    (tmp_path / "000001.times").write_bytes(iterations(1, 7, 112.0).tobytes())
    (tmp_path / "000002.times").write_bytes(iterations(5, 14, 123.0).tobytes())
    run = RunningTotals(tmp_path)
    assert run.goodput(phase_intervals(100.0, history, 133.0)).seconds["recomputing"] == pytest.approx(1.5 + 3.0)
    with (tmp_path / "000001.times").open("ab") as file:
        file.write(iterations(8, 8, 119.0).tobytes())
    assert run.goodput(phase_intervals(100.0, history, 133.0)).seconds["recomputing"] == pytest.approx(0.5 + 4.0)
