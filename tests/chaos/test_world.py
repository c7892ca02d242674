"""Seeded lives of a simulated cluster: whatever happens, nothing is given twice, and every run ends."""

from __future__ import annotations

import pytest

from tests.chaos.world import World

_BATCH = 250


def live(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except BaseException as error:
        error.add_note(f"seed {seed}; the last that happened:\n" + "\n".join(world.trace[-40:]))
        raise
    return world


@pytest.mark.parametrize("batch", range(4))
def test_a_thousand_lives(batch: int) -> None:
    for seed in range(batch * _BATCH, (batch + 1) * _BATCH):
        live(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(4, 400))
def test_a_hundred_thousand_lives(batch: int) -> None:
    test_a_thousand_lives(batch)


def test_a_seed_is_one_life() -> None:
    assert live(7).trace == live(7).trace
    assert live(7).trace != live(8).trace


def test_lives_are_eventful() -> None:
    """The test is worth nothing if what it is about does not happen."""
    text = "\n".join(line for seed in range(150) for line in live(seed).trace)
    for event in (
        "the coordinator crashes",
        "node n0 goes",
        "the agent on",
        "a rank on",
        "training -> stopping on YieldAsked",
        "stopping -> ready on RanksFinished",
        "placing -> ready on PlaceLost",
        "placing -> ready on PlaceUnfit",
        "training -> stopping on CancelAsked",
        "training -> waiting on RankLost",
        "finishing -> ended on Concluded",
    ):
        assert event in text, event
