"""The rank's side of online transforms: ordered batches from actors that may fail at any time."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.flight as fl

from drivetrain_pipelines.errors import DrivetrainError, TransformError, TransformersLostError
from drivetrain_pipelines.online.wire import Endpoints, Refusal, Ticket, from_arrow, seal
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.reader import Batch
from drivetrain_pipelines.user_code import describe

_PREFETCH_BATCHES = 2  # in the queue of each flight; its thread holds one more, then flow control stops the actor
_PING_AFTER_S = 5.0  # without a batch for this long, check whether the actor is alive
_PING_TIMEOUT_S = 2.0
_PREFERRED_CHECK_INTERVAL_S = 5.0  # between checks whether the preferred actor of a flight is available again
_TIMEOUT_S = 300.0  # for any actor to deliver a batch; long enough for a node to be replaced
_RETRY_DELAY_S = 0.2
_MAX_CRASHES = (
    10  # deaths of actors while they make one batch: then the transform ends them, not a fault of the cluster
)


class OnlineReader:
    """Endless batches of one rank. Each of ``actors`` actors serves every ``actors``-th batch; any can serve all.

    Args:
        endpoints: endpoints of the run's actors.
        actors: number of actors.
        global_batch: samples per step over all ranks.
        rows: this rank's slice of the global batch.
        start: global position of the first sample.
    """

    def __init__(self, endpoints: Endpoints, actors: int, global_batch: int, rows: slice, start: int) -> None:
        self._flights = [
            _Flight(
                endpoints,
                [(preferred + other) % actors for other in range(actors)],
                Ticket(start + preferred * global_batch, actors, global_batch, rows.start, rows.stop),
            )
            for preferred in range(actors)
        ]

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches in order. Raises `TransformError` or, after the timeout, `TransformersLostError`."""
        kinds = None
        while True:
            for flight in self._flights:
                batch = flight.take()
                kinds = kinds or _kinds(batch.columns)
                if _kinds(batch.columns) != kinds:  # a connection checks one actor only
                    raise TransformError("data.online.transform returned samples of another type or shape than before")
                yield batch

    def close(self) -> None:
        """Close all connections and end all threads."""
        for flight in self._flights:
            flight.stop()
        for flight in self._flights:
            flight.join()


