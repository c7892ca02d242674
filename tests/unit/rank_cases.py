"""Whole ranks in the tests, from the folder of a run to its last checkpoint; see `tests.unit.gang`."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_workers.protocol.events import AgentEvent, ProblemFound, StepDone
from drivetrain_workers.protocol.messages import Endpoint, Generation, RankTask
from drivetrain_workers.rank.failures import explain
from drivetrain_workers.rank.main import train
from drivetrain_workers.records.run_folder import RunFolder

from tests.unit.gang import Member

_CODE = '''
import os
import torch
from torch import nn


class Frozen(nn.Module):
    """A part that the author has set to eval mode."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.backbone.requires_grad_(False).eval()
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.backbone(x))


def frozen():
    return Frozen()


def dropout():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def pretrained():
    return dropout().eval()


def loss(model, batch):
    return (model(batch["x"]).squeeze(-1) - batch["y"][:, 0]).pow(2).mean()


def metrics(model, batch):
    return {"noise": torch.rand(1)}


def bad_gradient(model, batch, context):
    """Return a finite loss whose gradient is NaN for the batch of the fourth step."""
    outputs = model(batch["x"]).squeeze(-1)
    found = (outputs - batch["y"][:, 0]).pow(2).mean()
    bad = context.training and bool((context.positions // 8 == 3).any()) and context.rank == 1
    return found + (0 * outputs.sum()).abs().sqrt() if bad else found
'''


def make_run(folder: Path, model: dict[str, Any], **sections: dict[str, Any]) -> dict[str, str]:
    """Make the folder of a run with a dataset of 64 rows; return the fields of `RankTask` that name them."""
    run, data = RunFolder(folder / "toy-run"), StorageFolder(str(folder / "data"))
    run.code.mkdir(parents=True)
    (run.code / "ranked_code.py").write_text(_CODE)
    job = {
        "seed": 3,
        "data": {"source": "rows.jsonl", "columns": ["x", "y"]},
        "model": {"loss": "ranked_code:loss", **model},
        "training": {"steps": 6, "global_batch_size": 8, **sections.get("training", {})},
        "checkpoint": sections.get("checkpoint", {"every": 2, "keep": 9}),
    }
    run.job_resolved.write_text(json.dumps(job))
    draw = np.random.default_rng(0)
    x = pa.FixedSizeListArray.from_arrays(pa.array(draw.standard_normal(256), pa.float32()), 4)
    encoded = encode_shard(pa.record_batch({"x": x, "y": pa.array(draw.standard_normal(64), pa.float32())}))
    data.write("0.arrow", encoded)
    shard = Shard("0.arrow", 64, encoded.size, block_digests(memoryview(encoded)))
    schema = pa.ipc.open_file(encoded).schema
    Manifest("toy", "v1", schema, {"train": [shard], "eval": [shard]}, {}, {}, []).write(data)
    return {"run_folder": str(run.path), "dataset_folder": data.location}


@dataclass
class _Agent:
    """Takes the events of a rank, in place of its agent; requests a stop after a step, if one is given."""

    stop_after: int | None
    events: list[AgentEvent] = field(default_factory=list)
    stop_requested: threading.Event = field(default_factory=threading.Event)

    def report(self, event: AgentEvent) -> None:
        self.events.append(event)

    def enter(self, phase: str, step: int) -> None:
        if self.stop_after is not None and phase == "step" and step == self.stop_after - 1:
            self.stop_requested.set()


def train_rank(member: Member, case: dict[str, Any]) -> dict[str, Any]:
    """Train one generation of a run; return losses by step, problems, and the failure."""
    agent = _Agent(case.get("stop_after"))
    generation = Generation(case["generation"], member.world_size, member.rendezvous)
    task = RankTask(
        Endpoint("", ""), member.rank, member.rank, member.world_size, generation, memory_folder="", **case["folders"]
    )
    failure = None
    try:
        train(task, agent)  # type: ignore[arg-type]  # the part of a link that a rank uses
    except Exception as error:
        reason, message = explain(task, error)
        failure = [reason.value, message]
    records = [event.record for event in agent.events if isinstance(event, StepDone)]
    problems = [event.message for event in agent.events if isinstance(event, ProblemFound)]
    losses = {str(record.step): record.loss for record in records}
    return {"losses": losses, "problems": problems, "failure": failure, "norms": [r.gradient_norm for r in records]}
