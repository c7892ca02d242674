"""All uses of DeepSpeed beyond its public API. No other module may use it.

DeepSpeed keeps fp32 master weights and optimizer moments in flat buffers, partitioned over the ranks. `flat_states`
returns those buffers with the position of every piece of every parameter. A checkpoint needs to know no more about
ZeRO than that.

Written for and tested with DeepSpeed 0.19. A private name may change with any minor release, so
`pyproject.toml` bounds DeepSpeed's version from above; check each function here before raising that bound.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import InputError
from torch.nn.utils import get_total_norm

from drivetrain_workers.engine.flat_state import FlatState, Span
from drivetrain_workers.modeling.model import persistent_buffers


def disable_shared_memory_all_reduce() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, which takes 35 s and a compiler.

    All traffic then uses the backend of torch.distributed.
    """
    import deepspeed  # imported here: readers of checkpoints do not need it

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def communication_backend() -> Any:
    """Return the backend that carries all traffic of this process's engines."""
    from deepspeed import comm  # imported here, as above

    return comm.comm.cdb


def parameter_count(model: torch.nn.Module) -> int:
    """Return the number of weights of a model, also where ZeRO-3 has partitioned them."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def flat_states(engine: Any) -> list[FlatState]:
    """Return all flat buffers of this rank, in DeepSpeed's order."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _zero_0_states(engine)
    return _zero_1_and_2_states(engine) if stage < 3 else _zero_3_states(engine)


def skip_non_finite_updates(engine: Any) -> None:
    """Make ZeRO 0 compute the norm of the gradient, and skip an update with one that is not finite.

    The other stages do so themselves. An optimizer of torch does not change a parameter without a gradient.
    """
    if engine.zero_optimization_stage() > 0:
        return
    from deepspeed.runtime.utils import clip_grad_norm_  # imported here, as above

    optimizer = engine.optimizer

    def clip() -> None:
        optimizer._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    def skip(*_: Any) -> None:
        if engine.gradient_clipping() == 0:
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            optimizer._global_grad_norm = get_total_norm(gradients)
        optimizer.overflow = not math.isfinite(optimizer._global_grad_norm)
        if optimizer.overflow:
            engine.zero_grad()

    engine.clip_fp32_gradients = clip
    optimizer.register_step_pre_hook(skip)


def add_missing_gradients(engine: Any) -> bool:
    """Make ZeRO 1 reduce a gradient of zero where a rank has none, as ZeRO 0 does.

    Otherwise it sums whatever gradients the ranks have, in order, even if they are of different parameters.

    Returns:
        Whether parameters may have a gradient on some ranks only. ZeRO 2 and 3 reduce during the backward pass.
    """
    if engine.zero_optimization_stage() == 0:
        return True
    zero = engine.optimizer
    if engine.zero_optimization_stage() > 1 or zero.overlap_comm:
        return False
    reduce_gradients = zero.reduce_gradients

    def reduce_all(**options: Any) -> None:
        for parameter in (parameter for group in zero.bit16_groups for parameter in group):
            if zero.get_gradient_for_reduction(parameter) is None:
                parameter.grad = torch.zeros_like(parameter)
                if zero.use_grad_accum_attribute:
                    zero._fill_param_grad_accum_attribute(parameter)
        reduce_gradients(**options)

    zero.reduce_gradients = reduce_all
    return True


def clear_gradients(engine: Any) -> None:
    """Make ZeRO 3 forget the gradient of the previous step, which it uses again for a parameter without a new one."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.grad_partitions_flat_buffer.zero_()


def gradient_norm(engine: Any) -> float | None:
    """Return the norm of the newest gradient before clipping; None where the job disables its computation."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def own_weights(engine: Any) -> list[torch.Tensor]:
    """Return views of the fp32 weights that this rank saves; all ranks together have all."""
    states = [state for state in flat_states(engine) if state.saved_here]
    views = [state.weights.view(-1)[begin:end] for state in states for begin, end, _ in state.runs()]
    return [view for view in views if view.numel()]  # empty while they are on disk


