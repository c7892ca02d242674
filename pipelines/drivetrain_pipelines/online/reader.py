"""A rank's side of online transforms: batches in order, from actors that may die at any time."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pyarrow.flight as fl

from drivetrain_pipelines.errors import TransformError, TransformersLostError
from drivetrain_pipelines.online.wire import Endpoints, Refusal, Ticket, from_arrow
from drivetrain_pipelines.stream.reader import Batch

_AHEAD = 2  # batches kept of each actor; the rest waits in the actor, held back by the connection's flow control
_SUSPICIOUS_S = 5.0  # without a batch the actor is asked whether it lives
_PATIENCE_S = 300.0  # for any actor to deliver; long enough for a node to be replaced
_PAUSE_S = 0.2
_BROKEN = (fl.FlightError, OSError, ValueError)  # what pyarrow raises when a connection breaks


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
        while True:
            for stream in self._streams:
                yield stream.take()

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
        self._thread = threading.Thread(target=self._run, name="online-reader", daemon=True)
        self._thread.start()

    def take(self) -> Batch:
        """The next batch; raises what made it impossible."""
        while True:
            try:
                item = self._batches.get(timeout=_SUSPICIOUS_S)
            except queue.Empty:
                self._hang_up_on_the_dead()
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stopped.set()
        self._hang_up()
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
        position, last, problem = self._ticket.start, time.monotonic(), "none has started yet"
        while not self._stopped.is_set():
            for actor in self._actors:
                try:
                    for batch in self._receive(actor, position):
                        self._batches.put(batch)
                        position = batch.position + self._ticket.every * self._ticket.global_batch
                        last = time.monotonic()
                        if self._stopped.is_set():
                            return
                except fl.FlightServerError as error:
                    if error.extra_info:  # it lives and says that it cannot serve
                        raise _error_of(Refusal.decode(error.extra_info)) from error
                    problem = str(error)
                except _BROKEN as error:
                    problem = str(error)
            if time.monotonic() - last > _PATIENCE_S:
                raise TransformersLostError(f"no transforming actor has delivered for {_PATIENCE_S:g} s: {problem}")
            self._stopped.wait(random.uniform(0, 2 * _PAUSE_S))

    def _receive(self, actor: int, position: int) -> Iterator[Batch]:
        address = self._endpoints.find(actor)
        if address is None:
            return
        ticket = Ticket(**{**vars(self._ticket), "start": position})
        with fl.FlightClient(f"grpc://{address}") as client:
            ask = fl.FlightDescriptor.for_command(ticket.encode())
            writer, stream = client.do_exchange(ask, self._options())
            self._serving = (address, stream)
            try:
                for chunk in stream:
                    yield Batch(int(chunk.app_metadata.to_pybytes()), from_arrow(chunk.data), {})
            finally:
                self._serving = None
                stream.cancel()
                with suppress(*_BROKEN):  # it was ended by us, or by what is being raised
                    writer.close()

    def _hang_up_on_the_dead(self) -> None:
        """A process that is stopped, or behind a cut cable, keeps its connections; but it answers nothing."""
        if self._serving is None:
            return
        address, stream = self._serving
        try:
            with fl.FlightClient(f"grpc://{address}") as client:
                list(client.do_action(fl.Action("ping", b""), self._options(timeout_s=_SUSPICIOUS_S)))
        except _BROKEN:
            stream.cancel()

    def _hang_up(self) -> None:
        if serving := self._serving:
            serving[1].cancel()

    def _options(self, timeout_s: float | None = None) -> fl.FlightCallOptions:
        headers = [(b"authorization", f"Bearer {self._endpoints.token}".encode())]
        return fl.FlightCallOptions(timeout=timeout_s, headers=headers)


def _error_of(refusal: Refusal) -> TransformError | TransformersLostError:
    """The user's mistake, or else trouble with the data, which may have passed when the rank is started again."""
    if refusal.error == TransformError.__name__:
        return TransformError(refusal.message)
    return TransformersLostError(f"an actor cannot read the data: {refusal.message}")
