"""The command line as a whole: help, versions, schema, completion, places, tables."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import drivetrain
import jsonschema
import pytest
from click.testing import Result
from drivetrain import errors as public_errors
from drivetrain.cli import completion, tables
from drivetrain.cli.app import app
from drivetrain.cli.errors import message
from drivetrain.cli.help import PANELS
from drivetrain.cli.schema import job_schema
from drivetrain.cli.tables import Column, phase_cell, print_table
from drivetrain.cli.words import age, plural
from drivetrain.errors import DrivetrainError, InputError, NotFoundError
from drivetrain.home import Home
from drivetrain.job.recipes import recipes
from drivetrain_pipelines.storage.yaml_files import parse_yaml
from drivetrain_workers.protocol.reasons import Reason
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from tests.contracts.test_imports import modules_after
from tests.unit.runs import home_in, make_run, train
from tests.unit.server import LocalSession

HEAVY = {"torch", "ray", "mlflow", "deepspeed"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return home_in(tmp_path / "home", monkeypatch)


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def commands(group: TyperGroup, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command and every group of commands."""
    found = [words]
    for name, command in group.commands.items():
        below = (*words, name)
        found += commands(command, below) if isinstance(command, TyperGroup) else [below]
    return found


ROOT = get_command(app)
assert isinstance(ROOT, TyperGroup)
COMMANDS = commands(ROOT)


# Help -------------------------------------------------------------------------------------------------------------


def test_alone_it_prints_its_help() -> None:
    alone = invoke()
    assert alone.stdout == invoke("--help").stdout
    assert alone.stderr == ""
    assert invoke("data").stdout == invoke("data", "--help").stdout


def test_help_is_grouped_and_names_the_exit_codes() -> None:
    said = invoke("--help").stdout
    titles = [line.removesuffix(":") for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", *PANELS, "Exit codes"]
    codes = [line.split()[0] for line in said.partition("Exit codes:")[2].splitlines() if line]
    assert codes == ["0", "1", "2", "124", "130"]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words in ((), ("data",), ("token",), ("cluster",))])
def test_each_command_has_one_whole_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = invoke(*words, "--help").stdout.splitlines()
    for command in COMMANDS:
        if command[:-1] == words and command:
            (line,) = [line for line in said if line.startswith(f"  {command[-1]} ")]
            assert len(line) <= 80
            assert line.endswith("."), line
            assert not line.endswith(".."), line
            assert not [wrapped for wrapped in said[said.index(line) + 1 :][:1] if wrapped.startswith("   ")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_explained(words: tuple[str, ...]) -> None:
    """In sentences that end; and nothing is cut."""
    said = invoke(*words, "--help").stdout
    assert "..." not in re.sub(r"(\[ARGS\]|\}|, ?)\.\.\.", "", said)
    assert "Usage:" in said
    command = ROOT
    for word in words:
        assert isinstance(command, TyperGroup)
        command = command.commands[word]
    for parameter in command.params:
        assert str(getattr(parameter, "help", "")).endswith("."), parameter.name


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["schema"], ["list"], ["list", "--json"], ["recipes"]])
def test_what_is_asked_often_is_light(words: list[str], home: Home) -> None:
    make_run(home, "toy-1")
    run = f"assert CliRunner().invoke(app, {words}).exit_code == 0"
    loaded = modules_after(f"from typer.testing import CliRunner\nfrom drivetrain.cli.app import app\n{run}")
    assert not loaded & HEAVY


