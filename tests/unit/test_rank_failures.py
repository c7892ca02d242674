"""Failures of real ranks: a real fork server, DeepSpeed and the job's code, supervised without Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivetrain.home import Home
from drivetrain.job.spec import JobSpec
from drivetrain_pipelines.prepare.prepare import prepare
from drivetrain_workers.agent.fork_server_process import ForkServerProcess
from drivetrain_workers.agent.rank_supervisor import Link, RankSupervisor
from drivetrain_workers.protocol.events import AgentEvent, RankEnded, RankEvent, RankExited, TrainingFinished
from drivetrain_workers.protocol.messages import Generation, Message, RankTask
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.run_folder import RunFolder

from tests.unit.runs import home_in, job, make_run, prepare_shards, write_numbers

_CODE = """
import os, signal, sys, threading
import torch

CALLS = []


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise FileNotFoundError("in the backward pass")


def make():
    return torch.nn.Linear(1, 1)


def forward(model, batch):
    CALLS.append(1)
    return ((model(batch["x"].float() / 200) - batch["label"].float()) ** 2).mean()


def loss(model, batch):
    return forward(model, batch)


def metrics(model, batch):
    return {"one": 1.0}
"""


class Node:
    """A node with one rank, and the events of the newest generation."""

    def __init__(self, folder: Path, dataset: str, make: Callable[[str], RunFolder]) -> None:
        self._dataset, self._make, self._number = dataset, make, 0
        self._events: queue.Queue[AgentEvent] = queue.Queue()
        self._folder: Path | None = None
        self.ranks = RankSupervisor(self._task, range(1), self._events.put, None, _after)
        self.server = ForkServerProcess(1, False, folder / "fork-server.log", self._receive)

    def run(self, code: str) -> list[RankEvent]:
        """Train a job with this code; return the events of its rank, the end last."""
        self._number += 1
        self._folder = self._make(f"toy-{self._number}").path
        (self._folder / "code" / "model.py").write_text(code)
        rendezvous = f"file://{self._folder}/rendezvous"
        self.ranks.start(Generation(self._number, 1, rendezvous))
        found: list[RankEvent] = []
        while not found or not isinstance(found[-1], RankEnded | RankExited):
            event = self._events.get(timeout=120)
            if isinstance(event, RankEvent) and event.source.generation == self._number:
                found.append(event)
        return found

    def _task(self, rank: int, generation: Generation) -> RankTask:
        return RankTask(
            self.server.endpoint, rank, rank, 1, generation, str(self._folder), self._dataset, f"{self._folder}/memory"
        )

    def _receive(self, message: Message, link: Link) -> None:
        self.ranks.receive(message, link)


def _after(seconds: float, work: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:
        home: Home = home_in(folder / "home", patch)
        spec: JobSpec = job(
            data={"source": str(write_numbers(folder / "numbers.csv"))},
            model={"factory": "model:make", "loss": "model:loss", "metrics": "model:metrics"},
            training={"eval_every": 2},
        )
        prepare_shards(spec.data, home, folder)
        prepared = prepare(spec.data, str(home.datasets), home.downloads, folder, 1, lambda *_: None)
        found = Node(folder, prepared.folder.location, lambda run: make_run(home, run, spec))
        yield found
        found.server.kill()


def body(function: str, *lines: str) -> str:
    """Return the code with lines at the beginning of a function."""
    head = f"def {function}("
    before, _, after = _CODE.partition(head)
    signature, _, rest = after.partition("\n")
    return f"{before}{head}{signature}\n" + "".join(f"    {line}\n" for line in lines) + rest


def test_a_rank_that_trains_to_the_end_says_so(node: Node) -> None:
    *before, last = node.run(_CODE)
    assert isinstance(last, RankExited)
    assert last.code == 0
    assert isinstance(before[-1], TrainingFinished)


def line_of(code: str, text: str) -> int:
    return next(number for number, line in enumerate(code.splitlines(), 1) if text in line)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize(
    "place",
    [
        "import",
        "make",
        "loss",
        "metrics",  # during the evaluation
        "thread",
    ],
)
def test_a_rank_that_ends_itself_has_failed(node: Node, place: str, code: int) -> None:
    ends = f"os._exit({code})"
    source = {
        "import": f"{_CODE}\n{ends}\n",
        "thread": body("loss", f"threading.Thread(target=lambda: {ends}).start()", "signal.pause()"),
    }.get(place) or body(place, ends)
    *before, last = node.run(source)
    assert isinstance(last, RankEnded)
    assert (last.code, last.reason) == (code, Reason.USER_CODE)
    assert "its end was not reported" in last.message
    assert not any(isinstance(event, TrainingFinished) for event in before)


@pytest.mark.parametrize("place", ["make", "loss", "metrics"])
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("open('/no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("raise OSError(28, 'No space left')", "OSError: [Errno 28] No space left"),
        ("raise torch.distributed.DistBackendError('odd')", None),
        ("raise MemoryError", None),
        ("raise torch.OutOfMemoryError('CUDA out of memory')", None),
        ("torch.load('/no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("import botocore.exceptions as b; raise b.NoCredentialsError", "NoCredentialsError: Unable to locate"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
    ],
)
def test_an_exception_of_the_jobs_code_is_of_it(node: Node, place: str, statement: str, problem: str | None) -> None:
    source = body(place, statement)
    *_, last = node.run(source)
    assert isinstance(last, RankEnded)
    if problem is None:  # memory and peers can be lost anywhere
        assert last.reason is (Reason.COLLECTIVE if "Dist" in statement else Reason.OUT_OF_MEMORY)
        return
    assert last.reason is Reason.USER_CODE, last
    key = {"make": "model.factory"}.get(place, f"model.{place}")
    assert last.message.startswith(f"{key} raised {problem}")
    assert last.message.endswith(f"(model.py:{line_of(source, statement)}, in {place})")


def test_an_exception_in_the_backward_pass_is_of_the_jobs_code(node: Node) -> None:
    *_, last = node.run(body("loss", "return Odd.apply(forward(model, batch))"))
    assert isinstance(last, RankEnded)
    assert last.reason is Reason.USER_CODE
    assert last.message.startswith("the job's code raised FileNotFoundError: in the backward pass (model.py:")
    *_, last = node.run(
        body(
            "loss",
            "x = forward(model, batch) * 1.0",
            "y = x.exp()",
            "x.detach().mul_(2)",
            "y.detach().add_(1)",
            "return y",
        )
    )
    assert isinstance(last, RankEnded)
    assert last.reason is Reason.USER_CODE  # torch found it, in the graph of the job
    assert "modified by an inplace operation" in last.message


@pytest.mark.parametrize(
    ("place", "statement", "message"),
    [
        ("make", "return None", "model.factory: got a function that returned NoneType; allowed: a function that"),
        ("make", "return torch.nn.Module", "model.factory: got a function that returned type; allowed: "),
        ("make", "return torch.nn.ReLU()", "model.factory: got a ReLU without parameters; allowed: a model with"),
        (
            "make",
            "return torch.nn.Linear(1, 1).requires_grad_(False)",
            "model.factory: got a Linear in which requires_grad is False for all parameters",
        ),
        ("loss", "return None", "model.loss: got a function that returned a value of type NoneType; allowed: "),
        (
            "loss",
            "return forward(model, batch).item()",
            "model.loss: got a function that returned a value of type float",
        ),
        (
            "loss",
            "return forward(model, batch)[None]",
            "model.loss: got a function that returned a tensor [1] of torch.fl",
        ),
        (
            "loss",
            "return forward(model, batch).long()",
            "model.loss: got a function that returned a tensor [] of torch.int",
        ),
        (
            "loss",
            "return forward(model, batch).detach()",
            "model.loss: got a function that returned a loss without a grad",
        ),
        ("loss", "return (forward(model, batch), 1)", "model.loss: got a function that returned a value of type tuple"),
        (
            "metrics",
            "return None",
            "model.metrics: got a function that returned None (NoneType); allowed: a dictionary, by name",
        ),
        ("metrics", "return {'a': '0.5'}", "model.metrics: got a function that returned 'a' = '0.5' (str)"),
        (
            "metrics",
            "return {'a': torch.ones(2)}",
            "model.metrics: got a function that returned 'a' = Tensor of shape [2]; allowed: a number",
        ),
    ],
)
def test_a_wrong_result_is_one_sentence_with_its_key(node: Node, place: str, statement: str, message: str) -> None:
    *_, last = node.run(body(place, statement))
    assert isinstance(last, RankEnded)
    assert last.reason is Reason.INPUT, last
    assert last.message.startswith(message)


def test_a_killed_rank_is_no_fault_of_the_code(node: Node) -> None:
    *_, last = node.run(body("loss", "os.kill(os.getpid(), signal.SIGKILL)"))
    assert isinstance(last, RankEnded)
    assert (last.code, last.reason) == (-9, Reason.RANK_KILLED)


def test_unreadable_data_is_a_fault_of_storage(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_dataset", "/no/such/dataset")
    *_, last = node.run(_CODE)
    assert isinstance(last, RankEnded)
    assert last.reason is Reason.STORAGE
