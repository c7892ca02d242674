"""The verbs on a home: what they print, and how they end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from drivetrain.api import datasets as datasets_module
from drivetrain.api import runs as runs_module
from drivetrain.api import scaling_curve as scaling_module
from drivetrain.api.runs import RunSummary
from drivetrain.cli import commands, compare, data
from drivetrain.cli import recipes as recipe_verbs
from drivetrain.cli.app import app
from drivetrain.cli.errors import errors
from drivetrain.cli.paging import first
from drivetrain.home import Home
from drivetrain.job.loading import load_job
from drivetrain.job.recipes import recipes
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Ended, Progress, Queued
from drivetrain.runs.store import RunStore
from drivetrain.runs.view import RunView
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.stream.dataset import Dataset
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.requests import ExportRequest, PredictRequest, Request
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId
from typer.testing import CliRunner

from tests.unit.checkpoint_files import damage, make_checkpoint
from tests.unit.datasets import make_dataset
from tests.unit.runs import TOY, home_in, job, log, make_run, metrics, prepare_shards, train, write_numbers
from tests.unit.step_records import step_record


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("COLUMNS", "200")
    return home_in(tmp_path / "home", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a job on a table."""
    found = tmp_path / "toy"
    found.mkdir()
    write_numbers(found / "numbers.csv")
    (found / "model.py").write_text("def make(): ...\ndef loss(model, batch): ...\n")
    sections = {**TOY, "model": {"factory": "model:make", "loss": "model:loss"}}
    (found / "job.yaml").write_text(yaml.safe_dump(sections))
    return found


def invoke(*arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=answer)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def lines(*arguments: str, code: int = 0) -> list[str]:
    return invoke(*arguments, code=code).stdout.splitlines()


def refused(*arguments: str) -> str:
    """The one line that a user reads where input is wrong."""
    result = invoke(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


# Errors and pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("KEY", "x", "y"), 2), (PrepareError("no data"), 1), (CheckpointError("none"), 1)],
)
def test_what_a_user_can_get_wrong_is_one_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, errors():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_what_no_one_expects_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("limit", "given", "more"), [(2, "ab", True), (3, "abc", False), (9, "abc", False), (None, "abc", False)]
)
def test_a_page_says_when_there_is_more(
    limit: int | None, given: str, more: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "".join(first(iter("abc"), limit)) == given
    assert bool(capsys.readouterr().err) == more


def test_a_page_takes_no_more_than_it_shows_and_one() -> None:
    entries = iter(range(100))
    assert list(first(entries, 3)) == [0, 1, 2]
    assert next(entries) == 4


# Verbs on jobs and runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "toy: valid (4 steps, 2 workers, ZeRO 1)"),
        (["--set", "resources.workers={min: 1, max: 3}"], "toy: valid (4 steps, 1 to 3 workers, ZeRO 1)"),
        (
            ["--set", "training.steps=null", "--set", "training.epochs=1.5", "--set", "training.zero_stage=auto"],
            "toy: valid (1.5 epochs, 2 workers, ZeRO auto)",
        ),
    ],
)
def test_a_valid_job(options: list[str], said: str, folder: Path, home: Home) -> None:
    first, code = lines("validate", str(folder), *options)
    assert first == said
    assert re.fullmatch(r"code: \d+ files?, \d.*", code)


def test_a_wrong_job_is_one_line(folder: Path, home: Home) -> None:
    assert "training.stepz" in refused("validate", str(folder), "--set", "training.stepz=3")


