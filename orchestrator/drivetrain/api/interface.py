"""What can be done with runs, on this machine or on a server: `Runs`, and what its methods return."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Progress
from drivetrain.runs.view import RunView

Pair = tuple[Any, Any]

_PAGE = 100  # runs of one request, where all are wanted


@dataclass(frozen=True)
class Transition:
    """A change of a run's phase.

    Attributes:
        time: in seconds since the epoch.
        phase: the new phase.
        why: the event that caused it.
    """

    time: float
    phase: str
    why: str


@dataclass(frozen=True)
class RunInfo:
    """A run at one moment.

    Attributes:
        id: of the run.
        user: who submitted it.
        phase: ``queued``, ``preparing``, ``ready``, ``placing``, ``starting``, ``training``, ``waiting``, ``stopping``,
            ``finishing`` or ``ended``.
        reason: why it has ended, for example ``completed`` or ``cancelled``; empty before.
        ended: whether it has ended and released everything that it used.
        step: optimizer steps done.
        steps: optimizer steps to do; 0 while unknown.
        created, updated: when it was submitted, and when its phase changed last, in seconds since the epoch.
        progress: generation, committed step, restarts.
        facts: what the run has recorded about itself: dataset, losses, checkpoint, MLflow run.
        view: live figures; None in lists.
        history: every change of phase, in order; empty in lists.
        account: time by class, and cost; None in lists. See `drivetrain.accounting`.
    """

    id: str
    user: str
    phase: str
    reason: str
    ended: bool
    step: int
    steps: int
    created: float
    updated: float
    progress: Progress
    facts: RunFacts
    view: RunView | None = None
    history: tuple[Transition, ...] = ()
    account: JsonObject | None = None

    def to_json(self) -> JsonObject:
        """Return every field by name; ``run_id`` is the id. What is not known in a list is left out."""
        found: JsonObject = {"run_id": self.id}
        found |= {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OTHER_JSON}
        found |= {"progress": asdict(self.progress), "facts": self.facts.to_json()}
        if self.view is not None:
            found |= {"view": self.view.to_json(), "history": [asdict(each) for each in self.history]}
        if self.account is not None:
            found["account"] = self.account
        return found

    @classmethod
    def from_json(cls, found: JsonObject) -> Self:
        """Return the run of `to_json`; an older or a newer version may have written it."""
        found = {"step": found["progress"]["step"], "steps": 0, "updated": found["created"], **found}
        plain = {each.name: found[each.name] for each in fields(cls) if each.name not in _OTHER_JSON}
        progress = {each.name: found["progress"][each.name] for each in fields(Progress)}
        return cls(
            id=found["run_id"],
            **plain,
            progress=Progress(**progress),
            facts=RunFacts.from_json(found["facts"]),
            view=RunView.from_json(found["view"]) if "view" in found else None,
            history=tuple(
                Transition(entry["time"], entry["phase"], entry["why"]) for entry in found.get("history", ())
            ),
            account=found.get("account"),
        )


_OTHER_JSON = ("id", "progress", "facts", "view", "history", "account")


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        settings, environment: the values that differ, by key. Where the data is does not count if its version is equal.
        code: a unified diff of the jobs' code.
        data: the dataset versions.
        worlds: for each run (first step, world size), one pair for every change of the world size.
        same_steps: number of steps, from the first, whose losses are bitwise equal.
        losses: the losses at the next step; None where a run has no such step.
        results: figures of the runs' summaries.
    """

    runs: tuple[str, str]
    settings: dict[str, Pair]
    environment: dict[str, Pair]
    code: list[str]
    data: Pair
    worlds: tuple[list[tuple[int, int]], list[tuple[int, int]]]
    same_steps: int
    losses: tuple[float, float] | None
    results: dict[str, Pair]

    @classmethod
    def from_json(cls, found: JsonObject) -> Self:
        """Return the comparison that `dataclasses.asdict` and JSON have made lists of."""
        pairs = {
            name: {key: tuple(pair) for key, pair in found[name].items()}
            for name in ("settings", "environment", "results")
        }
        worlds = tuple([(step, size) for step, size in each] for each in found["worlds"])
        losses = None if found["losses"] is None else tuple(found["losses"])
        runs, data = tuple(found["runs"]), tuple(found["data"])
        return cls(**{**found, **pairs, "worlds": worlds, "losses": losses, "runs": runs, "data": data})

    @property
    def same_input(self) -> bool:
        """Whether everything that determines the result is equal."""
        return not (self.settings or self.environment or self.code) and self.same_data

    @property
    def same_data(self) -> bool:
        """Whether both runs have the same dataset version; one that has prepared no data has none."""
        return self.data[0] is not None and self.data[0] == self.data[1]


