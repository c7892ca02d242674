"""The runs of this machine's home."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.interface import Comparison, RunInfo, Runs
from drivetrain.api.rank_logs import RankLogs
from drivetrain.api.run_info import full_info, list_infos, view_of
from drivetrain.errors import NotFoundError
from drivetrain.home import Home, user_name
from drivetrain.runs.states import Ended
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.runs.view import RunView

if TYPE_CHECKING:
    from drivetrain.api.session import Session

_POLL_INTERVAL_S = 0.5
NAME_A_SERVER = "For a run on a server, give --server URL or set DRIVETRAIN_SERVER."


class LocalRuns(Runs):
    """The runs of this machine's home. Reading needs neither a server nor Ray.

    `submit`, `resume` and `retry` join the Ray cluster of this machine. Where none runs, they start one, which ends
    with `close`: call `wait` before it, or start a cluster first with ``ray start --head``.

    Args:
        address: of the Ray cluster to join; see `drivetrain.api.session.connect`.
    """

    def __init__(self, address: str | None = None) -> None:
        self._home, self._address = Home.from_environment(), address
        self._stack = ExitStack()
        self._session: Session | None = None

    @property
    def where(self) -> str:
        """``local``, and the home's folder."""
        path = self._home.path
        below_user = path.is_relative_to(Path.home())
        return f"local {Path('~') / path.relative_to(Path.home()) if below_user else path}"

    def submit(self, job: str, overrides: Iterable[str] = (), idempotency_key: str | None = None) -> RunInfo:
        """See `Runs.submit`."""
        from drivetrain.job.loading import load_job  # here: reading needs no job

        checked = load_job(job, overrides)
        return self._info(self._joined().submit(checked, user_name(), idempotency_key))

    def list(
        self, user: str | None = None, phase: str | None = None, limit: int = 50, before: str | None = None
    ) -> tuple[RunInfo, ...]:
        """See `Runs.list`."""
        return list_infos(self._home, self._store, self._store.page(limit, before, user=user, phase=phase))

    def status(self, run_id: str) -> RunInfo:
        """See `Runs.status`; the figures are those that the run has logged."""
        return full_info(self._home, self._store, self._accounts, self.record(run_id))

    def watch(self, run_id: str) -> Iterator[RunView]:
        """See `Runs.watch`."""
        shown: RunView | None = None
        while True:
            record = self.record(run_id)
            view = view_of(self._home, record)
            if view != shown:
                shown = view
                yield view
            if record.ended:
                return
            time.sleep(_POLL_INTERVAL_S)

    def logs(self, run_id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """See `Runs.logs`."""
        run = self.record(run_id).id
        logs, rest, last = RankLogs(self._home.run(run), rank), b"", False
        while not last:
            last = not follow or self._store.get(run).ended
            for piece in logs.read(last):
                *lines, rest = (rest + piece).split(b"\n")
                yield from map(_text, lines)
            if not last:
                time.sleep(_POLL_INTERVAL_S)
        if rest:
            yield _text(rest)

    def cancel(self, run_id: str) -> RunInfo:
        """See `Runs.cancel`. It asks the coordinator on the Ray cluster that runs the run.

        Raises:
            InputError: no Ray cluster runs it.
        """
        record = self.record(run_id)
        if not isinstance(record.state, Ended):
            from drivetrain.api.session import session_of_run  # here: reading needs no Ray

            with ExitStack() as stack:
                session = self._session or stack.enter_context(session_of_run(record.id, self._address))
                session.cancel(record.id)
        return self._info(self._store.get(record.id))

    def resume(self, run_id: str) -> RunInfo:
        """See `Runs.resume`."""
        run = self.record(run_id).id
        return self._info(self._joined().resume(run))

    def retry(self, run_id: str) -> RunInfo:
        """See `Runs.retry`."""
        run = self.record(run_id).id
        return self._info(self._joined().retry(run, user_name()))

    def sync(self, run_id: str, timeout_s: float = 600.0) -> None:
        """See `Runs.sync`."""
        from drivetrain.api.runs import sync  # here: reading needs no MLflow

        sync(self.record(run_id).id, timeout_s)

    def report(self, run_id: str, to: Path | None = None) -> Path:
        """See `Runs.report`."""
        from drivetrain.reporting.report import write_report  # here: it draws, which takes a second to import

        return write_report(self.record(run_id).id, to)

    def diff(self, first: str, second: str, picture: Path | None = None) -> Comparison:
        """See `Runs.diff`."""
        from drivetrain.api.compare import compare  # here: as in `report`

        return compare(self.record(first).id, self.record(second).id, picture)

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
        """See `Runs.predict`."""
        from drivetrain.api.predictions import predict  # here: reading needs no model

        return predict(self._home, self.record(run_id), inputs, pictures, max_tokens, temperature, seed)

    def close(self) -> None:
        """Leave the Ray cluster; one that was started here ends."""
        self._session = None
        self._stack.close()

    def record(self, run_id: str, fix: str = NAME_A_SERVER) -> RunRecord:
        """Return the stored record of a run. Raises NotFoundError, with ``fix``, and InputError; see `Runs`."""
        try:
            return self._store.get(run_id)
        except NotFoundError as error:
            raise NotFoundError(error.kind, error.name, error.known, str(self._home.path), fix) from None

    @cached_property
    def _store(self) -> RunStore:
        return RunStore(self._home.database_url)

    @cached_property
    def _accounts(self) -> RunAccountCache:
        return RunAccountCache(self._home, self._store)

    def _joined(self) -> Session:
        """Return the session with the coordinator, which is opened with the first change."""
        if self._session is None:
            from drivetrain.api.session import open_session  # here: reading needs no Ray

            self._session = self._stack.enter_context(open_session(self._address))
        return self._session

    def _info(self, record: RunRecord) -> RunInfo:
        return list_infos(self._home, self._store, [record])[0]

    def _wait_for_news(self, run_id: str, version: int, timeout_s: float | None) -> tuple[int, bool]:
        if version >= 0:
            time.sleep(_POLL_INTERVAL_S if timeout_s is None else min(_POLL_INTERVAL_S, timeout_s))
        return version + 1, self.record(run_id).ended


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
