"""`drivetrain validate --try`: what it tries, and the sentence for each mistake that only a try can find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from drivetrain.api.runs import validate
from drivetrain.job.loading import load_job
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.model_processes.requests import Trial, TryRequest
from drivetrain_workers.trial import main

MODEL = """
import torch

def make(width=1):
    return torch.nn.Linear(width, 1)

def loss(model, batch):
    return ((model(batch["x"].float().reshape(-1, 1)) - batch["y"].float().reshape(-1, 1)) ** 2).mean()
"""
ROWS = "x,y\n" + "".join(f"{n},{2 * n}\n" for n in range(50))
JOB: dict[str, Any] = {
    "name": "toy",
    "data": {"source": "data.csv", "columns": ["x", "y"]},
    "model": {"factory": "model:make", "loss": "model:loss"},
    "training": {"steps": 3, "global_batch_size": 4},
}
TEXT = {"source": "text.txt", "tokenizer": {"vocab_size": 300}, "sequence_length": 16}
LANGUAGE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.words = torch.nn.Embedding(vocab_size, 8)
        self.out = torch.nn.Linear(8, vocab_size)

    def forward(self, tokens):
        return self.out(self.words(tokens))
"""


def job(folder: Path, files: dict[str, str] | None = None, changes: dict[str, Any] | None = None) -> Path:
    """Write a job with changes of its keys, and its files; return its folder."""
    folder.mkdir(exist_ok=True)
    for name, text in {"data.csv": ROWS, "model.py": MODEL, **(files or {})}.items():
        (folder / name).write_text(text)
    document = json.loads(json.dumps(JOB))
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder


def tried(folder: Path) -> Trial:
    """Try a job in this process."""
    checked = load_job(str(folder))
    code = folder.parent / f"{folder.name}-code"
    checked.code.write(code)
    left_out = {name: str(why) for name, why in checked.code.left_out.items()}
    settings, gpus = checked.spec.model_dump(mode="json"), checked.spec.resources.gpus_per_worker
    request = TryRequest(settings, str(code), str(folder.parent / "downloads"), gpus, left_out)
    return Trial(**json.loads(main.try_job(request)))


def test_what_is_tried(tmp_path: Path) -> None:
    trial = tried(job(tmp_path / "job"))
    assert (trial.records, trial.samples, trial.rows, trial.parameters) == (50, 50, 4, 2)
    assert trial.loss != trial.eval_loss
    assert trial.skipped == []
    assert trial.device == "cpu"


def test_every_function_of_a_job_is_called(tmp_path: Path) -> None:
    called = tmp_path / "called"
    note = f"    with open({str(called)!r}, 'a') as file:\n        file.write('NAME ')\n"
    code = MODEL + "".join(
        f"def {signature}:\n{note.replace('NAME', signature.partition('(')[0])}    return {result}\n"
        for signature, result in (
            ("weight(batch)", "4"),
            ("metrics(model, batch, context)", "{'half': float(context.training)}"),
            ("predict(model, batch)", "{'x': batch['x']}"),
            ("outcomes(model, batch)", "{'error': batch['x']}"),
            ("transform(record)", "{**record, 'y': float(record['y']) + 1}"),
            ("augment(sample, random)", "{**sample, 'x': sample['x'] + (0 if random is None else 1)}"),
        )
    )
    names = ("weight", "metrics", "predict", "outcomes")
    changes = {f"model.{name}": f"model:{name}" for name in names}
    changes |= {"data.transform": "model:transform", "data.online": {"transform": "model:augment"}}
    trial = tried(job(tmp_path / "job", {"model.py": code}, changes))
    assert trial.metrics == {"half": 0.0}
    assert set(called.read_text().split()) == {*names, "transform", "augment"}


def test_text_with_a_sample(tmp_path: Path) -> None:
    files = {"text.txt": "some words of text\n" * 200, "model.py": LANGUAGE}
    changes = {"data": TEXT, "model": {"factory": "model:Net"}, "sample": {"prompt": "some"}}
    trial = tried(job(tmp_path / "job", files, changes))
    assert trial.records == 1
    assert trial.samples > 4


