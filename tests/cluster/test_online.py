"""Online transforms: real Flight servers in separate processes; kills, stops and unauthorized clients."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import yaml
from drivetrain.api.runs import validate
from drivetrain_pipelines.errors import InputError, TransformError, TransformersLostError
from drivetrain_pipelines.online.actor import TransformServer
from drivetrain_pipelines.online.reader import OnlineReader
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.online.wire import Endpoints, Ticket, seal, to_arrow
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.json_files import read_json
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset
from drivetrain_pipelines.stream.reader import StreamReader

from tests.cluster.harness import run_job, wait_until
from tests.unit.datasets import make_dataset

BATCH, SEED = 16, 3
CODE = """
import numpy as np


def noisy(sample, random):
    return {"label": sample["label"], "x": sample["tokens"] + random.normal(size=5)}


def broken(sample, random):
    if sample["label"][0] == 77:
        raise ValueError("seventy-seven")
    return {"label": sample["label"]}


def binary(sample, random):
    if sample["label"][0] == 77:
        raise UnicodeDecodeError("utf-8", bytes(range(256)) * 100, 0, 1, "invalid start byte")
    return {"label": sample["label"]}


def wide(sample, random):
    return {"label": sample["label"], "x": np.zeros(1 << 16)}
"""


def data_spec(function: str) -> DataSpec:
    return DataSpec(
        source="anywhere", lanes=4, shuffle_window=64, online={"transform": f"augment:{function}", "actors": 2}
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "augment.py").write_text(CODE)
    return make_dataset(tmp_path / "data", [300, 200, 500])


class Servers:
    """Actors' servers, as processes without Ray around them."""

    def __init__(self, folder: Path, function: str) -> None:
        self._folder, self._function = folder, function
        self.endpoints = Endpoints(folder / "endpoints")
        self.endpoints.create()
        self.processes: dict[int, multiprocessing.process.BaseProcess] = {}

    def start(self, *numbers: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        for number in numbers:
            self.processes[number] = spawn.Process(target=_serve, args=(self._folder, self._function, number))
            self.processes[number].start()
        for process in (self.processes[number] for number in numbers):
            while process.pid not in self._published():
                assert process.is_alive()
                threading.Event().wait(0.05)

    def signal(self, number: int, what: signal.Signals) -> None:
        pid = self.processes[number].pid
        assert pid
        os.kill(pid, what)

    def _published(self) -> list[int]:
        return [read_json(path)["pid"] for path in (self._folder / "endpoints").glob("actor-*.json")]


def _serve(folder: Path, function: str, number: int) -> None:
    endpoints = Endpoints(folder / "endpoints")
    server = TransformServer("127.0.0.1", endpoints.token, str(folder / "data"), data_spec(function), SEED, str(folder))
    endpoints.publish(number, f"127.0.0.1:{server.port}", endpoints.token)
    server.serve()


@pytest.fixture
def servers(tmp_path: Path, dataset: Dataset) -> Iterator[Callable[[str], Servers]]:
    made: list[Servers] = []

    def start(function: str) -> Servers:
        made.append(Servers(tmp_path, function))
        made[-1].start(0, 1)
        return made[-1]

    yield start
    for process in (process for servers in made for process in servers.processes.values()):
        process.kill()
        process.join()


def expected(dataset: Dataset, rows: slice, steps: range) -> list[np.ndarray]:
    """Return the batches of a rank without actors."""
    namespace: dict = {}
    exec(CODE, namespace)
    transform = OnlineTransform(namespace["noisy"], SEED)
    order = open_dataset(dataset.folder.location, data_spec("noisy")).training_order(data_spec("noisy"), SEED)
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, order, BATCH, rows, steps.start * BATCH)
    made = []
    for batch, _ in zip(reader, steps, strict=False):
        positions = order.positions(batch.position, BATCH, rows)
        made.append(transform.apply(batch.columns, positions)["x"])
    reader.close()
    arena.close()
    return made


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_stream_is_that_of_a_rank_alone(dataset: Dataset, servers, world_size: int) -> None:
    endpoints = servers("noisy").endpoints
    for rank in range(world_size):
        rows = slice(BATCH * rank // world_size, BATCH * (rank + 1) // world_size)
        reader = OnlineReader(endpoints, 2, BATCH, rows, 5 * BATCH)
        batches = [(batch.position, batch.columns["x"]) for batch, _ in zip(reader, range(30), strict=False)]
        reader.close()
        assert [position for position, _ in batches] == [step * BATCH for step in range(5, 35)]
        made = [values for _, values in batches]
        assert all(map(np.array_equal, made, expected(dataset, rows, range(5, 35))))


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_actors_come_and_go(dataset: Dataset, servers, harm: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is lost, the other serves both; then that one is lost too, and a successor of the first serves all."""
    monkeypatch.setattr("drivetrain_pipelines.online.reader._PING_AFTER_S", 0.5)
    running = servers("noisy")
    reader = OnlineReader(running.endpoints, 2, BATCH, slice(0, BATCH), 0)
    made = []
    for batch, step in zip(reader, range(60), strict=False):
        made.append(batch.columns["x"].copy())
        if step == 10:
            running.signal(0, harm)
        if step == 30:
            running.signal(0, signal.SIGKILL)
            running.processes[0].join()
            running.signal(1, harm)
            running.start(0)
    reader.close()
    assert all(map(np.array_equal, made, expected(dataset, slice(0, BATCH), range(60))))


@pytest.mark.parametrize(
    ("function", "error"), [("broken", "ValueError: seventy-seven"), ("binary", "UnicodeDecodeError")]
)
def test_the_users_mistake_ends_the_stream(servers, function: str, error: str) -> None:
    reader = OnlineReader(servers(function).endpoints, 2, BATCH, slice(0, BATCH), 0)
    with pytest.raises(TransformError, match=rf"raised {error}.*; the sample is at position \d+"):
        for _ in zip(reader, range(200), strict=False):
            pass
    reader.close()


def test_damaged_data_is_not_called_the_users_mistake(servers, dataset: Dataset) -> None:
    endpoints = servers("noisy").endpoints
    for path in Path(dataset.folder.location).glob("train-*.arrow"):
        path.write_bytes(b"x" * path.stat().st_size)
    reader = OnlineReader(endpoints, 2, BATCH, slice(0, BATCH), 0)
    with pytest.raises(TransformersLostError, match=r"cannot read the data: .*train-0000\d\.arrow is corrupt"):
        next(iter(reader))
    reader.close()


def test_nobody_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain_pipelines.online.reader._TIMEOUT_S", 1.0)
    endpoints = Endpoints(tmp_path / "endpoints")
    endpoints.create()
    reader = OnlineReader(endpoints, 2, BATCH, slice(0, BATCH), 0)
    with pytest.raises(TransformersLostError, match="no actor has started yet"):
        next(iter(reader))
    reader.close()


@pytest.mark.parametrize("token", [None, "wrong"])
def test_strangers_are_turned_away(servers, token: str | None) -> None:
    running = servers("noisy")
    ticket = asdict(Ticket(0, 1, BATCH, 0, BATCH))
    request = seal(token, ticket)[0] if token else json.dumps(ticket).encode()
    with fl.FlightClient(f"grpc://{running.endpoints.find(0)}") as client:
        with pytest.raises(fl.FlightUnauthenticatedError):
            client.do_exchange(fl.FlightDescriptor.for_command(request))[1].read_chunk()
        with pytest.raises(fl.FlightUnauthenticatedError):
            list(client.do_action(fl.Action("ping", request)))
    assert (running._folder / "endpoints" / "token").stat().st_mode & 0o777 == 0o600


class _Impostor(fl.FlightServerBase):
    """Listens at the address of an actor, accepts everything, and records what it receives."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.received: list[bytes] = []

    def do_action(self, _, action: fl.Action) -> list[bytes]:
        self.received.append(action.body.to_pybytes())
        return [b"yes"]

    def do_exchange(self, _, ask: fl.FlightDescriptor, __, answer: fl.FlightStreamWriter) -> None:
        self.received.append(ask.command)
        batch = to_arrow({"x": np.zeros((BATCH, 5))})
        answer.begin(batch.schema)
        answer.write_with_metadata(batch, pa.py_buffer(b"0 yes"))


def test_an_impostor_is_neither_told_nor_believed(dataset: Dataset, servers) -> None:
    running = servers("noisy")
    impostor = _Impostor()
    threading.Thread(target=impostor.serve, daemon=True).start()
    running.endpoints.publish(0, f"127.0.0.1:{impostor.port}", running.endpoints.token)
    reader = OnlineReader(running.endpoints, 2, BATCH, slice(0, BATCH), 0)
    made = [batch.columns["x"] for batch, _ in zip(reader, range(10), strict=False)]
    reader.close()
    impostor.shutdown()
    assert all(map(np.array_equal, made, expected(dataset, slice(0, BATCH), range(10))))
    assert impostor.received
    assert not any(running.endpoints.token.encode() in message for message in impostor.received)


def test_closing_does_not_wait_for_the_dead(servers) -> None:
    """Both actors are stopped before any connection; the reader gives up after pings, not connection timeouts."""
    running = servers("noisy")
    for number in range(2):
        running.signal(number, signal.SIGSTOP)
    reader = OnlineReader(running.endpoints, 2, BATCH, slice(0, BATCH), 0)
    threading.Event().wait(0.5)
    reader.close()
    assert all(
        stream._serving is None for stream in reader._flights
    )  # no batch was requested from an unresponsive actor
    assert not [thread for thread in threading.enumerate() if thread.name == "online-reader"]


def test_a_stream_goes_home(servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain_pipelines.online.reader._PREFERRED_CHECK_INTERVAL_S", 0.2)
    running = servers("noisy")
    reader = OnlineReader(running.endpoints, 2, BATCH, slice(0, BATCH), 0)
    batches = iter(reader)
    next(batches)
    running.signal(0, signal.SIGKILL)
    for _ in range(20):
        next(batches)
    running.start(0)
    home = running.endpoints.find(0)
    while reader._flights[0]._serving is None or reader._flights[0]._serving[0] != home:
        next(batches)
    reader.close()


def test_an_actor_does_not_run_ahead_without_bound(servers) -> None:
    """8 MiB per batch: an idle rank buffers two, and the connection's flow control limits the actor."""
    running = servers("wide")
    processes = [psutil.Process(process.pid) for process in running.processes.values()]
    reader = OnlineReader(running.endpoints, 2, BATCH, slice(0, BATCH), 0)
    batches = iter(reader)
    next(batches)
    before = [process.memory_info().rss for process in processes]
    wait_until(lambda: not used_in_a_second(processes))  # they wait
    assert all(p.memory_info().rss - b < 64 << 20 for p, b in zip(processes, before, strict=True))
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "online-reader"]


def used_in_a_second(processes: list[psutil.Process]) -> float:
    """Return the CPU time used in one second by all of them."""

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used()
    threading.Event().wait(1)
    return round(used() - before, 1)


JOB_CODE = """
import torch
import torch.nn.functional as F


def flip(sample, random):
    image = sample["image"]
    if random is not None and random.random() < 0.5:
        image = image[:, ::-1]
    return {"image": image, "label": sample["label"]}


def make(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, classes))


def loss(model, batch):
    return F.cross_entropy(model(batch["image"].float() / 255), batch["label"][:, 0])
"""


@pytest.mark.slow  # streams of actors that die are tested above
def test_a_job_survives_its_actors(pictures: Path, shared_home: Path, tmp_path: Path) -> None:
    """In a whole run; the losses equal those of an undisturbed run, and differ from those without flips."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "model.py").write_text(JOB_CODE + SLOW)
    job = yaml.safe_load((pictures / "job.yaml").read_text())
    job["data"] |= {"source": str(pictures / "raw"), "online": {"transform": "model:flip", "actors": 2}}
    job["model"]["loss"] = "model:slow_loss"
    (tmp_path / "job" / "job.yaml").write_text(yaml.safe_dump(job))
    plain = run_job(tmp_path / "job", shared_home, "data.online=null").finish()
    calm = run_job(tmp_path / "job", shared_home, "checkpoint.every=9").finish()
    assert calm.code == 0, calm.errors
    assert calm.facts["dataset"] == plain.facts["dataset"]
    disturbed = run_job(tmp_path / "job", shared_home, own_ray=True)
    view = disturbed.wait_for_step(8)
    online = shared_home / "runs" / view["run_id"] / "online"
    actors = [read_json(path)["pid"] for path in sorted(online.glob("actor-*.json"))]
    os.kill(actors[0], signal.SIGKILL)
    disturbed.wait_for_step(16)
    os.kill(actors[1], signal.SIGKILL)
    disturbed.kill_part("rank-0", 20)
    processes = disturbed.descendants()
    result = disturbed.finish()
    assert result.code == 0, result.errors
    assert result.series("loss") == calm.series("loss")
    assert result.series("eval_loss") == calm.series("eval_loss")
    assert plain.series("loss") != calm.series("loss")
    assert result.facts["eval_loss"] < 0.4  # 0.69 is chance
    assert psutil.wait_procs(processes, timeout=60)[1] == []


SLOW = """

def slow_loss(model, batch):
    import time
    time.sleep(0.12)
    return loss(model, batch)
"""


def test_a_wrong_function_is_named_before_anything_starts(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"data\.online\.transform"):
        validate(str(pictures), ["data.online={transform: model:flop}"])
