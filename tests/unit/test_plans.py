"""`drivetrain plan`: profile requests, use of past runs, and output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from drivetrain.api import datasets as datasets_module
from drivetrain.api.plans import plan_job
from drivetrain.cli.app import app
from drivetrain.cli.plan import _show
from drivetrain.home import Home
from drivetrain.job.loading import load_job
from drivetrain.job.spec import JobSpec
from drivetrain.planning import forecast as forecast_module
from drivetrain.planning.forecast import forecast
from drivetrain.planning.hardware import Hardware, gpu
from drivetrain.planning.plan import Plan
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.prepare import prepare
from drivetrain_workers.model_processes.requests import ModelProfile, ProfileRequest
from drivetrain_workers.protocol.reasons import Reason
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.runs import TOY, home_in, log, make_run, metrics, prepare_shards, train, write_numbers

PROFILE = ModelProfile(
    parameters=1_000_000,
    trained=1_000_000,
    tensors=50,
    largest=10**5,
    flops_per_row=1e9,
    forward_flops_per_row=1e9 / 3,
    recomputed_flops_per_row=3e8,
    kept_bytes_per_row=1e5,
    kept_bytes_fixed=0.0,
    row_bytes=16.0,
    matmul_flops=1e10,
)
CPUS = Hardware(2, 1, None, 4e9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(forecast_module, "_SAMPLE_BYTES", 1 << 20)
    return home_in(tmp_path / "home", monkeypatch)


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[ProfileRequest]:
    """Record the requests to the profiling process, which would need torch."""
    asked: list[ProfileRequest] = []

    def profile(request: ProfileRequest) -> ModelProfile:
        asked.append(request)
        return PROFILE

    monkeypatch.setattr(forecast_module, "profile", profile)
    return asked


@pytest.fixture
def folder(tmp_path: Path, home: Home) -> Path:
    """Return the folder of a job with a prepared dataset."""
    found = tmp_path / "toy"
    found.mkdir()
    write_numbers(found / "numbers.csv")
    (found / "model.py").write_text("def make(): ...\ndef loss(model, batch): ...\n")
    sections = {**TOY, "model": {"factory": "model:make", "loss": "model:loss"}, "resources": {"price_per_hour": 3.6}}
    (found / "job.yaml").write_text(yaml.safe_dump(sections))
    data = load_job(str(found)).spec.data
    prepare_shards(data, home, found)
    prepare(data, str(home.datasets), home.downloads, found, 1, lambda *_: None)
    return found


def ignore(*_: object) -> None:
    """Ignore progress."""


def spec_of(folder: Path, *overrides: str) -> JobSpec:
    return load_job(str(folder), overrides).spec


def dataset_of(home: Home) -> str:
    (found,) = (home.datasets / "numbers").iterdir()
    return str(found)


# Forecasts --------------------------------------------------------------------------------------------------------


def test_without_past_runs_speed_is_assumed(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    spec = spec_of(folder)
    found = forecast(spec, folder, dataset_of(home), CPUS, home)
    assert profiled == [ProfileRequest(spec.model_dump(mode="json"), str(folder), dataset_of(home))]
    assert found.site.speed.known_from.startswith("an assumed")
    assert (found.site.workers, found.site.nodes, found.steps) == (2, 1, 4)
    assert not found.site.device.is_gpu
    assert found.site.read_bytes_s > 0
    assert found.site.write_bytes_s > 0
    assert found.dollars == pytest.approx(found.hours * 2 * 3.6)
    assert not list(home.path.glob("tmp*")), "what was written to measure the disk is gone"


def past_run(home: Home, run: str, spec: JobSpec, step_s: float | None = 0.5, **facts: object) -> None:
    make_run(home, run, spec)
    known = {"base_bytes": 400_000_000, "gpus_per_worker": 0, **facts}
    train(home, run, reason=Reason.COMPLETED, step_s=step_s, **known)


def test_past_runs_of_the_model_give_its_speed(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    spec = spec_of(folder)
    past_run(home, "toy-1", spec, 0.5)
    found = forecast(spec, folder, dataset_of(home), CPUS, home)
    assert "past run" in found.site.speed.known_from
    assert found.best.pace.total == pytest.approx(0.5, rel=0.1)
    assert found.site.device.overhead_bytes == 400_000_000
    past_run(home, "toy-2", spec, 4.0)
    past_run(home, "toy-3", spec, 4.0)
    assert forecast(spec, folder, dataset_of(home), CPUS, home).best.pace.total > 2 * found.best.pace.total


def test_a_run_without_a_summary_gives_the_speed_by_its_steps(
    folder: Path, home: Home, profiled: list[ProfileRequest]
) -> None:
    spec = spec_of(folder)
    past_run(home, "toy-1", spec, step_s=None)
    log(home.run("toy-1"), [metrics("train", step, step_s=8.0) for step in range(5, 30)])
    found = forecast(spec, folder, dataset_of(home), CPUS, home)
    assert found.best.pace.total == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("model.metrics=model:loss", {}),
        ("training.precision=bf16", {}),
        ("data.sequence_length=64", {}),
        ("resources.workers={min: 1, max: 2}", {}),
        ("seed=1", {"gpus_per_worker": 1}),
        ("seed=1", {"base_bytes": None}),
    ],
)
def test_other_runs_are_ignored(
    override: str, facts: dict[str, object], folder: Path, home: Home, profiled: list[ProfileRequest]
) -> None:
    past_run(home, "toy-1", spec_of(folder, override), **facts)
    found = forecast(spec_of(folder), folder, dataset_of(home), CPUS, home)
    assert found.site.speed.known_from.startswith("an assumed")


def test_an_active_run_is_ignored(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    past_run(home, "toy-1", spec_of(folder), released=False)
    found = forecast(spec_of(folder), folder, dataset_of(home), CPUS, home)
    assert found.site.speed.known_from.startswith("an assumed")


def test_a_past_run_without_recomputation_is_faster(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    past_run(home, "toy-1", spec_of(folder), 0.5, gpus_per_worker=1)
    on_gpu = Hardware(2, 1, gpu("h100", ""), 4e9)
    plain = forecast(spec_of(folder), folder, dataset_of(home), on_gpu, home)
    recomputing = forecast(
        spec_of(folder, "training.activation_checkpointing=true"), folder, dataset_of(home), on_gpu, home
    )
    assert plain.best.pace.computing == pytest.approx(0.5)
    assert recomputing.best.pace.computing == pytest.approx(0.5 * 1.3)


# The API ----------------------------------------------------------------------------------------------------------


def plan(folder: Path, *overrides: str, kind: str | None = None, gpus: int | None = None, nodes: int = 1) -> Plan:
    return plan_job(str(folder), overrides, kind, gpus, nodes, None, True, ignore)


def test_a_job_is_planned_for_this_machine_or_for_gpus(
    folder: Path, home: Home, profiled: list[ProfileRequest]
) -> None:
    here = plan(folder)
    assert (here.site.workers, here.site.device.name) == (2, "cpu")
    there = plan(folder, "training.global_batch_size=16", kind="H100", gpus=4, nodes=2)
    assert (there.site.workers, there.site.nodes) == (8, 2)
    assert there.site.device == gpu("h100", "")
    assert profiled[-1].job["resources"]["workers"] == 8
    assert any(choice.setting.offload_optimizer for choice in there.choices)
    assert not any(choice.setting.offload_optimizer for choice in here.choices)


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        ({"kind": "h1000"}, "--gpu"),
        ({"gpus": 8}, "--gpus"),
        ({"nodes": 3}, "--nodes"),
        ({"kind": "h100", "gpus": 16}, "training.global_batch_size"),
    ],
)
def test_wrong_machines_are_refused_before_anything_is_done(
    wanted: dict[str, object], where: str, folder: Path, home: Home, profiled: list[ProfileRequest]
) -> None:
    with pytest.raises(InputError) as caught:
        plan(folder, **wanted)  # type: ignore[arg-type]  # each by its name
    assert caught.value.where == where
    assert profiled == []


def test_data_that_is_not_there_is_prepared_first(
    folder: Path, home: Home, profiled: list[ProfileRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WouldStartRayError(Exception):
        pass

    def connect(_: object) -> None:
        raise WouldStartRayError

    monkeypatch.setattr(datasets_module, "connect", connect)
    with pytest.raises(WouldStartRayError):
        plan(folder, "data.eval_fraction=0.3")


# The command ------------------------------------------------------------------------------------------------------


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def test_a_plan_is_printed(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    lines = invoke(str(folder)).stdout.splitlines()
    assert lines[0].startswith("1 M parameters, 0.008 TFLOP per step")
    assert lines[1].startswith("2 workers on 1 node, each with CPU and ")
    rows = [line.split() for line in lines if line[:1] in ("0", "1", "2", "3")]
    assert [row[0] for row in rows[-4:]] == ["0", "1", "2", "3"]
    assert sum("best" in row for row in rows) == 1
    facts = {line[:12].strip(): line[12:] for line in lines[lines.index("", 3) + 1 :]}
    assert facts["step"].endswith("of the peak")
    assert facts["time"].startswith("0:00:0")
    assert facts["cost"].startswith("$0.0")
    assert facts["try"].startswith("--set training.zero_stage=")
    assert "host" not in facts


def test_a_plan_for_gpus_is_printed(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    said = invoke(str(folder), "--gpu", "h100", "--gpus", "2", "--nodes", "2").stdout
    assert "4 workers on 2 nodes, each with h100 and 80 GB of memory" in said
    assert "offload all" in said


def test_a_network_is_assumed_or_given(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    arguments = (str(folder), "--gpu", "h100", "--gpus", "2", "--nodes", "2")
    assert "each node has an assumed 400 Gb/s (--network-gbps)" in invoke(*arguments).stdout
    assert "at 1.25 GB/s between workers; each node has 10 Gb/s" in invoke(*arguments, "--network-gbps", "10").stdout
    facts = invoke(str(folder), "--set", "resources.workers=1").stdout
    assert "network     not used by one worker" in facts
    bf16 = invoke(str(folder), "--set", "training.precision=bf16").stdout
    assert "zero 0 is left out: training.precision is bf16" in bf16
    assert "samples/s" in bf16


def test_a_plan_without_data(home: Home, tmp_path: Path, folder: Path) -> None:
    """The model is profiled with samples as the job describes them; a job with columns does not."""
    (tmp_path / "text.txt").write_text("never read")
    override = f"data.source={tmp_path / 'text.txt'}"
    said = invoke("language-model", "--no-data", "--set", override).stdout
    facts = {line[:12].strip(): line[12:] for line in said.splitlines()}
    assert facts["throughput"].endswith("divided by 2")
    assert "tokens/s" in facts["throughput"]
    assert "without evaluations" in facts["time"]
    assert facts["assumed"] == "a vocabulary of 4,096; short texts give fewer tokens"
    epochs = ("--set", "training.steps=null", "--set", "training.epochs=1.0", "--set", override)
    assert "time        unknown without the data" in invoke("language-model", "--no-data", *epochs).stdout
    assert not (home.path / "datasets").exists() or not list(home.datasets.glob("language*"))
    error = invoke(str(folder), "--no-data", code=2).stderr
    assert error.startswith("error: --no-data: got data.columns, whose shapes only the data shows")


def test_a_plan_for_programs(folder: Path, home: Home, profiled: list[ProfileRequest]) -> None:
    found = json.loads(invoke(str(folder), "--json").stdout)
    assert found["profile"]["parameters"] == 1_000_000
    assert [choice["setting"]["zero_stage"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["as_written"]["setting"]["zero_stage"] == 1


def test_a_job_that_does_not_fit_is_one_line(
    folder: Path, home: Home, profiled: list[ProfileRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = ModelProfile(**{**PROFILE.__dict__, "parameters": 10**13, "trained": 10**13, "largest": 10**10})
    monkeypatch.setattr(forecast_module, "profile", lambda _: huge)
    error = invoke(str(folder), "--gpu", "t4", code=2).stderr
    assert "a model that needs" in error
    assert len(error.splitlines()) == 1


def test_offloading_shows_the_host_memory(
    folder: Path, home: Home, profiled: list[ProfileRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(folder, kind="h100")
    offloaded = next(choice for choice in found.choices if choice.setting.offload_parameters)
    _show(Plan(**{**found.__dict__, "best": offloaded, "dollars": None}), Console(width=200))
    said = capsys.readouterr().out
    assert "of a node's memory for each worker" in said
    assert "--set training.offload.optimizer=cpu --set training.offload.parameters=cpu" in said
    assert "cost" not in said