class _Flight:
    """Every n-th batch, from the first of some actors that delivers. A thread prefetches."""

    def __init__(self, endpoints: Endpoints, actors: list[int], ticket: Ticket) -> None:
        self._endpoints, self._actors, self._ticket = endpoints, actors, ticket
        self._batches: queue.Queue[Batch | Exception] = queue.Queue(_PREFETCH_BATCHES)
        self._stopped = threading.Event()
        self._serving: tuple[str, fl.FlightStreamReader] | None = None
        self._position, self._delivered = ticket.start, time.monotonic()
        self._crashes, self._crashed_at = 0, ticket.start
        self._thread = threading.Thread(target=self._run, name="online-reader", daemon=True)
        self._thread.start()

    def take(self) -> Batch:
        """Return the next batch; raise the error that prevented it."""
        began = time.monotonic()
        while True:
            try:
                item = self._batches.get(timeout=_PING_AFTER_S)
            except queue.Empty:
                if time.monotonic() - began > _TIMEOUT_S + _PING_AFTER_S:  # normally the thread raises first
                    problem = f"data.online.transform has delivered no batch for {_TIMEOUT_S:g} s"
                    raise TransformersLostError(problem) from None
                if (serving := self._serving) and not self._is_alive(serving[0]):
                    serving[1].cancel()  # a stopped process, or one behind a broken link, keeps its connections open
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopped.set()
        if serving := self._serving:
            serving[1].cancel()
        with suppress(queue.Empty):
            while True:
                self._batches.get_nowait()  # the thread may be waiting for space in the queue

    def join(self) -> None:
        """Wait until the thread has ended."""
        while self._thread.is_alive():
            self.stop()  # it may have connected, or filled the queue, since the last call
            self._thread.join(_RETRY_DELAY_S)

    def _run(self) -> None:
        try:
            self._receive_all()
        except Exception as error:  # `take` raises it
            self._batches.put(error)

    def _receive_all(self) -> None:
        problem = "no actor has started yet"
        while not self._stopped.is_set():
            for actor in self._actors:
                try:
                    self._receive(actor)
                except DrivetrainError:
                    raise
                except Exception as error:  # any pyarrow error of a broken connection or an unknown server
                    problem = describe(error)
                    self._note_crash(actor)
                if self._stopped.is_set():
                    return
                if time.monotonic() - self._delivered > _TIMEOUT_S:
                    lost = f"no transforming actor has delivered for {_TIMEOUT_S:g} s: {problem[:500]}"
                    raise TransformersLostError(lost)
                if time.monotonic() - self._delivered < _RETRY_DELAY_S:
                    break  # it delivered until now: start again with the preferred actor
            self._stopped.wait(random.uniform(0, 2 * _RETRY_DELAY_S))

    def _note_crash(self, actor: int) -> None:
        """Count an actor that has died while it made the next batch; raise `TransformError` beyond the limit."""
        address = self._endpoints.find(actor)
        if self._stopped.is_set() or (address and self._is_alive(address)):
            return
        if self._position != self._crashed_at:
            self._crashes, self._crashed_at = 0, self._position
        self._crashes += 1
        if self._crashes >= _MAX_CRASHES:
            ended = f"data.online.transform: its process ended {self._crashes} times"
            fix = "It ends or crashes its process (os._exit, a fault in a library), or needs more memory than there is."
            raise TransformError(f"{ended} while it made the batch at position {self._position}. {fix}")

    def _receive(self, actor: int) -> None:
        """Receive batches until the connection breaks, or until the preferred actor is available again."""
        address = self._endpoints.find(actor)
        if address is None or not self._is_alive(address):
            return
        request, proof = seal(self._endpoints.token, asdict(replace(self._ticket, start=self._position)))
        with fl.FlightClient(f"grpc://{address}") as client:
            writer, flight = client.do_exchange(fl.FlightDescriptor.for_command(request))
            self._serving = (address, flight)
            last_check = time.monotonic()
            try:
                for chunk in flight:
                    self._enqueue(chunk, proof)
                    if self._stopped.is_set():
                        return
                    if actor != self._actors[0] and time.monotonic() - last_check > _PREFERRED_CHECK_INTERVAL_S:
                        last_check = time.monotonic()
                        preferred = self._endpoints.find(self._actors[0])
                        if preferred and self._is_alive(preferred):
                            return
            except fl.FlightServerError as error:
                if error.extra_info:  # the actor is alive and reports that it cannot serve
                    raise _error_of(Refusal.decode(error.extra_info)) from error
                raise
            finally:
                self._serving = None
                flight.cancel()
                with suppress(fl.FlightError, pa.ArrowException, OSError):  # we ended it, or the error being raised did
                    writer.close()

    def _enqueue(self, chunk: fl.FlightStreamChunk, proof: str) -> None:
        expected = f"{self._position} {proof}"
        if chunk.app_metadata.to_pybytes().decode() != expected:
            raise ConnectionError("another process answers at the address of the actor")
        self._batches.put(Batch(self._position, from_arrow(chunk.data), {}))
        self._position += self._ticket.every * self._ticket.global_batch
        self._delivered = time.monotonic()

    def _is_alive(self, address: str) -> bool:
        """Check whether an actor of this run answers at ``address`` within the timeout."""
        request, proof = seal(self._endpoints.token, {})
        try:
            with fl.FlightClient(f"grpc://{address}") as client:
                options = fl.FlightCallOptions(timeout=_PING_TIMEOUT_S)
                answers = list(client.do_action(fl.Action("ping", request), options))
        except Exception:  # any pyarrow error of a broken connection or an unknown server
            return False
        return [answer.body.to_pybytes() for answer in answers] == [proof.encode()]


def _kinds(columns: Columns) -> dict[str, object]:
    return {name: (values.dtype, values.shape[1:]) for name, values in columns.items()}  # type: ignore[union-attr]


def _error_of(refusal: Refusal) -> TransformError | TransformersLostError:
    """Return the user's error, or else an error of the data, which a restart of the rank may resolve."""
    if refusal.error == TransformError.__name__:
        return TransformError(refusal.message)
    return TransformersLostError(f"an actor cannot read the data: {refusal.message}")
