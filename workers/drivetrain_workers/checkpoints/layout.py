"""Where the optimizer's flat state lies in a rank's memory, for every ZeRO stage.

DeepSpeed keeps fp32 master weights and optimizer moments in flat buffers, each rank its own part. `flat_states` finds
those buffers and says which piece of which parameter lies where in them. That is all that a checkpoint needs to know
about ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import InputError

WEIGHTS = "weights"  # the kind of a fragment that holds fp32 weights; other kinds are optimizer moments, by name


@dataclass(frozen=True)
class Span:
    """``length`` elements of ``parameter`` from ``start`` on lie at element ``at`` of a flat buffer."""

    parameter: str
    start: int
    length: int
    at: int

    @property
    def end(self) -> int:
        """Element of the buffer after its last."""
        return self.at + self.length


@dataclass
class FlatState:
    """A flat buffer of fp32 weights with the optimizer's state for it.

    Attributes:
        weights: the live buffer itself; flat, or a whole parameter under ZeRO 0.
        optimizer: the optimizer's own state dict for that buffer: moments of the same shape, and scalars.
        group: the optimizer's parameter group, with its hyper-parameters.
        group_index: index of that group.
        saved_here: False where another rank saves the same (replicated) buffer.
    """

    weights: torch.Tensor
    optimizer: dict[str, Any]
    group: dict[str, Any]
    group_index: int
    spans: list[Span] = field(default_factory=list)
    saved_here: bool = True

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(kind, 1-D view) of the weights and every moment."""
        yield WEIGHTS, self.weights.view(-1)
        for name in sorted(self.optimizer):
            value = self.optimizer[name]
            if torch.is_tensor(value) and value.shape == self.weights.shape and value.dim() > 0:
                yield name, value.view(-1)

    def runs(self) -> Iterator[tuple[int, int, list[Span]]]:
        """(begin, end, spans) of the stretches that spans fill without a gap.

        Between them DeepSpeed pads, with memory that it never writes: its content is chance and must not be saved.
        """
        run: list[Span] = []
        for span in self.spans:
            if run and span.at != run[-1].end:
                yield run[0].at, run[-1].end, run
                run = []
            run.append(span)
        if run:
            yield run[0].at, run[-1].end, run

    def scalars(self) -> dict[str, float]:
        """The optimizer's counters, such as ``step``, which torch keeps as tensors without dimensions."""
        return {k: float(v) for k, v in self.optimizer.items() if torch.is_tensor(v) and v.dim() == 0}

    def create(self, moments: set[str], scalars: dict[str, float]) -> None:
        """Make the entries that an optimizer makes in its first step, and set its counters."""
        for name in moments - self.optimizer.keys():
            self.optimizer[name] = torch.zeros_like(self.weights)
        for name, value in scalars.items():
            self.optimizer[name] = torch.tensor(value)


def flat_states(engine: Any) -> list[FlatState]:
    """All flat buffers of this rank, in DeepSpeed's order."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _replicated(engine)
    return _partitioned_in_two(engine) if stage < 3 else _partitioned_in_three(engine)


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Full shape of every trained parameter, also where ZeRO-3 has partitioned it."""
    named = engine.module.named_parameters()
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named if p.requires_grad}


def replicated_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """What the optimizer does not own: persistent buffers, and parameters that are not trained.

    Raises:
        InputError: frozen parameters under ZeRO-3, which partitions them where no optimizer state tells us how.
    """
    module = engine.module
    kept = set(module.state_dict(keep_vars=True)) if engine.zero_optimization_stage() < 3 else None
    tensors = {name: b for name, b in module.named_buffers() if kept is None or name in kept}
    frozen = {name: p.data for name, p in module.named_parameters() if not p.requires_grad}
    if frozen and engine.zero_optimization_stage() == 3:
        raise InputError("training.zero", f"3 with frozen parameters ({next(iter(frozen))})", "0, 1 or 2")
    return {**tensors, **frozen}


def _replicated(engine: Any) -> list[FlatState]:
    """ZeRO 0: every rank holds every parameter; the ranks share the work of saving them."""
    names = {p: name for name, p in engine.module.named_parameters()}
    optimizer, rank, world = engine.optimizer, dist.get_rank(), dist.get_world_size()
    states: list[FlatState] = []
    for group_index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            span = Span(names[parameter], 0, parameter.numel(), 0)
            saved_here = len(states) % world == rank
            state = optimizer.state[parameter]
            states.append(FlatState(parameter.data, state, group, group_index, [span], saved_here))
    return states


def _partitioned_in_two(engine: Any) -> list[FlatState]:
    """ZeRO 1 and 2: one flat fp32 partition per parameter group."""
    zero, base = engine.optimizer, engine.optimizer.optimizer
    states = []
    for index, parameters in enumerate(zero.bit16_groups):
        weights = zero.single_partition_of_fp32_groups[index]
        state = FlatState(weights.data, base.state[weights], base.param_groups[index], index)
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:  # None: no part of it lies on this rank
                at = mapping.hp_fragment_address
                start = mapping.lp_fragment_address.start
                state.spans.append(Span(zero.param_names[parameter], start, at.numel, at.start))
        states.append(state)
    return states


def _partitioned_in_three(engine: Any) -> list[FlatState]:
    """ZeRO 3: every parameter is cut into equal padded parts, one a rank, laid end to end in sub-groups."""
    zero, base = engine.optimizer, engine.optimizer.optimizer
    rank = dist.get_rank(group=zero.dp_process_group)
    states = []
    for index, parameters in enumerate(zero.fp16_groups):
        weights = zero.fp32_partitioned_groups_flat[index]
        group_index = zero.sub_group_to_group_id[index]
        state = FlatState(weights.data, base.state[weights], base.param_groups[group_index], group_index)
        at = 0
        for parameter in parameters:
            part = parameter.partition_numel()
            length = max(0, min(part, parameter.ds_numel - rank * part))
            if length:
                state.spans.append(Span(zero.param_names[parameter], rank * part, length, at))
            at += part
        states.append(state)
    return states


def publish_weights(engine: Any) -> None:
    """After the fp32 buffers were overwritten: bring the weights that the model computes with in line with them."""
    stage = engine.zero_optimization_stage()
    zero = engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        for index, master in enumerate(zero.fp32_partitioned_groups_flat):
            computed = zero.fp16_partitioned_groups_flat[index]
            if master.numel():
                computed.data.copy_(master.data)
            for parameter, part in zip(
                zero.fp16_partitioned_groups[index],
                zero.unflatten(computed, zero.fp16_partitioned_groups[index]),
                strict=True,
            ):
                parameter.data = part.data
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.checkpoint_event_epilogue()


def before_overwriting(engine: Any) -> None:
    """Let ZeRO-3 give up gathered copies before its partitions change underneath them."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()
