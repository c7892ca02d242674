"""A DeepSpeed engine that computes the same result at every world size."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import comm
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.stream.columns import Columns
from torch.nn.utils import get_total_norm

from drivetrain_workers.engine import deepspeed_internals
from drivetrain_workers.engine.backend import backend_of, init_process_group, use_loopback_only
from drivetrain_workers.engine.batching import BatchPlan
from drivetrain_workers.engine.collectives import CollectiveTimer
from drivetrain_workers.engine.deepspeed_config import deepspeed_config, learning_rate_ratio
from drivetrain_workers.engine.late_parameters import LateParameters
from drivetrain_workers.engine.training_data import EvalPart
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.model import check_parameters, checkpoint_activations
from drivetrain_workers.modeling.model_flags import evaluation
from drivetrain_workers.modeling.model_input import ModelInput, to_tensor
from drivetrain_workers.modeling.objective import Objective, Outputs
from drivetrain_workers.spec import TrainingSpec


def _joined(pieces: list[Any]) -> Any:
    """Concatenate pieces of one column."""
    return torch.cat(pieces) if all(map(torch.is_tensor, pieces)) else [value for piece in pieces for value in piece]


def _no_op() -> None:
    """Do nothing before an update."""


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step; the same on every rank.

    Attributes:
        gradient_norm: before clipping; None where the job disables its computation. If it is not finite, nothing was
            updated.
        weights_finite: whether all weights are finite after the update.
        communicated_s: time of this rank in collectives; see `CollectiveTimer`.
    """

    loss: float
    gradient_norm: float | None
    weights_finite: bool
    learning_rate: float
    stop_requested: bool
    save_requested: bool
    busy: bool
    communicated_s: float


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; the same on every rank."""

    loss: float
    metrics: dict[str, float]


def join_group(rank: int, local_rank: int, world_size: int, rendezvous: str) -> torch.device:
    """Initialize torch.distributed and DeepSpeed; return this rank's device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        deepspeed_internals.disable_shared_memory_all_reduce()
    use_loopback_only(rendezvous)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
    backend = backend_of(device)
    init_process_group(backend, rendezvous, rank, world_size)
    deepspeed.init_distributed(dist_backend=backend.name, verbose=False)
    return device


