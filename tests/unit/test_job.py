from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from drivetrain.api.runs import validate
from drivetrain.coordinator.gang_request import check_request, gang_request, waiting_since
from drivetrain.job.loading import load_job
from drivetrain.job.spec import JobSpec
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Allocation, Ended, Placing, Preparing, Queued, Ready, Starting
from drivetrain.runs.store import RunRecord
from drivetrain.scheduling.model import Node
from drivetrain.scheduling.rules import QueueRules, Rules, UserRules
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.yaml_files import parse_yaml
from drivetrain_workers.protocol.reasons import Reason

VALID: dict[str, Any] = {
    "name": "toy",
    "data": {"source": "text.txt"},
    "model": {"factory": "model:make", "args": {"width": 8}},
    "training": {"steps": 10, "global_batch_size": 8},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("some text\n")
    (tmp_path / "model.py").write_text("def make(width, vocab_size, *, depth=1): ...\ndef loss(model, batch): ...\n")
    (tmp_path / "code.py").write_text("def make(): ...\n")
    write(tmp_path, VALID)
    return tmp_path


def write(folder: Path, document: object) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump(document))


def test_defaults_and_absolute_paths(folder: Path) -> None:
    job = load_job(str(folder))
    assert job.spec.training.zero_stage == 1
    assert job.spec.data.source == str(folder / "text.txt")
    assert [*job.code.contents] == ["code.py", "model.py"]


def test_scientific_notation_is_a_number(folder: Path) -> None:
    assert load_job(str(folder), ["training.optimizer.lr=3e-4"]).spec.training.optimizer.lr == 3e-4


def test_imports_of_the_code_must_be_installed(folder: Path) -> None:
    """A missing import is reported before the start, also for imports of other files of the job."""
    (folder / "model.py").write_text("from layers import make\n")
    (folder / "layers.py").write_text("import os, yaml\nimport not_installed.at_all\n\ndef make(): ...\n")
    with pytest.raises(InputError, match="not_installed is not installed") as caught:
        load_job(str(folder))
    assert caught.value.where == "model.factory"
    (folder / "not_installed").mkdir()
    (folder / "not_installed" / "at_all.py").touch()
    load_job(str(folder))


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("drivetrain_workers.classification:metriks", "Did you mean drivetrain_workers.classification:metrics"),
        ("drivetrain_workers.nowhere:f", "Module drivetrain_workers.nowhere does not exist"),
    ],
)
def test_functions_of_this_package_are_found(folder: Path, named: str, problem: str) -> None:
    load_job(str(folder), ["model.metrics=drivetrain_workers.classification:metrics"])
    with pytest.raises(InputError, match=problem):
        load_job(str(folder), [f"model.metrics={named}"])


