from __future__ import annotations

import time

import numpy as np
import pytest
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_pipelines.order.permutation import mix_key, permute
from drivetrain_pipelines.order.source_order import SourceOrder
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = st.integers(0, (1 << 64) - 1)
ROWS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
LANES, WINDOWS = st.integers(1, 12), st.sampled_from([1, 3, 16, 64])


@given(size=st.integers(1, 3000), key=KEYS)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@pytest.mark.parametrize("size", [(1 << 31) - 1, 1 << 31, 46341**2, 46340**2 + 1])
def test_permutation_of_huge_ranges_stays_inside(size: int) -> None:
    places = permute(np.arange(0, size, size // 1000), size, 5)
    assert len(set(places.tolist())) == len(places)
    assert ((places >= 0) & (places < size)).all()


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20), key=KEYS)
def test_permutations_of_many_sizes_at_once(sizes: list[int], key: int) -> None:
    keys = np.array([mix_key(key, number) for number in range(len(sizes))], np.uint64)
    positions = np.array([size // 2 for size in sizes])
    one_by_one = [permute(positions[i : i + 1], sizes[i], int(keys[i]))[0] for i in range(len(sizes))]
    assert permute(positions, np.array(sizes), keys, np.arange(len(sizes))).tolist() == one_by_one


@given(rows=ROWS, key=KEYS, lanes=LANES, window=WINDOWS, epoch=st.integers(0, 1000))
def test_every_sample_once_per_epoch(rows: list[int], key: int, lanes: int, window: int, epoch: int) -> None:
    order = SourceOrder(tuple(rows), key, lanes, window)
    shards, places = order.locate(np.arange(epoch * order.size, (epoch + 1) * order.size))
    assert sorted(zip(shards.tolist(), places.tolist(), strict=True)) == [
        (shard, row) for shard, count in enumerate(rows) for row in range(count)
    ]


@settings(max_examples=200, deadline=None)
@given(
    sources=st.lists(ROWS, min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    seed=st.integers(0, 1 << 62),
    lanes=LANES,
    window=WINDOWS,
    global_batch=st.integers(1, 64),
    worlds=st.lists(st.integers(1, 64), min_size=1, max_size=6),
)
def test_the_global_stream_does_not_depend_on_the_world(
    sources: list[list[int]],
    weights: list[float],
    seed: int,
    lanes: int,
    window: int,
    global_batch: int,
    worlds: list[int],
) -> None:
    """World sizes that change from step to step deliver exactly the rows of a single rank, step by step."""
    order = SampleOrder.of(sources, weights[: len(sources)], seed, lanes, window)
    for step, world in enumerate(worlds):
        start = step * global_batch
        whole = order.positions(start, global_batch, slice(0, global_batch))
        assert sorted(whole) == list(range(start, start + global_batch))
        slices = [slice(global_batch * rank // world, global_batch * (rank + 1) // world) for rank in range(world)]
        assert (
            np.concatenate([order.positions(start, global_batch, rows) for rows in slices]).tolist() == whole.tolist()
        )
        parts = [order.locate(whole[rows]) for rows in slices]
        assert np.array_equal(np.concatenate(parts, axis=1), order.locate(whole))


@settings(max_examples=50, deadline=None)
@given(
    sources=st.lists(ROWS, min_size=2, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    seed=st.integers(0, 1 << 62),
    start=st.sampled_from([0, 4096 * 1000, 4096 * 10**9]),
)
def test_mixtures_are_apportioned_exactly(
    sources: list[list[int]], weights: list[float], seed: int, start: int
) -> None:
    order = SampleOrder.of(sources, weights[: len(sources)], seed, 4, 16)
    numbers, counters = order.divide(np.arange(start, start + 3 * 4096))
    for source in range(len(sources)):
        own = np.sort(counters[numbers == source])
        share = weights[source] / sum(weights[: len(sources)])
        assert own.tolist() == list(range(own[0], own[0] + len(own)))  # no repetitions, no gaps
        assert abs(own[0] - start * share) <= 1 + start * 2**-31
        assert abs(len(own) - 3 * 4096 * share) < 2


def test_epochs_seeds_and_streams_differ() -> None:
    def stream(seed: int, start: int) -> list[int]:
        return SampleOrder.of([[1000]], [1], seed, 8, 64).locate(np.arange(start, start + 1000))[1].tolist()

    assert stream(1, 0) != stream(1, 1000)
    assert stream(1, 0) != stream(2, 0)


def test_a_rank_reads_few_shards_at_a_time() -> None:
    order = SampleOrder.of([[1000] * 400], [1], 3, lanes=32, window=1024)
    for start in range(0, 64 * 1000, 64 * 100):
        steps = [order.positions(start + 64 * step, 64, slice(0, 8)) for step in range(20)]
        shards, _ = order.locate(np.concatenate(steps))
        assert len(np.unique(shards)) <= 16  # 4 of the 32 lanes, windows of two or three shards each, two at a change


def test_the_shuffle_is_thorough() -> None:
    """Neighbours in the stream are not neighbours in the data, and all places of a window are equally likely."""
    order = SourceOrder((1 << 14,), 9, lanes=1, window=1 << 14)
    _, rows = order.locate(np.arange(100 * (1 << 14)))
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.01
    first = rows.reshape(100, -1)[:, :16]
    assert 0.4 < np.mean(first < (1 << 13)) < 0.6


def test_seeking_costs_the_same_anywhere() -> None:
    """A billion samples in twenty thousand shards: no table of samples is made."""
    counts = [50_000] * 20_000
    for position in (0, 10**9 // 2, 10**9 * 50 + 12345):
        order = SampleOrder.of([counts], [1], 1, 64, 1 << 14)
        began = time.process_time()
        shards, rows = order.locate(order.positions(position, 512, slice(0, 512)))
        print(f"seek to {position}: {1000 * (time.process_time() - began):.1f} ms CPU")
        assert shards.max() < 20_000
        assert rows.max() < 50_000


def test_the_order_is_pinned() -> None:
    """The order is a format: changing it would change every resumed run."""
    order = SampleOrder.of([[700] * 30, [500] * 9], [3, 1], 7, 32, 256)
    shards, rows = order.locate(np.array([0, 1, 2, 10**6, 10**12]))
    assert list(zip(shards.tolist(), rows.tolist(), strict=True)) == PINNED
    assert mix_key(1, 2, 3) == PINNED_KEY


PINNED = [(14, 135), (5, 43), (2, 113), (33, 280), (18, 211)]
PINNED_KEY = 5246500226706903259
