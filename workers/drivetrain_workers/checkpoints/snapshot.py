"""A consistent copy of a rank's state in host memory. Most of it is made while the next step computes.

Weights and moments change only when the optimizer updates them at the end of a step. The copy may therefore continue
during the next step's forward and backward passes, if the update waits for it (Maurya et al. 2024, DataStates-LLM).
"""

from __future__ import annotations

import mmap
import random
from base64 import b64encode
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.checkpoints.manifest import Contents, Fragment, GroupState, ReplicatedTensor
from drivetrain_workers.engine.deepspeed_internals import flat_states, missed_updates, replicated_tensors
from drivetrain_workers.modeling.model_flags import ModelFlags


class HostBuffer:
    """One copy of a rank's state, in memory that is reused for the next one."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._later: list[tuple[int, torch.Tensor]] = []
        self._stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]

    @property
    def content(self) -> memoryview:
        """The copy, after `finish`."""
        view: memoryview = self._bytes.numpy().data
        return view

    def begin(self, engine: Any, whole: bool = False) -> Contents:
        """Copy what the next forward pass changes, record what the next update changes, and return the layout.

        Args:
            whole: include state that another rank saves for all.
        """
        fragments: list[Fragment] = []
        groups: dict[int, GroupState] = {}
        size = 0
        self._later = []
        for state in flat_states(engine):
            hyper = {k: v for k, v in state.group.items() if isinstance(v, int | float | bool | tuple | None)}
            groups[state.group_index] = GroupState(hyper, state.scalars())
            if not (state.saved_here or whole):
                continue
            for kind, tensor in state.tensors():
                width = tensor.element_size()
                for begin, end, spans in state.runs():
                    for span in spans:
                        at = size + (span.at - begin) * width
                        fragments.append(Fragment(span.parameter, kind, span.start, span.length, at))
                    self._later.append((size, tensor[begin:end]))
                    size += (end - begin) * width
        replicated, now = [], []
        for name, tensor in replicated_tensors(engine).items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            replicated.append(ReplicatedTensor(name, dtype, list(tensor.shape), size))
            now.append((size, tensor))
            size += tensor.numel() * tensor.element_size()
        if self._bytes.numel() != size:
            self._bytes = self._allocate(size)
        self._copy(now)
        if self._stream:
            torch.cuda.synchronize()  # the previous update must be complete before the other stream reads
        flags, missed = asdict(ModelFlags.of(engine.module)), dict(missed_updates(engine))
        return Contents(tuple(fragments), groups, tuple(replicated), rng_state(), flags, missed)

    def _allocate(self, size: int) -> torch.Tensor:
        """Allocate memory for the copy; on CPUs outside the heap, which stays free for the allocations of steps."""
        if self._stream or not size:
            return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
        return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)

    def finish(self) -> None:
        """Copy the rest. Called from another thread, before the optimizer's next update."""
        if self._stream:
            with torch.cuda.stream(self._stream):
                self._copy(self._later)
            self._stream.synchronize()
        else:
            self._copy(self._later)
        self._later = []

    def _copy(self, tensors: list[tuple[int, torch.Tensor]]) -> None:
        for offset, tensor in tensors:
            target = self._bytes[offset : offset + tensor.numel() * tensor.element_size()]
            target.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8), non_blocking=True)


def rng_state() -> JsonObject:
    """Return the state of every random generator of this process, as JSON."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
        "cuda": b64encode(cuda.numpy().tobytes()).decode(),
    }
