"""Saving: a copy into a reused host buffer, then files, in a background thread; steps wait for next to nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from drivetrain_pipelines.storage.checksums import atomic_write, block_digests, write_json

from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.policy import save_interval_s, to_keep
from drivetrain_workers.checkpoints.snapshot import HostBuffer
from drivetrain_workers.checkpoints.store import commit, rank_file, rank_index, remove_old
from drivetrain_workers.engine.deepspeed_internals import parameter_shapes
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import KeepSpec


@dataclass(frozen=True)
class Saved:
    """What a finished save reports."""

    step: int
    folder: str
    bytes: int
    stall_s: float
    write_s: float


class CheckpointWriter:
    """One rank's side of saving.

    Args:
        folder: of the run.
        rank, world_size, generation: of this process; rank 0 commits and removes old checkpoints.
        keep: which checkpoints stay.
        run_began: seconds since the epoch.
        report: called from the background thread: ``("checkpoint", **fields of Saved)`` on rank 0 after the commit,
            ``("copied", step=...)`` after `copy`, ``("warning", message=...)`` when that did not work.
        memory: of this node, for `copy`.
    """

    def __init__(
        self,
        folder: RunFolder,
        rank: int,
        world_size: int,
        generation: int,
        keep: KeepSpec,
        report: Callable[..., None],
        run_began: float,
        memory: MemoryCopies | None = None,
    ) -> None:
        self._folder, self._rank, self._world_size, self._generation = folder, rank, world_size, generation
        self._keep, self._report, self._memory = keep, report, memory
        self._buffer = HostBuffer()
        self._copied = threading.Event()
        self._to_storage = False
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failures, self._run_began = generation - 1, run_began
        self._saved_at = time.monotonic()
        self._stall_s: float | None = None
        self._write_s = 0.0

    def save(
        self,
        engine: Any,
        step: int,
        samples: int,
        records: list[dict[str, Any]],
        evaluation: dict[str, Any] | None = None,
        probe: dict[str, float] | None = None,
    ) -> None:
        """Begin to copy the state of ``engine``, and to write it. Waits first for the save before, if that still runs.

        `before_update` must be called before the optimizer's next update.

        Args:
            step: optimizer steps done.
            samples: global position in the data stream.
            records: ledger entries since the save before; rank 0 writes them ahead of the commit, so a committed
                checkpoint has its whole history.
            evaluation: at this step, if there was one: ``loss``, ``metrics`` and ``score``.
            probe: see `drivetrain_workers.checkpoints.proof.prove_loss`.

        Raises:
            OSError, CheckpointError: the save before failed.
        """
        began = time.perf_counter()
        self.wait()
        facts = self._facts(engine, step, samples) | {"evaluation": evaluation, "probe": probe}
        self._to_storage = True
        self._begin(partial(self._write, step, self._buffer.begin(engine), facts, list(records)))
        self._stall_s, self._saved_at = time.perf_counter() - began, time.monotonic()

    def copy(self, engine: Any, step: int, samples: int, records: list[dict[str, Any]]) -> None:
        """Begin to copy the state into this node's memory. As `save` otherwise; do not call it while `is_busy`."""
        if self._memory is None:
            return
        self.wait()
        self._to_storage = False
        facts = self._facts(engine, step, samples) | {"whole": True}
        index = self._buffer.begin(engine, whole=True) | {"facts": facts, "records": list(records)}
        self._begin(partial(self._write_copy, self._memory, CheckpointId(step, self._generation), index))

    def _facts(self, engine: Any, step: int, samples: int) -> dict[str, Any]:
        return {
            "format": 2,
            "step": step,
            "samples": samples,
            "world_size": self._world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "shapes": parameter_shapes(engine),
        }

    def _begin(self, write: Callable[[], None]) -> None:
        self._copied.clear()
        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def before_update(self) -> None:
        """Wait until the copy under way holds everything that the optimizer is about to change."""
        if self._thread:
            began = time.perf_counter()
            self._copied.wait()
            if self._to_storage:
                self._stall_s = (self._stall_s or 0.0) + time.perf_counter() - began

    @property
    def is_busy(self) -> bool:
        """Whether a save is still being written, which a step should not wait for."""
        return self._thread is not None and self._thread.is_alive()

    def is_due(self) -> bool:
        """Whether it pays to save now; ranks may differ, so one decides."""
        elapsed_s = max(0.0, time.time() - self._run_began)
        interval_s = save_interval_s(self._stall_s, self._write_s, self._failures, elapsed_s)
        return time.monotonic() - self._saved_at >= interval_s

    def wait(self) -> None:
        """Until the save under way is committed (rank 0) or written (others). Raises what went wrong with it."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._failure:
            raise self._failure

    def _write(self, step: int, index: dict[str, Any], facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
        began = time.perf_counter()
        name = CheckpointId(step, self._generation)
        folder = name.folder(self._folder.checkpoints)
        try:
            self._buffer.finish()
            self._copied.set()
            folder.mkdir(parents=True, exist_ok=True)
            data = self._buffer.content
            with atomic_write(folder / rank_file(self._rank)) as file:
                file.write(data)
            index |= {"bytes": len(data), "xxh3": block_digests(data)}
            write_json(folder / rank_index(self._rank), index)
            if self._rank == 0:
                ledger.write(self._folder.ledger, name, records)
                commit(folder, facts)
                remove_old(self._folder.checkpoints, partial(to_keep, keep=self._keep))
                self._write_s = time.perf_counter() - began
                saved = Saved(step, str(folder), len(data), self._stall_s or 0.0, self._write_s)
                self._report("checkpoint", **vars(saved))
        except Exception as error:  # raised in the training thread by wait()
            self._failure = error
        finally:
            self._copied.set()

    def _write_copy(self, memory: MemoryCopies, name: CheckpointId, index: dict[str, Any]) -> None:
        try:
            self._buffer.finish()
            self._copied.set()
            data = self._buffer.content
            memory.write(name, self._rank, index | {"bytes": len(data), "xxh3": block_digests(data)}, data)
            self._report("copied", step=name.step)
        except OSError as error:  # memory is short: storage must do
            self._memory = None
            self._report("warning", message=f"no more copies in the node's memory: {error}")
        except Exception as error:  # raised in the training thread by wait()
            self._failure = error
        finally:
            self._copied.set()