class Engine:
    """DeepSpeed's engine with our batch plan, loss weighting and evaluation.

    Args:
        model: the network; moved to ``device``.
        objective: loss, metrics and predictions of the job.
        spec: training section.
        plan: division of the global batch.
        steps: optimizer steps of the whole run, for the schedule.
        seed: seed of the job.
        classes: names of the labels.

    Attributes:
        objective: as given.
        before_update: called before the optimizer changes weights and moments.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        spec: TrainingSpec,
        plan: BatchPlan,
        steps: int,
        device: torch.device,
        seed: int = 0,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.before_update: Callable[[], None] = _no_op
        self.objective, self._plan, self._device = objective, plan, device
        self._steps, self._seed, self._classes = steps, seed, classes
        check_parameters(model, spec.precision)
        if spec.activation_checkpointing:
            checkpoint_activations(model)
        self._late_parameters = LateParameters(model, spec.optimizer.type)
        self._weights: list[torch.Tensor] | None = None
        self._rank = dist.get_rank()
        ratio = learning_rate_ratio(spec.lr_schedule, steps)
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            config=deepspeed_config(spec, plan, device.type == "cpu"),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, ratio),
        )
        deepspeed_internals.skip_non_finite_updates(self.deepspeed)
        self._late_parameters.uneven = deepspeed_internals.add_missing_gradients(self.deepspeed)
        self._collectives = CollectiveTimer(deepspeed_internals.communication_backend())
        if spec.compile:
            self.deepspeed.compile(backend=spec.compile)

    def step(
        self,
        columns: Columns,
        position: int,
        stop_requested: bool = False,
        save_requested: bool = False,
        busy: bool = False,
    ) -> StepResult:
        """Run one optimizer step on this rank's rows of a global batch.

        DeepSpeed averages gradients over micro-batches and ranks as if all were equally large. Therefore each
        micro-batch's mean loss is weighted by its share of the global batch (in rows, tokens, or what the job counts),
        times the number of micro-batches that the average divides by. The sum is then the mean over the global batch,
        independent of the division of its rows.

        Args:
            position: position of the global batch in the stream of samples.
        """
        engine, plan = self.deepspeed, self._plan
        self._collectives.take()  # discard the time before this step
        deepspeed_internals.clear_gradients(engine)
        parts = plan.accumulation * plan.world_size
        start = position + plan.rows(self._rank).start
        micro_batches = plan.micro_batches(self._rank)
        weights = [self._weigh(columns, rows, start, training=True) for rows in micro_batches]
        whole = torch.tensor(sum(weights), dtype=torch.float64, device=self._device)
        comm.all_reduce(whole)
        total, missing = torch.zeros((), device=self._device), 0
        learning_rate = float(engine.optimizer.param_groups[0]["lr"])
        for rows, weight in zip(micro_batches, weights, strict=True):
            share = weight / max(float(whole), 1.0)
            context = self._context(rows, start, training=True)
            self._late_parameters.counting = weight > 0
            loss = self.objective.loss(engine, self._batch(columns, rows), context) * share
            engine.backward(loss * parts)
            if engine.is_gradient_accumulation_boundary():
                self.before_update()
                missing = self._late_parameters.hold(engine)
            engine.step()
            total += loss.detach()
        # One small collective carries the loss, the requests and the problems of all ranks, so all act on them after
        # the same step.
        flags = torch.tensor([stop_requested, save_requested, busy, missing > 0]).to(self._device, torch.float32)
        report = torch.cat([total.view(1), flags, self._non_finite_weights()])
        comm.all_reduce(report)
        mean_loss, *counts = report.tolist()
        stop, save, any_busy, any_missing, broken = (count > 0 for count in counts)
        applied = engine.was_step_applied()
        self._late_parameters.settle(engine, self._device, any_missing, applied)
        if not applied:
            engine.lr_scheduler.step()  # the schedule is a function of the step
        norm = deepspeed_internals.gradient_norm(engine)
        communicated_s = self._collectives.take()
        return StepResult(mean_loss, norm, not broken, learning_rate, stop, save, any_busy, communicated_s)

    def _non_finite_weights(self) -> torch.Tensor:
        """Return ``[1]``: 1 where a weight of this rank's part is not finite; without waiting for the device."""
        if self._weights is None:
            self._weights = deepspeed_internals.own_weights(self.deepspeed)
        if not self._weights:
            return torch.zeros(1, device=self._device)
        if self._weights[0].is_cuda:
            extremes = get_total_norm(self._weights, math.inf)  # few kernels for many weights
        else:  # where this norm takes twenty times as long
            extremes = torch.stack([extreme for weights in self._weights for extreme in torch.aminmax(weights)])
        return (~extremes.isfinite()).any().float().view(1).to(self._device)

    def evaluate(self, part: EvalPart, metrics: bool = True) -> Evaluation:
        """Compute the mean loss and metrics over all rows; exact, no row padded or dropped.

        Every rank makes the same number of forward passes, because ZeRO-3 communicates in each. The modes of the model
        and the random generators are the same afterwards.
        """
        with evaluation(self.deepspeed.module, self._device):
            sums = self._sums(part, metrics)
        self._check_names(list(sums))
        table = torch.stack([sums[name] for name in sorted(sums)])
        dist.all_reduce(table)
        means = {name: float(total / count) for name, (total, count) in zip(sorted(sums), table, strict=True)}
        return Evaluation(means.pop(""), means)

    def _sums(self, part: EvalPart, metrics: bool) -> dict[str, torch.Tensor]:
        """Return total and count of the loss (without a name) and of each metric over this rank's rows."""
        engine, micro = self.deepspeed, self._plan.micro_batch
        largest_share = -(-part.total_rows // self._plan.world_size)
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, largest_share, micro):
            rows = slice(min(start, part.rows), min(start + micro, part.rows))
            own = rows.stop > rows.start
            batch, context = self._batch(part.columns, rows), self._context(rows, part.start, training=False)
            weight = self._weigh(part.columns, rows, part.start, training=False)
            loss = self.objective.loss(engine, batch, context)
            # A micro-batch without tokens may have a loss of NaN, and must not count.
            found = {"": (float(loss) * weight if weight else 0.0, weight)}
            if metrics:
                context = self._context(rows, part.start, training=False)
                found |= self.objective.metrics(engine, batch, weight, context)
            for name, pair in found.items():
                zero = torch.zeros(2, dtype=torch.float64, device=self._device)
                sums.setdefault(name, zero)
                if own:  # the result for a padding row may be NaN, and so would be 0 times it
                    sums[name] += torch.tensor(pair, dtype=torch.float64, device=self._device)
        return sums

    def _check_names(self, names: list[str]) -> None:
        """Raise `InputError` when metrics have other names on another rank: their sums would be wrong."""
        names_by_rank: list[list[str]] = [[]] * self._plan.world_size
        dist.all_gather_object(names_by_rank, sorted(names))
        different = next((there for there in names_by_rank if there != names_by_rank[0]), None)
        if different:
            given = (
                f"a function that returned {names_by_rank[0]} for one part of the samples and {different} for another"
            )
            raise InputError("model.metrics", given, "the same names for every batch")

    def predict(self, part: EvalPart, max_rows: int) -> Outputs:
        """Return the job's predictions for the first rows of every rank's part; by name, a value for every row."""
        micro, limit = self._plan.micro_batch, min(max_rows, part.rows)
        pieces = []
        with evaluation(self.deepspeed.module, self._device):
            for start in range(0, min(max_rows, -(-part.total_rows // self._plan.world_size)), micro):
                rows = slice(min(start, limit), min(start + micro, limit))
                batch, context = self._batch(part.columns, rows), self._context(rows, part.start, training=False)
                predicted = self.objective.predict(self.deepspeed, batch, context)
                if rows.stop > rows.start:
                    pieces.append(predicted)
        return {name: _joined([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else {})}

    def _weigh(self, columns: Columns, rows: slice, start: int, training: bool) -> float:
        if rows.stop == rows.start or self.objective.weighs_rows:
            return float(rows.stop - rows.start)
        return self.objective.weight(self._batch(columns, rows), self._context(rows, start, training))

    def _context(self, rows: slice, start: int, training: bool) -> TrainContext:
        """Return the context of a call with some of this rank's rows, the first of which has the position ``start``."""
        positions = torch.arange(start + rows.start, start + max(rows.start + 1, rows.stop), device=self._device)
        step, world_size = int(self.deepspeed.global_steps), self._plan.world_size
        return TrainContext(step, self._steps, training, self._rank, world_size, self._seed, positions, self._classes)

    def _batch(self, columns: Columns, rows: slice) -> dict[str, ModelInput]:
        """Return rows as tensors on the device; without any, one padding row that does not count."""
        if rows.start == rows.stop:
            rows = slice(0, 1)
        return {name: to_tensor(values[rows], self._device) for name, values in columns.items()}