def missed_updates(engine: Any) -> dict[str, int]:
    """Return the numbers of updates that parameters have missed for lack of a gradient. Changes are kept."""
    missed: dict[str, int] = vars(engine).setdefault("missed_updates", {})
    return missed


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Return the full shape of every trained parameter, also where ZeRO-3 has partitioned it."""
    trained = _trained(engine)
    named = engine.module.named_parameters()
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named if p in trained}


def replicated_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that the optimizer does not own: persistent buffers, and frozen parameters.

    Raises:
        InputError: frozen parameters under ZeRO-3, whose partitions have no optimizer state that describes them.
    """
    module, trained = engine.module, _trained(engine)
    frozen = {name: p.data for name, p in module.named_parameters() if p not in trained}
    if frozen and engine.zero_optimization_stage() == 3:
        raise InputError("training.zero_stage", f"3 with frozen parameters ({next(iter(frozen))})", "0, 1 or 2")
    return {**persistent_buffers(module), **frozen}


def _trained(engine: Any) -> set[torch.nn.Parameter]:
    """Return the parameters that the optimizer owns, whether they need a gradient at present or not."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return {parameter for group in optimizer.param_groups for parameter in group["params"]}
    groups = optimizer.bit16_groups if stage < 3 else optimizer.fp16_groups
    return {parameter for group in groups for parameter in group}


def publish_weights(engine: Any) -> None:
    """Update the weights that the model computes with, after the fp32 buffers were overwritten."""
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
    """Make ZeRO-3 release gathered copies before its partitions change."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()


def _zero_0_states(engine: Any) -> list[FlatState]:
    """Return the buffers of ZeRO 0: every rank has every parameter; the ranks divide the work of saving them."""
    names = {p: name for name, p in engine.module.named_parameters()}
    optimizer, rank, world = engine.optimizer, dist.get_rank(), dist.get_world_size()
    in_tensors = _counts_in_tensors(optimizer)
    states: list[FlatState] = []
    for group_index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            span = Span(names[parameter], 0, parameter.numel(), 0)
            saved_here = len(states) % world == rank
            state = optimizer.state[parameter]
            missed = missed_updates(engine).get(span.parameter, 0) if in_tensors else 0
            states.append(FlatState(parameter.data, state, group, group_index, [span], saved_here, missed, in_tensors))
    return states


def _zero_1_and_2_states(engine: Any) -> list[FlatState]:
    """Return the buffers of ZeRO 1 and 2: one flat fp32 partition per parameter group."""
    zero, base = engine.optimizer, engine.optimizer.optimizer
    states = []
    for index, parameters in enumerate(zero.bit16_groups):
        weights = zero.single_partition_of_fp32_groups[index]
        state = FlatState(weights.data, base.state[weights], base.param_groups[index], index)
        state.tensor_counters = _counts_in_tensors(base)
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:  # None: no part of it is on this rank
                at = mapping.hp_fragment_address
                start = mapping.lp_fragment_address.start
                state.spans.append(Span(zero.param_names[parameter], start, at.numel, at.start))
        states.append(state)
    return states


def _zero_3_states(engine: Any) -> list[FlatState]:
    """Return the buffers of ZeRO 3: every parameter is divided into equal padded parts, one per rank, in sub-groups."""
    zero, base = engine.optimizer, engine.optimizer.optimizer
    rank = dist.get_rank(group=zero.dp_process_group)
    states = []
    for index, parameters in enumerate(zero.fp16_groups):
        weights = zero.fp32_partitioned_groups_flat[index]
        group_index = zero.sub_group_to_group_id[index]
        state = FlatState(weights.data, base.state[weights], base.param_groups[group_index], group_index)
        state.tensor_counters = _counts_in_tensors(base)
        at = 0
        for parameter in parameters:
            part = parameter.partition_numel()
            length = max(0, min(part, parameter.ds_numel - rank * part))
            if length:
                state.spans.append(Span(zero.param_names[parameter], rank * part, length, at))
            at += part
        states.append(state)
    return states


def _counts_in_tensors(optimizer: Any) -> bool:
    """Check whether an optimizer keeps its counters as tensors, like torch's, or as integers, like DeepSpeed's."""
    return type(optimizer).__module__.startswith("torch.")
