"""A rank's batches from transforming servers in this process, on loopback."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from drivetrain_pipelines.errors import TransformError, TransformersLostError
from drivetrain_pipelines.online import reader
from drivetrain_pipelines.online.actor import TransformServer
from drivetrain_pipelines.online.reader import OnlineReader
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.online.wire import Endpoints, Ticket
from drivetrain_pipelines.spec import DataSpec, OnlineSpec
from drivetrain_pipelines.stream.dataset import Dataset
from drivetrain_pipelines.stream.reader import StreamReader

from tests.unit.datasets import make_dataset

GLOBAL_BATCH, SEED = 6, 3
ROWS = slice(2, 5)
CODE = """
def add_noise(sample, random):
    return {"x": sample["tokens"] + random.normal(), "label": sample["label"]}

def fail(sample, random):
    raise KeyError("pixels")

def add_noise_as_integers(sample, random):
    return {"x": sample["tokens"], "label": sample["label"]}
"""


class Server(TransformServer):
    """A server whose connections a test can break, like the death of its process."""

    def __init__(self, *arguments: Any) -> None:
        self.dead = threading.Event()
        super().__init__(*arguments)

    def do_action(self, context: Any, action: fl.Action) -> list[bytes]:
        if self.dead.is_set():
            raise ConnectionError("the process is gone")
        return super().do_action(context, action)

    def _serve(self, ticket: Ticket, proof: str, writer: fl.FlightStreamWriter) -> None:
        super()._serve(ticket, proof, Connection(writer, self.dead))


@dataclass(frozen=True)
class Connection:
    """A connection of a server that may die."""

    writer: fl.FlightStreamWriter
    dead: threading.Event

    def begin(self, schema: pa.Schema) -> None:
        self.writer.begin(schema)

    def write_with_metadata(self, *arguments: Any) -> None:
        if self.dead.is_set():
            raise ConnectionError("the process is gone")
        self.writer.write_with_metadata(*arguments)


class Actors:
    """The servers of a run. Each can be stopped, and restarted on another port."""

    def __init__(self, folder: Path) -> None:
        self.dataset: Dataset = make_dataset(folder / "data", [20, 13])
        self.endpoints = Endpoints(folder / "online")
        self.endpoints.create()
        self._code = folder / "code"
        self._code.mkdir()
        (self._code / "online_reader_code.py").write_text(CODE)
        self._running: dict[int, Server] = {}
        self._all: list[Server] = []

    def spec(self, function: str = "add_noise") -> DataSpec:
        online = OnlineSpec(transform=f"online_reader_code:{function}", actors=2)
        return DataSpec(source="anything", lanes=2, shuffle_window=4, online=online)

    def start(self, number: int, function: str = "add_noise", token: str | None = None) -> None:
        token = token or self.endpoints.token
        arguments = self.dataset.folder.location, self.spec(function), SEED, str(self._code)
        server = Server("127.0.0.1", token, *arguments)
        self.endpoints.publish(number, f"127.0.0.1:{server.port}", self.endpoints.token)
        self._running[number] = server
        self._all.append(server)

    def end(self, number: int) -> None:
        self._running.pop(number).dead.set()

    def read(self, start: int = 0) -> OnlineReader:
        return OnlineReader(self.endpoints, 2, GLOBAL_BATCH, ROWS, start)

    def expected(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the same batches without servers."""
        order = self.dataset.training_order(self.spec(), SEED)
        transform = OnlineTransform.of(self.spec(), self._code, SEED)
        assert transform
        arena, files = self.dataset.open("train")
        local = StreamReader(arena, files, order, GLOBAL_BATCH, ROWS, start)
        try:
            for batch in local:
                positions = order.positions(batch.position, GLOBAL_BATCH, ROWS)
                yield batch.position, {**transform.apply(batch.columns, positions)}
        finally:
            local.close()
            arena.close()

    def close(self) -> None:
        for server in self._all:
            server.shutdown()  # waits for its connections to end


@pytest.fixture
def actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    monkeypatch.setattr(reader, "_RETRY_DELAY_S", 0.01)
    monkeypatch.setattr(sys, "path", [*sys.path])
    actors = Actors(tmp_path)
    yield actors
    actors.close()
    sys.modules.pop("online_reader_code", None)  # the module of the next test is in another folder


def assert_same(batches: Iterator[Any], expected: Iterator[tuple[int, dict[str, Any]]], count: int) -> None:
    for batch, (position, columns) in zip(islice(batches, count), expected, strict=False):
        assert batch.position == position
        assert batch.columns.keys() == columns.keys()
        for name, values in columns.items():
            assert np.array_equal(batch.columns[name], values)