def test_fingerprint_follows_settings_and_code(folder: Path) -> None:
    first = load_job(str(folder)).fingerprint
    assert load_job(str(folder)).fingerprint == first
    assert load_job(str(folder), ["seed=1"]).fingerprint != first
    (folder / "model.py").write_text("def make(width): return 1\ndef loss(model, batch): ...\n")
    assert load_job(str(folder)).fingerprint != first


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.step=5", ["training.step: got an unknown key", "Did you mean training.steps?"]),
        ("trainning.steps=5", ["trainning", "Did you mean training?"]),
        ("training.optimizer.learning_rate=1", ["training.optimizer.learning_rate", "lr"]),
        ("training.zero_stage=4", ["training.zero_stage: got 4", "0, 1, 2 or 3"]),
        ("training.steps=ten", ["training.steps: got 'ten'", "a whole number"]),
        ("training.steps=0", ["training.steps: got 0", "at least 1"]),
        ("training.epochs=2", ["exactly one of training.steps and training.epochs"]),
        ("training.global_batch_size=1", ["training.global_batch_size: got 1", "resources.workers (2)"]),
        ("training.micro_batch_size=5", ["training.micro_batch_size: got 5", "1 to 4"]),
        ("training.precision=fp8", ["training.precision: got 'fp8'", "fp32"]),
        ("training.deepspeed={train_batch_size: 4}", ["training.deepspeed.train_batch_size", "global_batch_size"]),
        (
            "training.deepspeed={zero_optimization: {stage: 3}}",
            ["zero_optimization.stage: got 3", "training.zero_stage (1)"],
        ),
        ("model.factory=model:mak", ["model.factory: got 'model:mak'", "Did you mean model:make?"]),
        ("model.args.dept=2", ["model.args.dept: got 2", "(width, vocab_size, depth)", "Did you mean depth?"]),
        ("model.args={}", ["model.args: got no width", "all required arguments of model:make"]),
        ("model.factory=nowhere:make", ["model.factory", "Module nowhere does not exist"]),
        ("model.factory=make", ["model.factory: got 'make'"]),
        ("model.factory=code:make", ["model.factory: got 'code:make'", "Python's standard library", "code.py"]),
        ("data.online={transform: model:mak}", ["data.online.transform", "Did you mean model:make?"]),
        ("data.online={transform: model:make, actors: 0}", ["data.online.actors: got 0"]),
        ("model.loss=model:los", ["model.loss", "Did you mean model:loss?"]),
        ("data.source=missing.txt", ["data.source", "missing.txt", "Nothing was found there"]),
        ("data.tokenizer.file=missing.json", ["data.tokenizer.file", "missing.json"]),
        ("name=a/b", ["name: got 'a/b'"]),
        ("checkpoint.every=0", ["checkpoint.every: got 0"]),
        ("resources.gpus_per_worker=some", ["resources.gpus_per_worker", "'some'"]),
        ("resources.workers=0", ["resources.workers: got 0"]),
        ("resources.workers=two", ["resources.workers: got 'two'"]),
        ("resources.workers={min: 3, max: 2}", ["resources.workers", "min <= max; 3 > 2"]),
        ("resources.workers={min: 1, most: 2}", ["resources.workers.most: got an unknown key", "max, min"]),
        ("resources.workers={min: 1, max: 9}", ["training.global_batch_size: got 8", "(9)"]),
        ("scheduling.priority=1000", ["scheduling.priority: got 1000"]),
        ("scheduling.expected_hours=0", ["scheduling.expected_hours: got 0"]),
        ("scheduling.preempt=no", ["Did you mean scheduling.preemptible?"]),
        ("sample.promt=x", ["sample.promt: got an unknown key", "Did you mean sample.prompt?"]),
        ("training.steps=[1", ["--set training.steps", "a value in YAML"]),
        ("name=[1", ["--set name", "a value in YAML"]),
        ("seed", ["--set: got 'seed'", "section.key=value"]),
        ("name.x=1", ["--set name.x", "a key inside a section"]),
    ],
)
def test_mistakes_are_reported(folder: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_job(str(folder), [override])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def make(vocab_size): ...", r"model\.args\.width: got 8; allowed: an argument of model:make \(vocab_size\)"),
        ("def make(width, weights, depth, *, extra): ...", "model.args: got no depth, extra"),
        ("def make(width): ...", r"model\.files\.weights: got 'weights'"),
        ("def make(width, /, weights): ...", r"model\.args\.width"),
        ("def make(width, weights, depth=1, *, classes): ...", ""),
        ("def make(**anything): ...", ""),
        ("class make:\n    pass", ""),
        ("import functools\n\n@functools.cache\ndef make(): ...", ""),
        ("import functools\n\ndef make(depth): ...\nmake = functools.partial(make, 3)", ""),
        ("def make(): ...\nif True:\n    def make(width, weights): ...", ""),
    ],
)
def test_a_factory_must_accept_its_arguments(code: str, expected: str, folder: Path) -> None:
    (folder / "model.py").write_text(code)
    overrides = ["model.files={weights: text.txt}"]
    if not expected:
        load_job(str(folder), overrides)
        return
    with pytest.raises(InputError, match=expected):
        load_job(str(folder), overrides)


