"""Copies of a rank's state in host memory, and the verification of loaded state."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.json_files import write_json
from drivetrain_workers.checkpoints.load import Checkpoint, restore, restore_rng
from drivetrain_workers.checkpoints.manifest import Contents, Manifest, Probe, RankIndex
from drivetrain_workers.checkpoints.proof import verify_loss, verify_state
from drivetrain_workers.checkpoints.snapshot import HostBuffer, rng_state
from drivetrain_workers.checkpoints.store import commit, rank_file, rank_index
from drivetrain_workers.errors import CheckpointError, ResumeMismatchError
from torch.testing._internal.distributed.fake_pg import FakeStore


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine_of(seed: int = 0, steps: int = 1, width: int = 2) -> Any:
    """Return the parts of an engine without ZeRO that a snapshot uses."""
    torch.manual_seed(seed)
    module = torch.nn.Linear(3, width)
    module.register_buffer("seen", torch.tensor([5, 6]))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.8, 0.9))
    for _ in range(steps):
        module(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    schedule = SimpleNamespace(last_epoch=0)
    return SimpleNamespace(module=module, optimizer=optimizer, lr_scheduler=schedule, zero_optimization_stage=lambda: 0)


def snapshot(engine: Any) -> tuple[Contents, bytes]:
    buffer = HostBuffer()
    contents = buffer.begin(engine)
    buffer.finish()
    return contents, bytes(buffer.content)


def checkpoint_of(engine: Any, folder: Path, shapes: dict[str, list[int]] | None = None) -> Checkpoint:
    """Write a checkpoint of one rank; ``shapes`` of the trained parameters, by default all."""
    contents, content = snapshot(engine)
    folder.mkdir()
    (folder / rank_file(0)).write_bytes(content)
    write_json(folder / rank_index(0), RankIndex(contents, len(content), block_digests(content)).to_json())
    shapes = shapes or {name: list(parameter.shape) for name, parameter in engine.module.named_parameters()}
    commit(folder, Manifest(7, 56, 1, 0, shapes, probe=Probe(48, 0.5)))
    return Checkpoint(folder)


def test_everything_is_at_its_offset_in_the_contents() -> None:
    engine = engine_of()
    contents, content = snapshot(engine)
    weight, bias = engine.module.weight, engine.module.bias
    expected = {("weight", "weights"): weight, ("bias", "weights"): bias}
    for name, parameter in (("weight", weight), ("bias", bias)):
        for moment in ("exp_avg", "exp_avg_sq"):
            expected[name, moment] = engine.optimizer.state[parameter][moment]
    found = {}
    for parameter, kind, start, length, offset in contents.fragments:
        assert start == 0
        found[parameter, kind] = np.frombuffer(content, np.float32, length, offset).tolist()
    assert found == {key: tensor.flatten().tolist() for key, tensor in expected.items()}
    (seen,) = contents.replicated
    assert (seen.name, seen.dtype, seen.shape) == ("seen", "int64", [2])
    assert np.frombuffer(content, np.int64, 2, seen.offset).tolist() == [5, 6]
    assert len(content) == 4 * 3 * (6 + 2) + 2 * 8
    assert contents.groups[0].scalars == {"step": 1.0}
    assert (contents.groups[0].hyper["lr"], contents.groups[0].hyper["betas"]) == (0.1, (0.8, 0.9))


def test_buffers_are_copied_first_and_weights_at_the_end() -> None:
    """The next forward pass changes buffers, the next update changes weights."""
    engine, buffer = engine_of(), HostBuffer()
    contents = buffer.begin(engine)
    engine.module.seen += 100
    before = engine.module.bias.tolist()
    buffer.finish()
    with torch.no_grad():
        engine.module.bias += 1
    offset = next(f.offset for f in contents.fragments if (f.parameter, f.kind) == ("bias", "weights"))
    assert np.frombuffer(buffer.content, np.float32, 2, offset).tolist() == before
    assert np.frombuffer(buffer.content, np.int64, 2, contents.replicated[0].offset).tolist() == [5, 6]


def test_the_memory_of_a_copy_is_reused() -> None:
    engine, buffer = engine_of(), HostBuffer()
    addresses = []
    for _ in range(2):
        buffer.begin(engine)
        buffer.finish()
        addresses.append(np.frombuffer(buffer.content, np.uint8).ctypes.data)
    assert addresses[0] == addresses[1]
    assert bytes(buffer.content) == snapshot(engine)[1]
    buffer.begin(engine_of(width=4))
    buffer.finish()
    assert bytes(buffer.content) == snapshot(engine_of(width=4))[1]


def test_state_that_another_rank_saves_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    engine = engine_of()
    own, whole = HostBuffer().begin(engine), HostBuffer().begin(engine, whole=True)
    assert {fragment.parameter for fragment in own.fragments} == {"weight"}
    assert {fragment.parameter for fragment in whole.fragments} == {"weight", "bias"}
    assert own.groups == whole.groups


def test_random_generators_continue_after_a_restore() -> None:
    state = rng_state()
    drawn = random.random(), np.random.random(), torch.rand(2).tolist(), np.random.standard_normal()
    restore_rng(state)
    assert (random.random(), np.random.random(), torch.rand(2).tolist(), np.random.standard_normal()) == drawn


def test_a_restored_state_is_verified(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(engine_of(), tmp_path / "step")
    fresh = engine_of(seed=9, steps=0)
    restore(fresh, checkpoint, 0, 1)
    assert verify_state(fresh, checkpoint, 0, 1)
    assert fresh.lr_scheduler.last_epoch == 7


def engine_with_flags() -> Any:
    """Return an engine of a model with modules in eval mode, frozen parameters and buffers of many types."""
    engine = engine_of()
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3, affine=False), torch.nn.Dropout().eval())
    layers.add_module("given", engine.module)
    frozen = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    layers.register_parameter("frozen", frozen)
    for name, dtype in (
        ("narrow", torch.bfloat16),
        ("wave", torch.complex64),
        ("on", torch.bool),
        ("wide", torch.float64),
    ):
        layers.register_buffer(name, (torch.arange(4) % 2).to(dtype).view(2, 2))
    layers.register_buffer("single", torch.tensor(1.5 + 2j))
    layers.register_buffer("temporary", torch.ones(2), persistent=False)
    engine.module = layers
    return engine


def test_everything_that_no_optimizer_owns_is_restored(tmp_path: Path) -> None:
    engine = engine_with_flags()
    checkpoint = checkpoint_of(engine, tmp_path / "step", {"given.weight": [2, 3], "given.bias": [2]})
    fresh = engine_with_flags()
    for buffer in fresh.module.buffers():
        buffer.zero_()
    fresh.module.frozen.zero_()
    fresh.module[1].train()
    fresh.module[0].eval()
    restore(fresh, checkpoint, 0, 1)
    assert not fresh.module.temporary.any()
    before, after = engine.module.state_dict(), fresh.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in fresh.module.modules()] == [True, True, False, True]  # root first


def test_an_index_of_an_earlier_version_is_read() -> None:
    contents, content = snapshot(engine_of())
    index = RankIndex(contents, len(content), [])
    stored = json.loads(json.dumps(index.to_json()))
    assert RankIndex.from_json(stored).contents.flags == {"evaluating": [], "frozen": []}
    del stored["flags"], stored["missed"]
    assert RankIndex.from_json(stored) == replace(index, contents=replace(contents, flags={}))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """Also one whose tensors could be copied into those of the model."""
    checkpoint = checkpoint_of(engine_of(), tmp_path / "step")
    with pytest.raises(
        CheckpointError, match=r"^step is of another model: bias has the shape \[2\] in it, and has the"
    ):
        restore(engine_of(width=3, steps=0), checkpoint, 0, 1)
    smaller = engine_of(steps=0)
    del smaller.module.seen
    with pytest.raises(CheckpointError, match=r"seen has the shape \[2\] in it, and is missing in the model"):
        restore(smaller, checkpoint, 0, 1)


@pytest.mark.parametrize("what", ["weight", "moment", "buffer"])
def test_a_different_state_is_detected(tmp_path: Path, what: str) -> None:
    engine = engine_of()
    checkpoint = checkpoint_of(engine, tmp_path / "step")
    with torch.no_grad():
        if what == "weight":
            engine.module.weight[0, 0] = torch.nextafter(engine.module.weight[0, 0], torch.tensor(9.0))
        elif what == "moment":
            engine.optimizer.state[engine.module.bias]["exp_avg"][1] *= 2
        else:
            engine.module.seen[0] = 0
    with pytest.raises(ResumeMismatchError, match=r"^step was loaded, but blocks \[0\] of rank 0 differ"):
        verify_state(engine, checkpoint, 0, 1)


@pytest.mark.parametrize(
    ("parameter", "kind", "element", "difference"),
    [
        ("weight", "weights", 0, r"blocks \[0\] of rank 0 .* parts of weight/weights;"),
        ("weight", "exp_avg", 0, r"blocks \[1\] of rank 0 .* parts of weight/exp_avg, weight/weights;"),
        ("bias", "exp_avg_sq", -1, r"blocks \[5\] of rank 0 .* parts of bias/exp_avg_sq;"),
    ],
)
def test_the_error_names_the_parameters_in_a_different_block(
    tmp_path: Path, parameter: str, kind: str, element: int, difference: str
) -> None:
    """A block is 8 MiB; the weight and its moments are 10.8 MB each, the bias and its moments 3.6 MB each."""
    engine = engine_of(width=900_000)
    checkpoint = checkpoint_of(engine, tmp_path / "step")
    assert verify_state(engine, checkpoint, 0, 1)
    tensor = engine.module.get_parameter(parameter)
    state = tensor.data if kind == "weights" else engine.optimizer.state[tensor][kind]
    state.view(-1)[element] += 1
    with pytest.raises(ResumeMismatchError, match=difference):
        verify_state(engine, checkpoint, 0, 1)


def test_another_layout_cannot_be_compared(tmp_path: Path) -> None:
    engine = engine_of()
    checkpoint = checkpoint_of(engine, tmp_path / "step")
    assert not verify_state(engine, checkpoint, 0, 2)
    engine.zero_optimization_stage = lambda: 1
    assert not verify_state(engine, checkpoint, 0, 1)


def test_the_loss_must_be_identical(tmp_path: Path) -> None:
    engine, probe = engine_of(), Probe(48, 0.5)
    checkpoint = checkpoint_of(engine, tmp_path / "step")
    verify_loss(engine, checkpoint, probe, 0.5, 1)
    with pytest.raises(ResumeMismatchError, match=r"0\.5000001 now and was 0\.5 then"):
        verify_loss(engine, checkpoint, probe, 0.5000001, 1)
    verify_loss(engine, checkpoint, probe, 0.5000001, 2)  # another order of summation
    with pytest.raises(ResumeMismatchError, match=r"0\.51 now"):
        verify_loss(engine, checkpoint, probe, 0.51, 2)
    with pytest.raises(ResumeMismatchError, match="nan now"):
        verify_loss(engine, checkpoint, probe, float("nan"), 2)
