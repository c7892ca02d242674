"""Saving: a copy into a reused host buffer, then files, in a background thread. Steps wait only for the copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.json_files import atomic_write, write_json

from drivetrain_workers.checkpoints.manifest import Contents, History, Manifest, Probe, RankIndex
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies, RankCopy
from drivetrain_workers.checkpoints.policy import save_interval_s, to_keep
from drivetrain_workers.checkpoints.snapshot import HostBuffer
from drivetrain_workers.checkpoints.store import commit, rank_file, rank_index, remove_old
from drivetrain_workers.engine.deepspeed_internals import parameter_shapes
from drivetrain_workers.protocol.events import AgentEvent, CheckpointCommitted, CopyMade, ProblemFound, RankId
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import KeepSpec


@dataclass(frozen=True)
class SavePoint:
    """State of training when its state is saved.

    Attributes:
        step: optimizer steps done.
        position: position in the stream of samples.
        records: records of the steps since the previous save. Rank 0 writes them before the commit, so a committed
            checkpoint has its whole history.
        history: see `History`.
        probe: see `drivetrain_workers.checkpoints.proof.verify_loss`.
    """

    step: int
    position: int
    records: tuple[StepRecord, ...] = ()
    history: History | None = None
    probe: Probe | None = None

    @property
    def evaluation(self) -> Evaluation | None:
        """Evaluation after this step, if there was one."""
        return self.records[-1].evaluation if self.records and self.records[-1].step == self.step else None


class CheckpointWriter:
    """Saves the state of one rank.

    Args:
        folder: folder of the run.
        source: this process; rank 0 commits and removes old checkpoints.
        keep: which checkpoints to keep.
        report: called from the background thread: with `CheckpointCommitted` on rank 0 after the commit, with
            `CopyMade` after `copy`, with `ProblemFound` when `copy` failed.
        run_began: seconds since the epoch.
        memory: memory of this node, for `copy`.
    """

    def __init__(
        self,
        folder: RunFolder,
        source: RankId,
        world_size: int,
        keep: KeepSpec,
        report: Callable[[AgentEvent], None],
        run_began: float,
        memory: MemoryCopies | None = None,
    ) -> None:
        self._folder, self._source, self._world_size = folder, source, world_size
        self._keep, self._report, self._memory = keep, report, memory
        self._buffer = HostBuffer()
        self._copied = threading.Event()
        self._to_storage = False
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failures, self._run_began = source.generation - 1, run_began
        self._saved_at = time.monotonic()
        self._stall_s: float | None = None
        self._write_s = 0.0

    def save(self, engine: Any, point: SavePoint) -> None:
        """Start to copy and write the state of ``engine``. Waits for the previous save, if that is still running.

        `before_update` must be called before the optimizer's next update.

        Raises:
            OSError, CheckpointError: the previous save failed.
        """
        began = time.perf_counter()
        self.wait()
        manifest = self._manifest(engine, point, whole=False)
        self._to_storage = True
        self._begin(partial(self._write, point, self._buffer.begin(engine), manifest))
        self._stall_s, self._saved_at = time.perf_counter() - began, time.monotonic()

    def copy(self, engine: Any, point: SavePoint) -> None:
        """Start to copy the state into this node's memory. Otherwise like `save`; do not call it while `is_busy`."""
        if self._memory is None:
            return
        self.wait()
        self._to_storage = False
        manifest = self._manifest(engine, point, whole=True)
        self._begin(partial(self._write_copy, self._memory, point, self._buffer.begin(engine, whole=True), manifest))

    def _manifest(self, engine: Any, point: SavePoint, whole: bool) -> Manifest:
        return Manifest(
            point.step,
            point.position,
            self._world_size,
            engine.zero_optimization_stage(),
            parameter_shapes(engine),
            point.evaluation,
            point.probe,
            point.history,
            whole,
        )

    def _begin(self, write: Callable[[], None]) -> None:
        self._copied.clear()
        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def before_update(self) -> None:
        """Wait until the current copy contains everything that the optimizer is about to change."""
        if self._thread:
            began = time.perf_counter()
            self._copied.wait()
            if self._to_storage:
                self._stall_s = (self._stall_s or 0.0) + time.perf_counter() - began

    @property
    def is_busy(self) -> bool:
        """Whether a save is still being written. Steps should not wait for it."""
        return self._thread is not None and self._thread.is_alive()

    def is_due(self) -> bool:
        """Return whether a save is due; ranks may differ, so one decides."""
        elapsed_s = max(0.0, time.time() - self._run_began)
        interval_s = save_interval_s(self._stall_s, self._write_s, self._failures, elapsed_s)
        return time.monotonic() - self._saved_at >= interval_s

    def wait(self) -> None:
        """Wait until the current save is committed (rank 0) or written (others). Raises the error of the save."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._failure:
            raise self._failure

    def _write(self, point: SavePoint, contents: Contents, manifest: Manifest) -> None:
        began = time.perf_counter()
        rank, name = self._source.rank, CheckpointId(point.step, self._source.generation)
        folder = name.folder(self._folder.checkpoints)
        try:
            self._buffer.finish()
            self._copied.set()
            folder.mkdir(parents=True, exist_ok=True)
            data = self._buffer.content
            with atomic_write(folder / rank_file(rank)) as file:
                file.write(data)
            write_json(folder / rank_index(rank), RankIndex(contents, len(data), block_digests(data)).to_json())
            if rank == 0:
                ledger.write(self._folder.ledger, name, point.records)
                commit(folder, manifest)
                remove_old(self._folder.checkpoints, partial(to_keep, keep=self._keep))
                self._write_s = time.perf_counter() - began
                figures = len(data), self._stall_s or 0.0, self._write_s
                self._report(CheckpointCommitted(self._source, point.step, str(folder), *figures))
        except Exception as error:  # wait() raises it in the training thread
            self._failure = error
        finally:
            self._copied.set()

    def _write_copy(self, memory: MemoryCopies, point: SavePoint, contents: Contents, manifest: Manifest) -> None:
        rank, name = self._source.rank, CheckpointId(point.step, self._source.generation)
        try:
            self._buffer.finish()
            self._copied.set()
            data = self._buffer.content
            index = RankIndex(contents, len(data), block_digests(data))
            memory.write(name, rank, RankCopy(manifest, index, point.records), data)
            self._report(CopyMade(self._source, point.step))
        except OSError as error:  # memory is short: checkpoints in storage must suffice
            self._memory = None
            self._report(ProblemFound(f"copies in the node's memory are disabled: {error}"))
        except Exception as error:  # wait() raises it in the training thread
            self._failure = error
        finally:
            self._copied.set()