CLIENT_ONLY = """
import importlib.abc, re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
names = {re.split(r"[^\\w-]", line)[0] for line in project["optional-dependencies"]["train"]}
modules = {"pillow": "PIL", "scikit-learn": "sklearn", "nvidia-ml-py": "pynvml"}
missing = {modules.get(name, name.replace("-", "_")) for name in names}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


CLIENT = ["api.client", "api.connect", "errors", "cli.main", "cli.run_verbs", "cli.remote", "cli.jobs", "cli.compare"]


@pytest.mark.parametrize("module", [*CLIENT, "cli.recipes", "cli.schema"])
def test_a_client_needs_no_training_packages(module: str) -> None:
    """Verbs on a server work with the base distribution: everything that trains is missing here."""
    assert "httpx" in modules_after(f"{CLIENT_ONLY}import drivetrain.{module}, httpx")


def test_versions_of_what_is_installed() -> None:
    lines = dict(line.split(" ", 1) for line in invoke("--version").stdout.splitlines())
    assert list(lines) == ["drivetrain", "Python", "ray", "torch", "deepspeed", "mlflow"]
    assert lines["ray"].startswith("2.")


# Errors -----------------------------------------------------------------------------------------------------------


def test_every_public_error_can_be_imported_from_drivetrain() -> None:
    for name in public_errors.__all__:
        kind = getattr(drivetrain, name)
        assert kind is getattr(public_errors, name)
        assert issubclass(kind, DrivetrainError)
        assert name in drivetrain.__all__
        assert name in str(public_errors.__doc__)
    assert set(dir(drivetrain)) == set(drivetrain.__all__)
    for name in drivetrain.__all__:
        assert getattr(drivetrain, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = drivetrain.nothing


def test_errors_are_imported_without_anything_heavy() -> None:
    assert not modules_after("import drivetrain.errors") & (HEAVY | {"sqlalchemy", "httpx", "pydantic"})


def test_a_suggestion_stands_before_what_is_known() -> None:
    error = NotFoundError("run", "toy-1x", [f"toy-{n}" for n in range(12)], "/home", "Name a server.")
    assert str(error).startswith("there is no run 'toy-1x' in /home. Did you mean toy-1")
    assert str(error).endswith("toy-9 and 2 more. Name a server.")
    assert str(NotFoundError("run", "x")) == "there is no run 'x'. Known runs: none."
    assert NotFoundError.from_json(json.loads(json.dumps(error.to_json()))).args == error.args
    assert pickle.loads(pickle.dumps(error)).args == error.args
    assert not isinstance(error, InputError)
    wrong = InputError("training.stepz", "an unknown key", "steps, epochs", "Did you mean training.steps?")
    assert message(wrong) == "training.stepz: got an unknown key. Did you mean training.steps? Allowed: steps, epochs"
    assert message(InputError("a", "b", "c", "Do d.")) == "a: got b; allowed: c. Do d."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init", "langage-model", "x"), "there is no recipe 'langage-model'. Did you mean language-model?"),
        (("validate", "langage-model"), "JOB: got 'langage-model'. Did you mean language-model? Allowed: "),
        (("data", "verify", "nothing"), "there is no dataset 'nothing' in "),
        (("status", "nothing"), "there is no run 'nothing' in "),
        (("token", "revoke", "nothing"), "there is no token 'nothing'. Known tokens: none."),
    ],
)
def test_what_does_not_exist_is_an_error_of_the_user(words: tuple[str, ...], said: str, home: Home) -> None:
    result = invoke(*words, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {said}")


# Places -----------------------------------------------------------------------------------------------------------


def test_the_place_that_answers_is_named_beside_the_answer(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    (home.run("toy-1").log(0).parent).mkdir(parents=True)
    home.run("toy-1").log(0).write_text("hello\n")
    place = f"local {home.path}\n"
    verbs = [("list",), ("status", "toy-1"), ("wait", "toy-1"), ("logs", "toy-1"), ("cancel", "toy-1")]
    for words in (*verbs, ("report", "toy-1"), ("diff", "toy-1", "toy-1")):
        shown = invoke(*words)
        assert shown.stderr.replace("\n", "") == place.replace("\n", ""), words
        assert shown.stdout
        if words[0] not in ("diff", "report"):  # diff prints lists, too, and both draw, which takes time
            as_json = invoke(*words, "--json")
            assert as_json.stderr == ""
            assert all(isinstance(json.loads(line), dict) for line in as_json.stdout.splitlines())
    assert json.loads(invoke("logs", "toy-1", "--json").stdout) == {"rank": 0, "line": "hello"}
    assert json.loads(invoke("logs", "toy-1", "--rank", "0", "--json").stdout) == {"rank": 0, "line": "hello"}


def test_a_local_run_is_started_again_and_followed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    from drivetrain.api import session as session_module
    from drivetrain.runs.view import RunView

    class Following(LocalSession):
        def follow(self, run_id: str, _: object) -> Iterator[RunView]:
            make = self._store.get(run_id)
            train(home, make.id)
            yield self.view(run_id)

    @contextmanager
    def open_session(_: str | None = None) -> Iterator[Following]:
        yield Following(home)

    monkeypatch.setattr(session_module, "open_session", open_session)
    make_run(home, "toy-1")
    *_, last = invoke("retry", "toy", "--json").stdout.splitlines()
    assert json.loads(last)["run_id"] == "toy-1-again"
    assert json.loads(last)["reason"] == "completed"
    assert "no run 'other'" in invoke("retry", "other", code=2).stderr


# JSON -------------------------------------------------------------------------------------------------------------


def test_other_verbs_print_json_too(home: Home, tmp_path: Path) -> None:
    made = json.loads(invoke("init", "language-model", str(tmp_path / "mine"), "--json").stdout)
    assert made == {"recipe": "language-model", "folder": str(tmp_path / "mine")}
    valid = json.loads(invoke("validate", "language-model", "--json").stdout)
    assert valid["valid"]
    assert valid["job"]["name"] == "language-model"
    assert invoke("data", "gc", "--json").stdout == ""
    (home.datasets / "toy" / "v1").mkdir(parents=True)
    assert not json.loads(invoke("data", "gc", "--json").stdout)["removed"]
    assert json.loads(invoke("data", "gc", "--json", "--yes").stdout)["removed"]
    secret = json.loads(invoke("token", "create", "--user", "tom", "--json").stdout)
    assert json.loads(invoke("token", "revoke", secret["id"], "--json").stdout) == {"revoked": secret["id"]}


# Schema -----------------------------------------------------------------------------------------------------------


def test_the_schema_of_the_job_file(tmp_path: Path) -> None:
    schema = json.loads(invoke("schema").stdout)
    assert schema == job_schema()
    assert schema["title"] == "Drivetrain job file"
    assert "$schema" in schema
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for recipe in recipes():
        job = parse_yaml((recipe.folder / "job.yaml").read_text(), recipe.name, "a job")
        assert list(validator.iter_errors(job)) == [], recipe.name
    assert list(validator.iter_errors({"name": "x", "unknown": 1}))
    said = invoke("schema", "--to", str(tmp_path / "job.json")).stdout
    assert said == f"# yaml-language-server: $schema={tmp_path / 'job.json'}\n"
    assert json.loads((tmp_path / "job.json").read_text()) == schema
    assert "--to" in invoke("schema", "--to", str(tmp_path / "no" / "job.json"), code=2).stderr
    assert "yaml-language-server: $schema=" in invoke("schema", "--help").stdout


# Completion -------------------------------------------------------------------------------------------------------


def test_run_ids_are_completed_without_loading_anything(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion.run_ids("") == []
    for name in ("toy-1", "toy-2", "o'clock"):
        make_run(home, name)
    assert completion.run_ids("toy") == ["toy-2", "toy-1"]
    assert completion.run_ids("o'") == ["o'clock"]
    assert completion.run_ids("%") == []
    loaded = modules_after("from drivetrain.cli.completion import run_ids, jobs; assert run_ids('toy'); jobs('')")
    assert not loaded & (HEAVY | {"sqlalchemy", "pydantic", "alembic"})
    (home.path / "drivetrain.db").write_bytes(b"no database")
    assert completion.run_ids("toy") == []
    monkeypatch.setenv("DRIVETRAIN_DATABASE_URL", "postgresql://x/y")
    assert completion.run_ids("toy") == []


def test_jobs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion.recipe_names("lang") == ["language-model"]
    assert completion.recipe_names("") == [recipe.name for recipe in recipes()]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "job.yaml").write_text("")
    (tmp_path / "mine" / "data.csv").write_text("")
    (tmp_path / ".hidden").mkdir()
    assert completion.jobs("mi") == ["mine/"]
    assert completion.jobs("mine/") == ["mine/deep/", "mine/job.yaml"]
    assert completion.jobs("nowhere/x") == []
    assert ".hidden/" not in completion.jobs("")


def test_keys_of_a_job_are_completed() -> None:
    assert completion.job_keys("training.st") == ["training.steps="]
    assert "training.optimizer.lr=" in completion.job_keys("")
    assert "checkpoint.keep.last=" in completion.job_keys("checkpoint.")
    assert not modules_after("from drivetrain.cli.completion import job_keys; assert job_keys('training')") & HEAVY


def test_a_shell_asks_for_completions(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1")
    environment = {
        "_DRIVETRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "drivetrain status to",
        "COMP_CWORD": "2",
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="drivetrain")
    assert result.stdout.split() == ["toy-1"]


# Tables and words -------------------------------------------------------------------------------------------------

ROWS = [("language-model-29524f", "ann", phase_cell("ended", "user_code"), "120/400", "user_code and a long reason")]
COLUMNS = (
    Column("run"),
    Column("user", optional=2),
    Column("phase"),
    Column("step", right=True),
    Column("reason", wrap=True, optional=1),
)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (100, ["run", "user", "phase", "step", "reason"]),
        (60, ["run", "phase", "step", "reason"]),
        (40, ["run", "phase", "step"]),
        (10, ["run", "phase", "step"]),
    ],
)
def test_a_narrow_terminal_leaves_out_what_matters_least(
    width: int, titles: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def console(**_: int) -> Console:
        return Console(width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(tables, "Console", console)
    print_table(COLUMNS, ROWS)
    said = capsys.readouterr().out
    assert all(len(line) <= width for line in said.splitlines())
    if width > 10:
        assert said.splitlines()[0].split() == titles
        assert "language-model-29524f" in said
    assert "…" not in said
    letters = "".join(said.split())
    for title in titles:
        assert title[0] in letters


def test_a_pipe_gets_every_column_without_color(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "user", "phase", "step", "reason"]
    assert row.endswith("user_code and a long reason")
    assert "\x1b" not in row


@pytest.mark.parametrize(
    ("phase", "reason", "color"),
    [
        ("ended", "completed", "green"),
        ("ended", "cancelled", "yellow"),
        ("ended", str(Reason.HUNG), "red"),
        ("queued", "", "yellow"),
        ("training", "", None),
    ],
)
def test_colors_carry_meaning(phase: str, reason: str, color: str | None) -> None:
    assert phase_cell(phase, reason) == ((phase, color) if color else phase)


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(1, "worker", "1 worker"), (2, "worker", "2 workers"), (0, "batch", "0 batches"), (2000, "loss", "2,000 losses")],
)
def test_plurals(count: int, noun: str, said: str) -> None:
    assert plural(count, noun) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_ages(seconds: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.cli.words.time.time", lambda: 1_000_000.0)
    assert age(1_000_000.0 - seconds) == said