def test_only_the_first_records_are_read(tmp_path: Path) -> None:
    """The rest of a large file may be anything."""
    rows = "".join(f'{{"x": {n}, "y": {n}, "text": "{"x" * 1000}"}}\n' for n in range(3000))
    files = {"data.jsonl": rows + "x" * (2 << 20)}
    trial = tried(job(tmp_path / "job", files, {"data.source": "data.jsonl"}))
    assert trial.records == 1000
    folder = job(tmp_path / "csv", {"data.csv": ROWS + '1,"2"\n' * 400_000 + "1,2,3\n"})
    assert tried(folder).records == 1000


MISTAKES: dict[str, tuple[dict[str, str], dict[str, Any], str, tuple[str, ...]]] = {
    "vector loss": (
        {"model.py": MODEL.replace(".mean()", "")},
        {},
        "model.loss",
        ("a tensor [4, 1]", "Reduce it with .mean()."),
    ),
    "loss that is a number": (
        {"model.py": MODEL.replace(".mean()", ".mean().item()")},
        {},
        "model.loss",
        ("a value of type float",),
    ),
    "loss without gradient": (
        {"model.py": MODEL.replace(".mean()", ".mean().detach()")},
        {},
        "model.loss",
        ("a loss without a gradient", "detach()"),
    ),
    "loss that is not finite": (
        {"model.py": MODEL.replace(".mean()", ".mean() / 0")},
        {},
        "model.loss",
        ("returned inf for the first samples",),
    ),
    "no parameters": (
        {"model.py": MODEL.replace("torch.nn.Linear(width, 1)", "torch.nn.ReLU()")},
        {},
        "model.factory",
        ("a ReLU without parameters",),
    ),
    "frozen parameters": (
        {"model.py": MODEL.replace("torch.nn.Linear(width, 1)", "torch.nn.Linear(width, 1).requires_grad_(False)")},
        {},
        "model.factory",
        ("a Linear in which requires_grad is False for all parameters",),
    ),
    "factory that raises": (
        {"model.py": MODEL.replace("return torch.nn", "raise ValueError('wrong width')\n    return torch.nn")},
        {},
        "model.factory",
        ("model.py:5: ValueError: wrong width",),
    ),
    "factory that returns nothing": (
        {"model.py": MODEL.replace("return torch.nn.Linear", "torch.nn.Linear")},
        {},
        "model.factory",
        ("returned None", "torch.nn.Module"),
    ),
    "factory that ends the process": (
        {"model.py": MODEL.replace("return torch.nn", "raise SystemExit(0)\n    return torch.nn")},
        {},
        "model.factory",
        ("model.py:5: SystemExit",),
    ),
    "file that is not there": (
        {"model.py": "table = open('table.txt').read()\n" + MODEL},
        {},
        "model.factory",
        ("model.py:1: FileNotFoundError", "The code of a run is the folder of the job file."),
    ),
    "file that git ignores": (
        {"model.py": "table = open('table.txt').read()\n" + MODEL, "table.txt": "x", ".gitignore": "table.*\n"},
        {},
        "model.factory",
        ("leaves out table.txt: it is ignored by git. Name it in model.files",),
    ),
    "data that the code opens itself": (
        {"model.py": "from pathlib import Path\nrows = Path(__file__).with_name('data.csv').read_text()\n" + MODEL},
        {},
        "model.factory",
        ("leaves out data.csv: it is named as data", "model.files"),
    ),
    "missing column": (
        {},
        {"data.columns": ["x", "z"]},
        "data.source",
        ("has no column 'z'; it has 'x', 'y'", "Name the column in the job"),
    ),
    "missing text": (
        {"data.jsonl": '{"body": "words"}\n', "model.py": LANGUAGE},
        {"data": {**TEXT, "source": "data.jsonl"}, "model": {"factory": "model:Net"}},
        "data.source",
        ("line 1: column 'text': it is missing; the record has body",),
    ),
    "column that the loss does not get": (
        {},
        {"data.columns": ["x"]},
        "model.loss",
        ("model.py:8: KeyError: 'y'", "a function that works for the samples (x [4, 1])"),
    ),
    "wrong format": (
        {"data.csv": "\0\1"},
        {"data.format": "parquet"},
        "data.source",
        ("is no file of the format parquet",),
    ),
    "wrong reader": (
        {"model.py": MODEL + "def rows(path):\n    yield {'x': path.read_text().missing}\n"},
        {"data.reader": "model:rows"},
        "data.reader",
        ("model.py:10: AttributeError",),
    ),
    "transform that raises": (
        {"model.py": MODEL + "def change(record):\n    return {'x': record['w']}\n"},
        {"data.transform": "model:change"},
        "data.transform",
        ("model.py:10: KeyError: 'w'",),
    ),
    "online transform that raises": (
        {"model.py": MODEL + "def change(sample, random):\n    return {'x': sample['w']}\n"},
        {"data.online": {"transform": "model:change"}},
        "data.online.transform",
        ("model.py:10: KeyError: 'w'",),
    ),
    "output that is no tensor": (
        {"text.txt": "some words\n" * 200, "model.py": LANGUAGE.replace("return self.out", "return str")},
        {"data": TEXT, "model": {"factory": "model:Net"}},
        "model.factory",
        ("a model that returned a value of type str", "needs a model.loss"),
    ),
    "metrics that are no dictionary": (
        {"model.py": MODEL + "def metrics(model, batch):\n    return 3\n"},
        {"model.metrics": "model:metrics"},
        "model.metrics",
        ("returned 3",),
    ),
    "metric that is not there": (
        {"model.py": MODEL + "def metrics(model, batch):\n    return {'accuracy': 0.5}\n"},
        {"model.metrics": "model:metrics", "training.best": {"metric": "f1", "mode": "max"}},
        "training.best.metric",
        ("got 'f1'; allowed: accuracy, loss",),
    ),
    "storage without credentials": (
        {},
        {"data.source": "s3://bucket-of-no-user/data.csv", "data.storage": {"endpoint_url": "http://127.0.0.1:9"}},
        "s3://bucket-of-no-user/data.csv",
        ("got no credentials", "storage.profile"),
    ),
    "no GPU": ({}, {"resources": {"gpus_per_worker": 1}}, "resources.gpus_per_worker", ("on a machine without a GPU",)),
    "no rows": ({"data.csv": "x,y\n"}, {}, "data.source", ("the data has no records",)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_has_a_sentence(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    files, changes, key, said = MISTAKES[mistake]
    folder = job(tmp_path / "job", files, changes)
    validate(str(folder))  # finds none of them: it runs no code
    with pytest.raises(InputError) as caught:
        tried(folder)
    assert caught.value.where == key, str(caught.value)
    for part in said:
        assert part in str(caught.value)


def drivetrain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "drivetrain"), "validate", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    folder = job(tmp_path / "job", {"model.py": f"print('a line of the model')\n{MODEL}"})
    done = drivetrain(folder, "--try")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("toy: valid (3 steps", "code: 1 file, ", "data: 50 records read, 50 samples", "model: 2 trained",
                 "step: loss ", "evaluation: loss ", "tried on "):  # fmt: skip
        assert f"\n{line}" in f"\n{done.stdout}"
    answer = json.loads(drivetrain(folder, "--try", "--json").stdout)
    assert answer["trial"]["records"] == 50
    assert answer["code"]["files"] == ["model.py"]
    assert answer["code"]["left_out"] == {"data.csv": "named as data or as an output in the job"}
    assert [path.name for path in (tmp_path / "home").iterdir()] == []
    (folder / "model.py").write_text(MODEL.replace(".mean()", ""))
    done = drivetrain(folder, "--try")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: model.loss: got a function that returned a tensor [4, 1]")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_code_that_ends_the_process(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    folder = job(tmp_path / "job", {"model.py": f"import os\n{end}\n{MODEL}"})
    validate(str(folder))
    with pytest.raises(InputError) as caught:
        validate(str(folder), try_it=True)
    assert caught.value.where == "JOB"
