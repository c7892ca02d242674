"""What ranks do in the tests of the engine; see `tests.unit.gang`."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.checkpoints.load import Checkpoint, restore
from drivetrain_workers.checkpoints.proof import verify_state
from drivetrain_workers.checkpoints.save import CheckpointWriter, SavePoint
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.engine import Engine
from drivetrain_workers.engine.training_data import EvalPart
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.objective import Objective, row_weight
from drivetrain_workers.protocol.events import RankId
from drivetrain_workers.rank.guards import LossGuard
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import GuardSpec, KeepSpec, OptimizerSpec, ScheduleSpec, TrainingSpec
from torch import nn

from tests.unit.gang import Member

GLOBAL_BATCH, STEPS, BAD = 8, 20, 3
Batch = dict[str, torch.Tensor]


class Parts(nn.Module):
    """Parts that get a gradient always, from step 4 on, until step 6, in every third step, never, or from some rows.

    Args:
        uneven: the first rows use another part than the last ones, and therefore the first rank another than the last.
    """

    def __init__(self, uneven: bool) -> None:
        super().__init__()
        self.uneven = uneven
        self.never = nn.Linear(3, 2)
        self.always = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.late = nn.Linear(3, 2)
        self.sometimes = nn.Linear(3, 2)
        self.first_rows, self.last_rows = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.frozen_later = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: torch.Tensor, last: torch.Tensor, step: int) -> torch.Tensor:
        """Return ``[rows, 2]``."""
        x = x.to(self.scale.dtype)
        self.frozen_later.requires_grad_(step < 6)
        found = self.always(x) * self.scale + self.frozen_later(x)
        if step >= 4:
            found = found + self.late(x)
        if step % 3 == 1:
            found = found + self.sometimes(x)
        for part, rows in ((self.first_rows, 1 - last), (self.last_rows, last)):
            if rows.any() and self.uneven and step % 2:
                found = found + rows[:, None] * part(x)
        return found


def parts(uneven: bool) -> Parts:
    """Return the model; the same on every rank."""
    torch.manual_seed(5)
    return Parts(uneven)


def batch_of(step: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return a global batch; its second half is ``last``."""
    draw = np.random.default_rng(step)
    x, y = draw.standard_normal((GLOBAL_BATCH, 3)), draw.standard_normal((GLOBAL_BATCH, 2))
    last = np.arange(GLOBAL_BATCH) >= GLOBAL_BATCH // 2
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "last": last.astype(np.float32)}


def parts_loss(model: nn.Module, batch: Batch, context: TrainContext) -> torch.Tensor:
    """Return the mean squared error."""
    return (model(batch["x"], batch["last"], context.step).float() - batch["y"]).pow(2).mean()


def engine_of(member: Member, model: nn.Module, objective: Objective, **settings: Any) -> Engine:
    """Return an engine with micro-batches of two rows, and without a schedule by default."""
    ordinary = {"steps": STEPS, "global_batch_size": GLOBAL_BATCH, "schedule": ScheduleSpec(type="constant")}
    spec = TrainingSpec(**{**ordinary, **settings})
    return Engine(model, objective, spec, solve(GLOBAL_BATCH, 2, member.world_size), STEPS, member.device)


def run_steps(engine: Engine, steps: range) -> list[Any]:
    """Train on this rank's rows; return the results of the steps."""
    rows = solve(GLOBAL_BATCH, 2, dist.get_world_size()).rows(dist.get_rank())
    batches = ((step, batch_of(step)) for step in steps)
    return [
        engine.step({name: values[rows] for name, values in batch.items()}, GLOBAL_BATCH * step)
        for step, batch in batches
    ]


def weights_of(engine: Engine) -> dict[str, list[float]]:
    """Return all weights, also those that ZeRO 3 has partitioned."""
    module = engine.deepspeed.module
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return {name: parameter.detach().float().flatten().tolist() for name, parameter in module.named_parameters()}


def save(engine: Engine, member: Member, folder: str, step: int) -> None:
    """Save a checkpoint."""
    writer = CheckpointWriter(
        RunFolder(Path(folder)), RankId(member.rank, 1), member.world_size, KeepSpec(), lambda _: None, 0.0
    )
    writer.save(engine.deepspeed, SavePoint(step, GLOBAL_BATCH * step))
    writer.wait()
    dist.barrier()


def load(engine: Engine, member: Member, folder: str) -> int:
    """Load and verify the newest checkpoint; return its step."""
    root = RunFolder(Path(folder)).checkpoints
    checkpoint = Checkpoint(committed(root)[0].folder(root))
    restore(engine.deepspeed, checkpoint, member.rank, member.world_size)
    verify_state(engine.deepspeed, checkpoint, member.rank, member.world_size)
    dist.barrier()
    return checkpoint.step


def optimize(member: Member, case: dict[str, Any]) -> dict[str, Any]:
    """Train with an optimizer; return weights and losses. With ``save``, half of the steps, then a checkpoint.

    An invalid input is returned as ``refused``.
    """
    settings = {"optimizer": OptimizerSpec(**case["optimizer"]), "gradient_clipping": case["clipping"]}
    model, objective = parts(case["uneven"]), Objective(parts_loss, row_weight)
    engine = engine_of(member, model, objective, zero_stage=case["stage"], **settings)
    first = load(engine, member, case["load"]) if "load" in case else 0
    last = STEPS // 2 if "save" in case else STEPS
    try:
        losses = [result.loss for result in run_steps(engine, range(first, last))]
    except InputError as error:
        return {"refused": str(error)}
    if "save" in case:
        save(engine, member, case["save"], last)
    return {"weights": weights_of(engine), "losses": losses}


