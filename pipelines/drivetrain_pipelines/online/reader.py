"""A rank's side of online transforms: batches in order, from actors that may die at any time."""

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

_AHEAD = 2  # batches in the queue of each actor's stream; its thread holds one more, and flow control stops the actor
_SUSPICIOUS_S = 5.0  # without a batch the actor is asked whether it lives
_PING_S = 2.0
_HOME_S = 5.0  # between looks whether the actor that a stream belongs to is back
_PATIENCE_S = 300.0  # for any actor to deliver; long enough for a node to be replaced
_PAUSE_S = 0.2


class OnlineReader:
    """Endless batches of one rank. Of ``actors`` actors each serves every ``actors``-th batch; all can serve any.

    Args:
        endpoints: of the run's actors.
        actors: how many there are.
        global_batch: samples per step over all ranks.
        rows: this rank's slice of the global batch.
        start: global position to begin at.
    """

    def __init__(self, endpoints: Endpoints, actors: int, global_batch: int, rows: slice, start: int) -> None:
        self._streams = [
            _Stream(
                endpoints,
                [(home + other) % actors for other in range(actors)],
                Ticket(start + home * global_batch, actors, global_batch, rows.start, rows.stop),
            )
            for home in range(actors)
        ]

    def __iter__(self) -> Iterator[Batch]:
        """Raises `TransformError` for the user's code, `TransformersLostError` when no actor delivers for minutes."""
        kinds = None
        while True:
            for stream in self._streams:
                batch = stream.take()
                kinds = kinds or _kinds(batch.columns)
                if _kinds(batch.columns) != kinds:  # one actor's connection cannot see another's
                    raise TransformError("data.online.transform gave samples of another type or shape than before")
                yield batch

    def close(self) -> None:
        """Hang up and end all threads."""
        for stream in self._streams:
            stream.stop()
        for stream in self._streams:
            stream.join()


class _Stream:
    """Every n-th batch, from the first of some actors that delivers; a thread receives ahead."""

    def __init__(self, endpoints: Endpoints, actors: list[int], ticket: Ticket) -> None:
        self._endpoints, self._actors, self._ticket = endpoints, actors, ticket
        self._batches: queue.Queue[Batch | Exception] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._serving: tuple[str, fl.FlightStreamReader] | None = None
        self._position, self._delivered = ticket.start, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="online-reader", daemon=True)
        self._thread.start()

    def take(self) -> Batch:
        """The next batch; raises what made it impossible."""
        asked = time.monotonic()
        while True:
            try:
                item = self._batches.get(timeout=_SUSPICIOUS_S)
            except queue.Empty:
                if time.monotonic() - asked > _PATIENCE_S + _SUSPICIOUS_S:  # the thread gives up before, if it can
                    problem = f"data.online.transform has made no batch for {_PATIENCE_S:g} s"
                    raise TransformersLostError(problem) from None
                if (serving := self._serving) and not self._lives(serving[0]):
                    serving[1].cancel()  # a stopped process, or one behind a cut cable, keeps its connections
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stopped.set()
        if serving := self._serving:
            serving[1].cancel()
        with suppress(queue.Empty):
            while True:
                self._batches.get_nowait()  # it may be waiting for room

    def join(self) -> None:
        """Wait until the thread has ended."""
        while self._thread.is_alive():
            self.stop()  # it may have connected, or filled the queue, since
            self._thread.join(_PAUSE_S)

    def _run(self) -> None:
        try:
            self._receive_for_ever()
        except Exception as error:  # raised in `take`
            self._batches.put(error)

    def _receive_for_ever(self) -> None:
        problem = "none has started yet"
        while not self._stopped.is_set():
            for actor in self._actors:
                try:
                    self._receive(actor)
                except DrivetrainError:
                    raise
                except Exception as error:  # whatever pyarrow makes of a connection that breaks, or of a stranger
                    problem = str(error)
                if self._stopped.is_set():
                    return
                if time.monotonic() - self._delivered > _PATIENCE_S:
                    told = f"no transforming actor has delivered for {_PATIENCE_S:g} s: {problem[:500]}"
                    raise TransformersLostError(told)
                if time.monotonic() - self._delivered < _PAUSE_S:
                    break  # it was the right one until now: begin with the first again, and so come home
            self._stopped.wait(random.uniform(0, 2 * _PAUSE_S))

    def _receive(self, actor: int) -> None:
        """Take in batches until the connection breaks, or until a stream that is a guest can go home."""
        address = self._endpoints.find(actor)
        if address is None or not self._lives(address):
            return
        request, proof = seal(self._endpoints.token, asdict(replace(self._ticket, start=self._position)))
        with fl.FlightClient(f"grpc://{address}") as client:
            writer, stream = client.do_exchange(fl.FlightDescriptor.for_command(request))
            self._serving = (address, stream)
            looked = time.monotonic()
            try:
                for chunk in stream:
                    self._take_in(chunk, proof)
                    if self._stopped.is_set():
                        return
                    if actor != self._actors[0] and time.monotonic() - looked > _HOME_S:
                        looked = time.monotonic()
                        home = self._endpoints.find(self._actors[0])
                        if home and self._lives(home):
                            return
            except fl.FlightServerError as error:
                if error.extra_info:  # it lives and says that it cannot serve
                    raise _error_of(Refusal.decode(error.extra_info)) from error
                raise
            finally:
                self._serving = None
                stream.cancel()
                with suppress(fl.FlightError, pa.ArrowException, OSError):  # ended by us, or by what is being raised
                    writer.close()

    def _take_in(self, chunk: fl.FlightStreamChunk, proof: str) -> None:
        expected = f"{self._position} {proof}"
        if chunk.app_metadata.to_pybytes().decode() != expected:
            raise ConnectionError("somebody else answers where an actor was")
        self._batches.put(Batch(self._position, from_arrow(chunk.data), {}))
        self._position += self._ticket.every * self._ticket.global_batch
        self._delivered = time.monotonic()

    def _lives(self, address: str) -> bool:
        """Whether one of the run's actors answers there, soon."""
        request, proof = seal(self._endpoints.token, {})
        try:
            with fl.FlightClient(f"grpc://{address}") as client:
                options = fl.FlightCallOptions(timeout=_PING_S)
                answers = list(client.do_action(fl.Action("ping", request), options))
        except Exception:  # whatever pyarrow makes of a connection that breaks, or of a stranger
            return False
        return [answer.body.to_pybytes() for answer in answers] == [proof.encode()]


def _kinds(columns: Columns) -> dict[str, object]:
    return {name: (values.dtype, values.shape[1:]) for name, values in columns.items()}  # type: ignore[union-attr]


def _error_of(refusal: Refusal) -> TransformError | TransformersLostError:
    """The user's mistake, or else trouble with the data, which may have passed when the rank is started again."""
    if refusal.error == TransformError.__name__:
        return TransformError(refusal.message)
    return TransformersLostError(f"an actor cannot read the data: {refusal.message}")