@pytest.mark.parametrize("start", [0, 10 * GLOBAL_BATCH])
def test_batches_have_the_order_of_the_stream(actors: Actors, start: int) -> None:
    for number in range(2):
        actors.start(number)
    with closing(actors.read(start)) as batches:
        assert_same(iter(batches), actors.expected(start), 20)


def test_any_actor_can_replace_another(actors: Actors) -> None:
    """One actor never starts; then the other one stops, and the first starts late."""
    actors.start(0)
    with closing(actors.read()) as batches:
        stream, expected = iter(batches), actors.expected()
        assert_same(stream, expected, 9)
        actors.end(0)
        actors.start(1)
        assert_same(stream, expected, 20)


def test_a_restarted_actor_is_found_at_its_new_address(actors: Actors) -> None:
    for number in range(2):
        actors.start(number)
    with closing(actors.read()) as batches:
        stream, expected = iter(batches), actors.expected()
        for number in (0, 1, 0):
            assert_same(stream, expected, 7)
            actors.end(number)
            actors.start(number)
        assert_same(stream, expected, 20)


def test_a_server_without_the_token_is_not_trusted(actors: Actors) -> None:
    """It has taken over the port of a dead actor."""
    actors.start(0, "add_noise_as_integers", token="of another run")
    actors.start(1)
    with closing(actors.read()) as batches:
        assert_same(iter(batches), actors.expected(), 10)


class Imposter(fl.FlightServerBase):
    """Answers every request without knowing the token."""

    def __init__(self) -> None:
        self.requests = 0
        super().__init__("grpc://127.0.0.1:0")

    def do_action(self, _: Any, action: fl.Action) -> list[bytes]:
        return [b"I live"]

    def do_exchange(self, _: Any, request: Any, __: Any, writer: fl.FlightStreamWriter) -> None:
        self.requests += 1


def test_a_server_without_a_proof_gets_no_request(actors: Actors) -> None:
    imposter = Imposter()
    actors.endpoints.publish(0, f"127.0.0.1:{imposter.port}", actors.endpoints.token)
    actors.start(1)
    with closing(actors.read()) as batches:
        assert_same(iter(batches), actors.expected(), 10)
    assert imposter.requests == 0
    imposter.shutdown()


def test_an_error_of_the_users_code_ends_the_stream(actors: Actors) -> None:
    for number in range(2):
        actors.start(number, "fail")
    with (
        closing(actors.read()) as batches,
        pytest.raises(
            TransformError, match=r"raised KeyError: 'pixels' \(online_reader_code\.py:6, in fail\); the sample"
        ),
    ):
        next(iter(batches))


class Crashing(Server):
    """A server whose process ends with each batch that it makes, and is restarted."""

    def _serve(self, ticket: Ticket, proof: str, writer: fl.FlightStreamWriter) -> None:
        self.dead.set()
        threading.Timer(0.1, self.dead.clear).start()
        raise ConnectionError("the process is gone")


def test_a_transform_that_ends_its_process_is_an_error_of_the_users_code(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Server", Crashing)
    for number in range(2):
        actors.start(number)
    with closing(actors.read()) as batches, pytest.raises(TransformError, match=r"ended 10 times .* at position 0"):
        next(iter(batches))


def test_actors_with_different_types(actors: Actors) -> None:
    actors.start(0)
    actors.start(1, "add_noise_as_integers")
    with closing(actors.read()) as batches:
        stream = iter(batches)
        next(stream)
        with pytest.raises(TransformError, match="another type or shape than before"):
            next(stream)


def test_corrupt_data_raises_an_error_that_restarts_the_rank(actors: Actors) -> None:
    for number in range(2):
        actors.start(number)
    for path in Path(actors.dataset.folder.location).glob("*.arrow"):
        path.write_bytes(b"short")
    problem = r"an actor cannot read the data: .*5 bytes"
    with closing(actors.read()) as batches, pytest.raises(TransformersLostError, match=problem):
        next(iter(batches))


def test_actors_that_never_start(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TIMEOUT_S", 0.0)
    problem = "no transforming actor has delivered for 0 s: no actor has started yet"
    with closing(actors.read()) as batches, pytest.raises(TransformersLostError, match=problem):
        next(iter(batches))


def test_closing_ends_all_threads(actors: Actors) -> None:
    for number in range(2):
        actors.start(number)
    batches = actors.read()
    next(iter(batches))
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "online-reader"]