def bad_step(member: Member, case: dict[str, Any]) -> dict[str, Any]:
    """Train with one bad step, on one rank or all; return what every rank sees, and the weights around it."""
    kind, on_this_rank = case["kind"], case["rank"] in (None, member.rank)
    weight_overflows = kind == "weight"

    def loss(model: nn.Module, batch: Batch, context: TrainContext) -> torch.Tensor:
        outputs = model(batch["x"].to(model.module[0].weight.dtype)).float()
        error = (outputs - batch["y"]).pow(2).mean()
        bad = context.step == BAD and on_this_rank
        if weight_overflows:
            return error * (1e10 if bad else 1e-32)  # times a learning rate of 1e30
        if bad and kind == "loss":
            return error * math.nan
        # Its value is 0, and its gradient is 0 times infinity.
        return error + (0 * outputs.sum()).abs().sqrt() if bad else error

    optimizer = OptimizerSpec(type="SGD", lr=1e30 if weight_overflows else 0.01, momentum=0.0, weight_decay=0.0)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    settings = {name: case[name] for name in ("zero_stage", "precision", "gradient_clipping")}
    schedule = ScheduleSpec(type="linear", warmup_steps=2)
    objective = Objective(loss, row_weight)
    engine = engine_of(member, model, objective, **settings, optimizer=optimizer, schedule=schedule)
    guard = LossGuard(GuardSpec(), [])
    before = run_steps(engine, range(BAD))
    weights = weights_of(engine)
    (bad,) = run_steps(engine, range(BAD, BAD + 1))
    unchanged = weights_of(engine) == weights
    (after,) = run_steps(engine, range(BAD + 1, BAD + 2))
    results = [*before, bad, after]
    alarms = [guard.check(result.loss, result.gradient_norm, result.weights_finite) for result in results]
    return {
        "alarms": [alarm and [alarm.kind, alarm.fatal] for alarm in alarms],
        "norms": [result.gradient_norm for result in results],
        "learning_rates": [result.learning_rate for result in results],
        "unchanged": unchanged,
    }


def first_norm(member: Member, case: dict[str, Any]) -> list[float | None]:
    """Return the gradient norms of two steps."""
    objective = Objective(parts_loss, row_weight)
    return [result.gradient_norm for result in run_steps(engine_of(member, parts(False), objective, **case), range(2))]


class Tree(nn.Module):
    """A tree of layers, each in its own mode.

    Args:
        plan: kind of the layer, whether it is in training mode, and children.
    """

    def __init__(self, plan: list[Any]) -> None:
        super().__init__()
        kind, training, children = plan
        layers = {"linear": nn.Linear(2, 2), "dropout": nn.Dropout(0.5), "norm": nn.BatchNorm1d(2)}
        self.layer, self.children_ = layers[kind], nn.ModuleList(Tree(child) for child in children)
        self.train(training)
        for child, (_, mode, _) in zip(self.children_, children, strict=True):
            child.training = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[rows, 2]``."""
        x = self.layer(x)
        for child in self.children_:
            x = x + child(x)
        return x


def tree_of(plan: list[Any]) -> nn.Sequential:
    """Return a model in training mode with a tree in it."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 2), Tree(plan))


def modes_of(model: nn.Module) -> list[bool]:
    """Return the mode of every module."""
    return [module.training for module in model.modules()]


def buffers_of(model: nn.Module) -> list[list[float]]:
    """Return all buffers."""
    return [buffer.flatten().tolist() for buffer in model.buffers()]


def keep_modes(member: Member, case: dict[str, Any]) -> dict[str, bool]:
    """Evaluate, predict, save and resume a model with modules in any mode; return what has not changed."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return (model(batch["x"]) - batch["y"]).pow(2).mean()

    def metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
        every = [module.training for module in model.module.modules()]
        noise = float(torch.rand(1)) + float(np.random.random()) + random.random()
        return {"training": float(any(every)), "noise": noise}

    def predict(model: nn.Module, batch: Batch) -> dict[str, Any]:
        model.module[1].train()  # a function that changes what it should not
        random.random()
        torch.rand(3)
        return {"y": model(batch["x"])[:, 0]}

    objective = Objective(loss, row_weight, metrics, predict)
    model = tree_of(case["plan"])
    engine = engine_of(member, model, objective, zero_stage=case["stage"])
    modes, kept = modes_of(model), {}
    run_steps(engine, range(1))
    part = EvalPart(batch_of(7), GLOBAL_BATCH, GLOBAL_BATCH * member.world_size, GLOBAL_BATCH * member.rank)
    buffers, generators = buffers_of(model), (torch.get_rng_state().tolist(), random.getstate())
    evaluation = engine.evaluate(part)
    kept["evaluated in eval mode"] = evaluation.metrics["training"] == 0.0
    kept["evaluate"] = modes_of(model) == modes
    kept["buffers"] = buffers_of(model) == buffers
    engine.predict(part, 4)
    kept["predict"] = modes_of(model) == modes
    kept["generators"] = (torch.get_rng_state().tolist(), random.getstate()) == generators
    kept["gradients"] = torch.is_grad_enabled()
    model[1].layer.training = not model[1].layer.training  # as code of a job may do in a later step
    modes = modes_of(model)
    save(engine, member, case["folder"], 1)
    expected = run_steps(engine, range(1, 3))[-1].loss
    fresh = tree_of(case["plan"])
    again = engine_of(member, fresh, objective, zero_stage=case["stage"])
    load(again, member, case["folder"])
    kept["resume"] = modes_of(fresh) == modes
    kept["same loss"] = run_steps(again, range(1, 3))[-1].loss == expected
    return kept