@pytest.mark.parametrize(("reason", "code"), [("completed", 0), ("cancelled", 130), ("hung", 1), ("input", 1)])
@pytest.mark.parametrize("verb", ["run", "resume"])
def test_the_exit_code_says_how_a_run_ended(
    verb: str, reason: str, code: int, folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(*arguments: Any) -> RunSummary:
        arguments[-1](RunView("toy-1", "training", facts=RunFacts()))
        return RunSummary("toy-1", reason, RunFacts(reason=reason))

    make_run(home, "toy-1")
    monkeypatch.setattr(runs_module, verb, follow)
    named = str(folder) if verb == "run" else "toy"
    views = [json.loads(line) for line in lines(verb, named, "--json", code=code)]
    assert [views[0]["phase"], views[-1]["reason"]] == ["training", reason]


@pytest.mark.parametrize(
    ("reason", "steps", "said"), [("cancelled", 4, True), ("cancelled", 0, False), ("hung", 4, False)]
)
def test_a_cancelled_run_of_the_same_job_is_named(
    reason: str, steps: int, said: bool, folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user decides whether to resume it or to start a new one."""
    monkeypatch.setattr(runs_module, "run", lambda *_: RunSummary("toy-2", "completed", RunFacts()))
    store = RunStore(home.database_url)
    store.create("toy-1", load_job(str(folder)).fingerprint, Queued(), "ann", reason=Reason(reason))
    store.save("toy-1", Ended(Reason(reason), progress=Progress(step=steps, committed_step=steps)), "ended")
    assert ("drivetrain resume toy-1" in invoke("run", str(folder)).stderr) == said
    assert "toy-1" not in invoke("run", str(folder), "--set", "seed=5").stderr


def test_runs_are_listed_newest_first(home: Home) -> None:
    for run in ("toy-1", "toy-2"):
        make_run(home, run)
    train(home, "toy-1", 4)
    found = [json.loads(line) for line in lines("list", "--json")]
    assert [(run["run_id"], run["phase"], run["step"], run["steps"], run["reason"]) for run in found] == [
        ("toy-2", "queued", 0, 4, ""),
        ("toy-1", "ended", 4, 4, "completed"),
    ]
    header, second, first = lines("list")
    assert header.split() == ["run", "user", "phase", "step", "age", "reason"]
    assert second.split()[:4] == ["toy-2", "ann", "queued", "0/4"]
    assert first.split()[:4] == ["toy-1", "ann", "ended", "4/4"]
    assert first.endswith("completed")


def test_checkpoints_are_described(home: Home) -> None:
    folder = make_run(home, "toy-1")
    assert "has prepared no data yet" in refused("checkpoints", "toy-1")
    RunStore(home.database_url).update_facts("toy-1", dataset="numbers")
    assert lines("checkpoints", "toy-1") == ["no checkpoint yet"]
    for step in (2, 4):
        make_checkpoint(folder.path, CheckpointId(step, 1), 2)
    header, newest, oldest = lines("checkpoints", "toy-1")
    assert header.split() == ["step", "MB", "generation", "ranks", "ZeRO", "eval", "loss", "metrics", "state"]
    assert [newest.split()[n] for n in (0, 2, 3, 4)] == ["4", "1", "2", "2"]
    assert oldest.split()[0] == "2"
    assert all(line.endswith("verified") for line in lines("checkpoints", "toy-1", "--verify")[1:])


def test_a_damaged_checkpoint_is_found_by_reading_it(home: Home) -> None:
    folder = make_run(home, "toy-1", dataset="numbers")
    damage(make_checkpoint(folder.path, CheckpointId(2, 1), 2) / "rank-00001.bin")
    lines("checkpoints", "toy-1")
    (found,) = [json.loads(line) for line in lines("checkpoints", "toy-1", "--verify", "--json", code=1)]
    assert "rank-00001.bin" in found["problem"]
    assert (found["step"], found["generation"], found["world_size"], found["zero_stage"]) == (2, 1, 2, 2)


def test_checkpoints_are_uploaded_on_request(home: Home, tmp_path: Path) -> None:
    make_run(home, "local", dataset="numbers")
    assert "a run whose job has one" in refused("checkpoints", "local", "--upload")
    folder = make_run(home, "toy-1", job(checkpoint={"location": str(tmp_path / "storage")}), dataset="numbers")
    make_checkpoint(folder.path, CheckpointId(2, 1), 2)
    target = tmp_path / "storage" / "toy-1" / "checkpoints"
    assert invoke("checkpoints", "toy-1", "--upload").stderr == f"uploaded {target}/step-00000002.g0001\n"
    assert committed(target) == committed(folder.checkpoints)
    assert invoke("checkpoints", "toy-1", "--upload").stderr == ""


def test_storage_that_takes_nothing_is_an_error(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = make_run(home, "toy-1", job(checkpoint={"location": str(tmp_path / "file" / "in")}), dataset="numbers")
    make_checkpoint(folder.path, CheckpointId(2, 1), 2)
    assert invoke("checkpoints", "toy-1", "--upload", code=1).stderr.startswith("error: ")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What the model's process, which takes torch, is asked for."""
    found: list[Request] = []

    def run_request(request: Request) -> str:
        found.append(request)
        match request:
            case ExportRequest(target=target):
                return target
            case PredictRequest(inputs=inputs):
                return json.dumps([{"input": text, "text": f"said of {text}"} for text in inputs])
        raise AssertionError(request)

    monkeypatch.setattr(commands, "run_request", run_request)
    monkeypatch.setattr(requests, "run_request", run_request)
    return found


def test_texts_are_printed_as_they_are(home: Home, asked: list[Request]) -> None:
    folder = make_run(home, "toy-1", dataset="words")
    said = lines("predict", "toy", "a", "b", "--max-tokens", "5", "--seed", "7", "--temperature", "0")
    assert said == ["a: said of a", "b: said of b"]
    assert lines("predict", "toy", "a") == ["said of a"]
    asked.pop()
    assert asked == [PredictRequest(str(folder.path), "words", ["a", "b"], ".", 5, 0.0, seed=7)]
    assert json.loads(lines("predict", "toy", "a", "--json")[0]) == {"input": "a", "text": "said of a"}


def test_predictions_are_rounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1", dataset="numbers")
    monkeypatch.chdir(home.path)
    Path("x.png").touch()
    row = {"input": "x.png", "class": "odd", "probability": 0.987654, "box": [1.23456, 2]}
    monkeypatch.setattr(requests, "run_request", lambda _: json.dumps([row]))
    assert lines("predict", "toy-1", "x.png") == ["x.png: class odd, probability 0.9877, box [1.235, 2]"]


def test_a_model_that_fails_is_one_line(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Request) -> str:
        raise CheckpointError("the model failed: out of memory")

    make_run(home, "toy-1", dataset="numbers")
    monkeypatch.setattr(requests, "run_request", fail)
    assert invoke("predict", "toy-1", "x", code=1).stderr == "error: the model failed: out of memory\n"


def test_exporting(home: Home, asked: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(home, "toy-1", dataset="words")
    monkeypatch.chdir(tmp_path)
    target = str(tmp_path / "weights")
    for step in (2, 4):
        make_checkpoint(folder.path, CheckpointId(step, 1), 2)
    assert "no checkpoint '3' in toy-1" in refused("export", "toy-1", "--to", "weights", "--step", "3")
    assert lines("export", "toy-1", "--to", "weights", "--step", "4") == [target]
    assert asked == [ExportRequest(str(folder.path), "words", target, 4)]
    (tmp_path / "weights").write_text("")
    assert "--to" in refused("export", "toy-1", "--to", target)


def test_a_report_is_written_where_it_is_wanted(home: Home, tmp_path: Path) -> None:
    folder = make_run(home, "toy-1")
    train(home, "toy-1")
    assert lines("report", "toy-1") == [str(folder.path / "report.html")]
    assert lines("report", "toy-1", "--to", str(tmp_path / "page.html")) == [str(tmp_path / "page.html")]
    assert "toy-1" in (tmp_path / "page.html").read_text()
    assert "--to" in refused("report", "toy-1", "--to", str(tmp_path / "nowhere" / "page.html"))


def test_a_run_that_goes_on_ships_by_itself(home: Home) -> None:
    make_run(home, "toy-1")
    assert "toy-1, which is queued" in refused("sync", "toy-1")


def test_a_run_that_is_not_there_is_named(home: Home) -> None:
    make_run(home, "toy-1")
    for verb in ("checkpoints", "report", "audit", "sync"):
        said = refused(verb, "other")
        assert "no run 'other'" in said
        assert "Known runs: toy-1." in said
        assert str(home.path) in said
        assert ("--server URL" if verb in ("report", "sync") else "works on runs of this machine") in said


# Verbs on data ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_dataset(home: Home) -> Dataset:
    return make_dataset(home.datasets / "toy" / "v1", [5, 3])


@pytest.mark.parametrize("where", ["toy", "toy/v1", "folder"])
def test_a_dataset_is_described(where: str, home: Home, toy_dataset: Dataset) -> None:
    found = json.loads(
        lines("data", "inspect", toy_dataset.folder.location if where == "folder" else where, "--json")[0]
    )
    assert (found["name"], found["version"], found["statistics"]) == ("toy", "v1", {"vocab_size": 5.0})
    assert list(found["columns"]) == ["label", "tokens", "blob"]
    assert found["notes"] == ["data.source: 2 ignored"]
    assert "data.source: 2 ignored" in lines("data", "inspect", "toy")
    train_split = found["splits"]["train"]
    assert (train_split["samples"], train_split["shards"], train_split["streams"]) == (8, 2, 1)
    said = [line.split() for line in lines("data", "inspect", "toy")]
    assert ["split", "samples", "shards", "bytes", "streams"] in said
    assert ["train", "8", "2"] in [line[:3] for line in said]


def test_a_dataset_that_is_not_there_is_refused_with_those_that_are(home: Home, toy_dataset: Dataset) -> None:
    assert "toy" in refused("data", "inspect", "other")


def test_every_byte_of_a_dataset_is_compared(home: Home, toy_dataset: Dataset) -> None:
    assert lines("data", "verify", "toy") == ["toy/v1: verified, every checksum matches"]
    damage(home.datasets / "toy" / "v1" / "train-00001.arrow")
    (problem,) = lines("data", "verify", "toy", code=1)
    assert "train-00001.arrow" in problem


def test_the_first_samples_of_a_dataset(home: Home, folder: Path) -> None:
    spec = job(data={"source": str(folder / "numbers.csv")})
    prepare_shards(spec.data, home, folder)
    with no_ray():
        (made,), (found,) = lines("data", "prepare", str(folder)), lines("data", "prepare", str(folder))
    assert made.startswith(str(home.datasets / "numbers"))
    assert made.endswith(" (made)")
    assert found == made.replace("(made)", "(found, nothing to prepare)")
    assert lines("data", "head", "numbers", "-n", "2")[0].split() == ["x", "label"]
    samples = [json.loads(line) for line in lines("data", "head", "numbers", "-n", "2", "--json")]
    assert [sample["x"] % 2 == sample["label"] for sample in samples] == [True, True]
    assert "train or eval" in refused("data", "head", "numbers", "--split", "test")


@contextmanager
def no_ray() -> Iterator[None]:
    """Nothing is left to do for actors: no cluster is joined."""

    @contextmanager
    def connect(_: str | None) -> Iterator[None]:
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_module, "connect", connect)
        yield


def test_datasets_without_a_run_are_removed_when_the_user_says_so(home: Home) -> None:
    for version in ("v1", "v2"):
        make_dataset(home.datasets / "toy" / version, [3])
    used, unused = (home.datasets / "toy" / version for version in ("v1", "v2"))
    make_run(home, "toy-1", dataset=str(used))
    assert str(unused) in invoke("data", "gc", answer="n\n").stdout
    assert unused.exists()
    assert str(used) not in invoke("data", "gc", answer="y\n").stdout
    assert used.exists()
    assert not unused.exists()
    assert lines("data", "gc") == ["nothing to remove: every dataset version belongs to a run"]


def test_a_ledger_proves_what_was_used(home: Home) -> None:
    dataset = make_dataset(home.datasets / "toy" / "v1", [20, 12])
    folder = make_run(home, "toy-1")
    assert "Its ledger is empty" in refused("audit", "toy-1")
    RunStore(home.database_url).update_facts("toy-1", dataset=dataset.folder.location)
    ledger.write(folder.ledger, CheckpointId(4, 1), [step_record(step) for step in range(1, 5)])
    assert lines("audit", "toy-1") == [
        "4 steps, 32 samples, 1.000 epochs; world size 2 from step 1",
        "every sample was used exactly once per epoch",
    ]
    records = [step_record(1), step_record(2), replace(step_record(3), positions=(0, 8))]
    ledger.write(folder.ledger, CheckpointId(3, 2), records)
    found = json.loads(lines("audit", "toy-1", "--json", code=1)[0])
    assert found["problems"][0] == "step 3 consumed positions [0, 8] instead of [16, 24]"
    assert found["problems"][0] in lines("audit", "toy-1", code=1)


# diff -------------------------------------------------------------------------------------------------------------


def two_runs(home: Home) -> None:
    for run, width, losses in (("one", 4, [3.0, 2.0, 1.5]), ("two", 8, [3.0, 2.0, 1.75])):
        folder = make_run(home, run, job(model={"args": {"width": width}}), dataset_version="v1", eval_loss=losses[-1])
        (folder.code / "model.py").write_text(f"def make(width):\n    return [{width}]\n")
        records = [step_record(number, loss=loss) for number, loss in enumerate(losses, start=1)]
        ledger.write(folder.ledger, CheckpointId(3, 1), records)
        log(folder, [metrics("train", number, loss=loss) for number, loss in enumerate(losses, start=1)])


def test_what_differs_between_two_runs(home: Home, tmp_path: Path) -> None:
    two_runs(home)
    said = lines("diff", "one", "two", "--picture", str(tmp_path / "losses.png"))
    table = {line.split()[0]: line.split()[1:] for line in said if line}
    assert table["model.args.width"] == ["4", "8"]
    assert table["eval_loss"] == ["1.5", "1.75"]
    assert "-    return [4]" in said
    assert "+    return [8]" in said
    assert said[-1] == "the losses of the first 2 steps are bitwise equal; at step 3 they are 1.5 and 1.75"
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(lines("diff", "one", "two", "--json")[0])
    assert found["settings"] == {"model.args.width": [4, 8]}
    assert (found["same_steps"], found["losses"]) == (2, [1.5, 1.75])


def test_a_run_does_not_differ_from_itself(home: Home) -> None:
    two_runs(home)
    *_, same, losses = lines("diff", "one", "one")
    assert same == "settings, code, data and versions are equal"
    assert losses == "the losses of the first 3 steps are bitwise equal"


def test_losses_that_differ_from_the_start(home: Home) -> None:
    two_runs(home)
    ledger.write(home.run("two").ledger, CheckpointId(3, 2), [step_record(1, loss=3.0000000000000004)])
    assert lines("diff", "one", "two")[-1] == "the losses differ from the first step"


def test_a_picture_needs_a_folder(home: Home) -> None:
    two_runs(home)
    assert "--picture" in refused("diff", "one", "two", "--picture", "/nowhere/at/all.png")


# Recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_are_listed_and_copied(home: Home, tmp_path: Path) -> None:
    found = [json.loads(line) for line in lines("recipes", "--json")]
    assert [recipe["name"] for recipe in found] == [recipe.name for recipe in recipes()]
    assert all(recipe["title"] for recipe in found)
    name, target = found[0]["name"], tmp_path / "my own"
    assert [line.split()[0] for line in lines("recipes")[:2]] == ["recipe", name]
    (said,) = lines("init", name, str(target))
    assert said == f"Edit '{target}'/job.yaml, then run: drivetrain run '{target}'"
    assert (target / "job.yaml").read_text() == (Path(found[0]["folder"]) / "job.yaml").read_text()
    assert not list(target.glob("__*"))
    assert "empty folder" in refused("init", name, str(target))
    assert name in refused("init", "nothing-like-it", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_scaling_curve(folder: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of losses that follow a power law: it is found, and says what twice the data would give."""

    def measure(_: str, overrides: Any, shares: list[float], *__: Any) -> list[scaling_module.Point]:
        return [scaling_module.Point(s, int(1000 * s), 8.0 * (1000 * s) ** -0.5, f"run-{s}") for s in shares]

    monkeypatch.setattr(scaling_module, "measure", measure)
    picture = tmp_path / "curve.png"
    said = lines("scaling-curve", str(folder), "--fractions", "0.25,0.5,1", "--picture", str(picture))
    assert said[1].split() == ["0.25", "250", "0.5060"]
    assert said[-2] == "prediction for twice the data, 2,000 samples: 0.1789"
    assert said[-1] == f"plot: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(lines("scaling-curve", str(folder), "--picture", str(picture), "--json")[-1])
    assert [point["fraction"] for point in found["points"]] == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    "options", [["--fractions", "a,b"], ["--picture", "/nowhere/at/all.png"], ["--set", "training.steps=0"]]
)
def test_a_wrong_scaling_curve_starts_nothing(
    options: list[str], folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_module, "measure", lambda *_: pytest.fail("it was started"))
    monkeypatch.chdir(folder)
    refused("scaling-curve", str(folder), *options)


# Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"), [(None, "-"), (1 / 3, "0.333333"), (2, "2"), ("[a]", "[a]"), (False, "False")]
)
def test_values_side_by_side(value: Any, said: str) -> None:
    assert compare._text(value) == said


def test_a_world_that_changed() -> None:
    assert compare._worlds([(1, 2), (5, 4)]) == "2 from step 1, 4 from step 5"
    assert compare._worlds([]) == ""


def test_shares_of_the_data() -> None:
    assert recipe_verbs._shares("0.5, 1") == [0.5, 1.0]
    with pytest.raises(InputError, match=r"0\.5;1"):
        recipe_verbs._shares("0.5;1")


def test_a_dataset_is_called_by_name_and_version(toy_dataset: Dataset) -> None:
    assert data._name(toy_dataset) == "toy/v1"