def test_missing_section_and_broken_files(folder: Path) -> None:
    write(folder, {k: v for k, v in VALID.items() if k != "model"})
    with pytest.raises(InputError, match="model: got nothing"):
        load_job(str(folder))
    write(folder, ["a list"])
    with pytest.raises(InputError, match="got list; allowed: a mapping"):
        load_job(str(folder))
    (folder / "job.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="YAML"):
        load_job(str(folder))
    with pytest.raises(InputError, match="language-model"):
        load_job("no-such-job")
    write(folder, VALID)
    (folder / "model.py").write_text("def make(:\n")
    with pytest.raises(InputError, match=r"model\.py:1"):
        load_job(str(folder))


def test_recipe_by_name() -> None:
    assert validate("language-model").spec.name == "language-model"


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("drivetrain")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_exits_2_with_one_line(folder: Path) -> None:
    done = run_command("validate", str(folder), "--set", "training.step=5")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: training.step: got an unknown key")
    assert run_command("validate", str(folder)).returncode == 0
    assert run_command("run", str(folder), "--set", "training.zero_stage=9").returncode == 2
    assert run_command("predict", "no-such-run", "x").returncode == 2
    assert run_command("resume", "no-such-run").returncode == 2


GANG = JobSpec.model_validate(VALID | {"resources": {"workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 0}})
RUN = RunRecord("x-1", "f", 5.0, "", Queued(), RunFacts(gpus_per_worker=0), "ann")


def test_the_request_follows_the_job() -> None:
    rules = Rules(queues={"default": QueueRules(priority=7)})
    request = gang_request(RUN, 5.0, GANG, rules)
    assert (request.run, request.user, request.priority, request.since) == ("x-1", "ann", 7, 5.0)
    assert (request.workers, request.min_workers, request.cpus, request.gpus) == (4, 4, 2, 0)
    check_request(request, [Node("a", 8, 0)], rules)


@pytest.mark.parametrize(
    ("nodes", "rules", "expected"),
    [
        ([Node("a", 7, 0)], Rules(), "workers that fit on 1 nodes with 7 CPUs"),
        ([Node("a", 8, 0)], Rules(queues={"fast": QueueRules()}), "scheduling.queue: got 'default'; allowed: fast"),
        (
            [Node("a", 8, 0)],
            Rules(queues={"default": QueueRules(max_workers=3)}),
            "at most 3, the limit of queue default",
        ),
        ([Node("a", 8, 0)], Rules(others=UserRules(max_workers=3)), "at most 3, the limit of user ann"),
    ],
)
def test_a_run_that_can_never_fit_is_rejected(nodes: list[Node], rules: Rules, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_request(gang_request(RUN, 5.0, GANG, rules), nodes, rules)


def test_time_with_an_allocation_is_no_waiting() -> None:
    allocation = Allocation((("a", 1),))
    first = [
        (10.0, "", Preparing()),
        (20.0, "", Ready("d")),
        (30.0, "", Placing("d", allocation)),
        (31.0, "", Starting("d", allocation)),
    ]
    assert waiting_since(5.0, first) == 5.0
    stopped = [*first, (130.0, "", Ready("d", "preempted"))]
    assert waiting_since(5.0, stopped) == 105.0, "it has waited for 25 s, until 130"
    assert waiting_since(5.0, [*stopped, (140.0, "", Ended(Reason.CANCELLED)), (500.0, "", Queued())]) == 500.0


RENAMED = [
    ("training", "zero", "zero_stage", 2),
    ("training", "schedule", "lr_schedule", {"type": "linear"}),
    ("training", "hang_after_s", "hang_timeout_s", 5.0),
    ("tracking", "register_as", "registered_model", "toy"),
]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [("model.factory=Net", "module:function, such as model:make"), ("name=my texts", "letters, digits, dots, hyphens")],
)
def test_a_pattern_is_described_in_words(override: str, allowed: str, folder: Path) -> None:
    with pytest.raises(InputError, match=allowed) as caught:
        load_job(str(folder), [override])
    assert "^" not in str(caught.value)


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_renamed_keys_are_read_with_a_warning(section: str, old: str, new: str, value: object, folder: Path) -> None:
    with pytest.warns(FutureWarning, match=rf"{section}\.{old} is now called {section}\.{new}"):
        read = load_job(str(folder), [f"{section}.{old}={json.dumps(value)}"])
    assert read.fingerprint == load_job(str(folder), [f"{section}.{new}={json.dumps(value)}"]).fingerprint
    with pytest.raises(InputError, match=f"{old} is the earlier name of {new}: give only {new}"):
        load_job(str(folder), [f"{section}.{name}={json.dumps(value)}" for name in (old, new)])


def test_every_renamed_key_is_tested() -> None:
    sections = {name: field.annotation for name, field in JobSpec.model_fields.items()}
    renamed = {(name, *pair) for name, model in sections.items() for pair in getattr(model, "renamed", {}).items()}
    assert renamed == {(section, old, new) for section, old, new, _ in RENAMED}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("3e-4", 3e-4),
        ("0x10", 16),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
    ],
)
def test_values_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text, "job.yaml", "a job")
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "s: {x: 1, x: 1}", "[" * 3000, "a: *b", "a: !!python/none"])
def test_yaml_that_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="text that is not YAML"):
        parse_yaml(text, "job.yaml", "a job")


@pytest.mark.parametrize("key", ["data.source", "data.tokenizer.file", "data.eval_source", "model.factory", "name"])
def test_a_name_that_is_too_long_for_a_file_is_refused(folder: Path, key: str) -> None:
    value = "m" * 300 + ":make" * (key == "model.factory")
    with pytest.raises(InputError, match=key.rpartition(".")[2]):
        load_job(str(folder), [f"{key}={value}"])


def test_a_job_file_may_not_have_any_name() -> None:
    with pytest.raises(InputError, match="JOB"):
        load_job("j" * 300)
