"""Seeded lives of a simulated cluster: no resource is allocated twice, and every run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.world import World

_BATCH = 250


def live(seed: int, folder: Path) -> World:
    world = World(seed, folder)
    try:
        world.run()
    except BaseException as error:
        error.add_note(f"seed {seed}; the last that happened:\n" + "\n".join(world.trace[-40:]))
        raise
    return world


@pytest.mark.parametrize("batch", range(4))
def test_a_thousand_lives(batch: int, tmp_path: Path) -> None:
    for seed in range(batch * _BATCH, (batch + 1) * _BATCH):
        live(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(4, 400))
def test_a_hundred_thousand_lives(batch: int, tmp_path: Path) -> None:
    test_a_thousand_lives(batch, tmp_path)


def test_a_seed_is_one_life(tmp_path: Path) -> None:
    assert live(7, tmp_path).trace == live(7, tmp_path).trace
    assert live(7, tmp_path).trace != live(8, tmp_path).trace


def test_lives_are_eventful(tmp_path: Path) -> None:
    """The test is useless if the events in question never occur."""
    text = "\n".join(line for seed in range(150) for line in live(seed, tmp_path).trace)
    for event in (
        "the coordinator crashes",
        "node n0 goes",
        "the agent on",
        "dies of",
        "a connection is lost",
        "training -> stopping on preemption requested",
        "stopping -> ready on ranks finished",
        "placing -> ready on allocation lost",
        "placing -> ready on allocation unusable",
        "training -> stopping on cancel requested",
        "training -> waiting on rank lost",
        "finishing -> ended on concluded",
    ):
        assert event in text, event