class Runs(ABC):
    """The runs of one place: of this machine's home (`LocalRuns`), or of a server (`Client`).

    Use it as a context manager, or call `close`. Every method that takes ``run_id`` accepts a unique prefix of one.

    Raises, from every method that takes a run:
        NotFoundError: there is no such run.
        InputError: several runs have this prefix, or the run does not allow it.
        ServerError: the server refuses it, or cannot be reached.
    """

    @property
    @abstractmethod
    def where(self) -> str:
        """Where the runs are, for people: ``local FOLDER`` or ``server URL``."""

    @abstractmethod
    def submit(self, job: str, overrides: Iterable[str] = (), idempotency_key: str | None = None) -> RunInfo:
        """Start a run and return at once.

        Args:
            job: job file, folder with one, or recipe name; read on this machine.
            overrides: ``section.key=value``.
            idempotency_key: two submissions with the same key make one run.
        """

    @abstractmethod
    def list(
        self, user: str | None = None, phase: str | None = None, limit: int = 50, before: str | None = None
    ) -> tuple[RunInfo, ...]:
        """Return at most ``limit`` runs (up to 1000), newest first.

        Args:
            user, phase: only the runs of this user, in this phase.
            before: id of the last run of the previous page; None begins with the newest run.
        """

    @abstractmethod
    def status(self, run_id: str) -> RunInfo:
        """Return a run with its live figures, its history and its account."""

    @abstractmethod
    def watch(self, run_id: str) -> Iterator[RunView]:
        """Yield the live figures of a run whenever they change, until it has ended."""

    @abstractmethod
    def logs(self, run_id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines that the ranks have printed.

        Args:
            rank: only this rank; the lines of all ranks begin with ``rank-N:``.
            follow: wait for more lines until the run has ended.
        """

    @abstractmethod
    def cancel(self, run_id: str) -> RunInfo:
        """Ask a run to save a checkpoint and end."""

    @abstractmethod
    def resume(self, run_id: str) -> RunInfo:
        """Resume a run that was interrupted, cancelled or has failed."""

    @abstractmethod
    def retry(self, run_id: str) -> RunInfo:
        """Start a new run of the same job, with the same code."""

    @abstractmethod
    def sync(self, run_id: str, timeout_s: float = 600.0) -> None:
        """Send to MLflow what it has not received, or not accepted, of a run that has ended.

        A run that was deleted in MLflow is restored, or logged again from the start.

        Raises:
            TrackingError: MLflow has not accepted everything within ``timeout_s``; the rest is kept.
        """

    @abstractmethod
    def report(self, run_id: str, to: Path | None = None) -> Path:
        """Write one self-contained HTML page about a run, and return its path.

        Args:
            to: file to write; ``report.html`` in the folder of a local run, ``RUN-report.html`` here for a server's.
        """

    @abstractmethod
    def diff(self, first: str, second: str, picture: Path | None = None) -> Comparison:
        """Compare two runs; draw their losses into the file ``picture``, if one is given."""

    @abstractmethod
    def predict(
        self,
        run_id: str,
        inputs: Sequence[str],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        pictures: str = ".",
    ) -> Sequence[JsonObject]:
        """Return what the newest checkpoint of a run predicts: a row for every input, or for every sample in it.

        Args:
            inputs: texts; paths of files, folders and globs, which stand for the files of the job's format in them; or
                names of classes to make an image of. A server takes texts and files.
            max_tokens, temperature: of generated text; None uses the job's ``sample`` section.
            seed: makes the answer repeatable.
            pictures: folder for images that the model makes; a server does not return images.

        Raises:
            CheckpointError: there is no valid checkpoint, or the model fails.
            InputError: a file does not exist or is of the wrong kind, or a folder has no file of the job's format.
        """

    @abstractmethod
    def close(self) -> None:
        """Close connections."""

    def all(self, user: str | None = None, phase: str | None = None) -> Iterator[RunInfo]:
        """Yield every run, newest first, loading a page at a time. Args: see `list`."""
        before: str | None = None
        while page := self.list(user, phase, _PAGE, before):
            yield from page
            before = page[-1].id

    def wait(self, run_id: str, timeout_s: float | None = None) -> RunInfo:
        """Wait until a run has ended, and return it.

        Raises:
            TimeoutError: it has not ended within ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        version, ended = -1, False
        while not ended:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"{run_id} has not ended within {timeout_s:g} s")
            version, ended = self._wait_for_news(run_id, version, left_s)
        return self.status(run_id)

    @abstractmethod
    def _wait_for_news(self, run_id: str, version: int, timeout_s: float | None) -> tuple[int, bool]:
        """Wait for a newer version of a run's figures, not much longer than ``timeout_s``.

        Returns:
            The version, and whether the run has ended and released everything.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
