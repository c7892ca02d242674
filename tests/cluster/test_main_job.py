"""The main job at toy size and its results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import RunFolder
from safetensors.numpy import load_file

from tests.cluster.harness import Result, command_line, run_job


def test_summary(undisturbed: Result) -> None:
    assert undisturbed.code == 0
    facts = undisturbed.facts
    assert facts["reason"] == "completed"
    assert facts["eval_loss"] < facts["unigram_entropy"]
    assert facts["sample"].startswith("the cat")
    assert Path(facts["checkpoint"], "manifest.json").exists()
    assert Path(facts["picture"]).read_bytes().startswith(b"\x89PNG")


def test_second_run_prepares_nothing(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    shards = {p: p.stat().st_mtime_ns for p in Path(undisturbed.facts["dataset"]).iterdir()}
    again = run_job(toy_job, shared_home, "tracking.registered_model=toy").finish()
    assert again.run_id != undisturbed.run_id
    registered(again)
    assert_one_difference(again, undisturbed)
    assert not again.facts["dataset_made"]
    assert {p: p.stat().st_mtime_ns for p in Path(again.facts["dataset"]).iterdir()} == shards
    assert again.weights_digest() == undisturbed.weights_digest()


def assert_one_difference(again: Result, undisturbed: Result) -> None:
    """Assert with `drivetrain diff` that two runs differ in one setting only."""
    picture = again.home / "losses.png"
    runs = (undisturbed.run_id, again.run_id)
    found = json.loads(command_line(again.home, "diff", *runs, "--json", f"--picture={picture}").stdout)
    assert found["settings"] == {"tracking.registered_model": [None, "toy"]}
    assert found["environment"] == {}
    assert found["code"] == []
    assert found["worlds"] == [[[1, 2]], [[1, 2]]]
    assert (found["same_steps"], found["losses"]) == (40, None)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = command_line(again.home, "diff", *runs).stdout
    assert "tracking.registered_model" in text
    assert "the losses of the first 40 steps are bitwise equal" in text


def registered(result: Result) -> None:
    """Assert that checkpoints are logged models, and the weights a version of a registered model."""
    from mlflow import MlflowClient

    client = MlflowClient(result.facts["mlflow_uri"])
    run = client.get_run(result.facts["mlflow_run_id"])
    models = [m for m in client.search_logged_models([run.info.experiment_id]) if m.source_run_id == run.info.run_id]
    assert sorted(model.name for model in models) == ["step-00000024", "step-00000032", "step-00000040"]
    (last,) = (model for model in models if model.tags["step"] == "40")
    assert last.tags["location"] == result.facts["checkpoint"]
    assert {metric.key: metric.value for metric in last.metrics} == {
        "checkpoint_eval_loss": pytest.approx(result.facts["eval_loss"])
    }
    (version,) = client.search_model_versions("name = 'toy'")
    assert version.run_id == run.info.run_id
    weights = load_file(client.download_artifacts(run.info.run_id, "model/model.safetensors"))
    assert sum(tensor.size for tensor in weights.values()) == result.facts["parameters"]


def test_mlflow_has_everything(toy_job: Path, undisturbed: Result) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(undisturbed.facts["mlflow_uri"])
    run = client.get_run(undisturbed.facts["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == undisturbed.run_id
    assert run.data.tags["mlflow.user"] == run.data.tags["drivetrain.user"]
    assert run.info.end_time - run.info.start_time >= 1000 * sum(undisturbed.series("step_s").values())
    assert run.data.params["training.optimizer.lr"] == "0.01"
    assert run.data.params["resources.workers"] == "2"
    assert run.data.tags["drivetrain.code_version"]
    assert run.data.tags["drivetrain.dataset_version"] == undisturbed.facts["dataset_version"]
    for key in ("loss", "learning_rate", "gradient_norm", "tokens_per_s", "data_wait_share"):
        assert list(undisturbed.series(key)) == list(range(1, 41)), key
    assert list(undisturbed.series("eval_loss")) == [10, 20, 30, 40]
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.name == "toy"
    assert entry.dataset.digest == undisturbed.facts["dataset_version"]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    pictures, texts = {"loss.png", "goodput.png"}, {"job.yaml", "resolved.json", "environment.json", "sample.txt"}
    assert names == {"code", *pictures, *texts}
    written = Path(client.download_artifacts(run.info.run_id, "job.yaml")).read_text()
    assert written == (toy_job / "job.yaml").read_text()
    resolved = json.loads(Path(client.download_artifacts(run.info.run_id, "resolved.json")).read_text())
    assert resolved["training"]["gradient_clipping"] == 1.0


def test_every_second_is_accounted_for(undisturbed: Result) -> None:
    from mlflow import MlflowClient

    account = undisturbed.facts["account"]
    seconds = account["seconds"]
    assert sum(seconds.values()) == pytest.approx(account["wall_s"])
    timeline = undisturbed.last_view["timeline"]
    assert seconds["computing"] + seconds["communicating"] >= 40 * 0.12, "the loss sleeps as long in each step"
    assert timeline["requested"] < timeline["forked"] < timeline["loaded"]
    assert seconds["starting"] > 0
    assert seconds["recomputing"] == seconds["recovering"] == 0
    assert account["worker_hours"] * 3600 < 2 * account["wall_s"], "its two workers were not there from the beginning"
    assert account["energy_kwh"] > 0
    assert "estimate" in account["energy_from"] or "rapl" in account["energy_from"]
    client = MlflowClient(undisturbed.facts["mlflow_uri"])
    run = client.get_run(undisturbed.facts["mlflow_run_id"])
    assert run.data.metrics["goodput"] == account["goodput"]
    assert run.data.metrics["time/computing_s"] == seconds["computing"]
    assert any(name.startswith("system/") and "cpu_utilization" in name for name in run.data.metrics)


def test_report_is_one_page_with_everything(undisturbed: Result) -> None:
    path = Path(command_line(undisturbed.home, "report", undisturbed.run_id).stdout.strip())
    page = path.read_text()
    assert path == undisturbed.home / "runs" / undisturbed.run_id / "report.html"
    assert page.count('src="data:image/png;base64,') == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    for shown in (undisturbed.run_id, "all steps are done", "training.optimizer.lr", "computing", "goodput", "the cat"):
        assert shown in page, shown


def test_ledger_accounts_for_every_position(undisturbed: Result) -> None:
    records = ledger.read(RunFolder(undisturbed.home / "runs" / undisturbed.run_id).ledger)
    assert [record.positions for record in records] == [(8 * i, 8 * (i + 1)) for i in range(40)]
    assert {record.step: record.loss for record in records} == undisturbed.series("loss")


def test_predict_and_list(undisturbed: Result) -> None:
    def predict(seed: int) -> str:
        return command_line(
            undisturbed.home,
            "predict",
            undisturbed.run_id,
            "the dog",
            "--max-tokens",
            "6",
            f"--seed={seed}",
        ).stdout

    first = predict(1)
    assert first.startswith("the dog")
    assert predict(1) == first
    listed = command_line(undisturbed.home, "list").stdout
    assert undisturbed.run_id in listed
    assert "completed" in listed


@pytest.mark.slow  # test_checkpoints goes from stage to stage
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_give_the_same_losses(toy_job: Path, shared_home: Path, undisturbed: Result, stage: int) -> None:
    """Stage 2 is the undisturbed run. Each stage is killed once and also resumes from its own checkpoint."""
    job = run_job(toy_job, shared_home, f"training.zero_stage={stage}")
    job.kill_part("rank-1", 20)
    result = job.finish()
    assert result.code == 0, result.facts
    assert result.last_view["restarts"] == 1
    assert result.series("loss") == pytest.approx(undisturbed.series("loss"), abs=2e-4)
    assert result.series("eval_loss") == pytest.approx(undisturbed.series("eval_loss"), abs=2e-4)


def test_user_code_that_fails(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    job = yaml.safe_load((toy_job / "job.yaml").read_text())
    job["model"]["loss"] = "broken:loss"
    job["data"]["source"] = str(toy_job / "text.txt")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "broken.py").write_text("def loss(model, batch):\n    raise KeyError('no such column')\n")
    result = run_job(tmp_path, shared_home).finish()
    assert result.code == 1
    assert result.facts["reason"] == "user_code"
    assert "KeyError: 'no such column'" in result.facts["detail"]
    assert result.last_view["restarts"] == 2  # one retry, then the run fails


def test_transform_and_failing_transform(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    job = yaml.safe_load((toy_job / "job.yaml").read_text())
    job["data"] |= {"source": str(toy_job / "text.txt"), "transform": "clean:upper", "name": "upper"}
    del job["model"]["loss"]
    job["sample"]["prompt"] = "THE"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "clean.py").write_text("def upper(text):\n    return text.upper()\n")
    result = run_job(tmp_path, shared_home, "training.steps=2").finish()
    assert result.code == 0, result.facts
    assert result.facts["sample"] == result.facts["sample"].upper()
    (tmp_path / "clean.py").write_text("def upper(text):\n    raise ValueError('bad text')\n")
    failed = run_job(tmp_path, shared_home, "training.steps=2").finish()
    assert failed.code == 1
    assert failed.facts["reason"] == "user_code"
    assert failed.facts["detail"] == (
        f"data.transform raised ValueError: bad text for {toy_job / 'text.txt'} (clean.py:2, in upper)"
    )


def test_more_workers_than_the_machine_holds(toy_job: Path, shared_home: Path) -> None:
    done = command_line(
        shared_home, "run", str(toy_job), "--set=resources.workers=500", "--set=training.global_batch_size=500"
    )
    assert done.returncode == 2
    assert "resources.workers: got 500 workers" in done.stderr
    assert isinstance(done, subprocess.CompletedProcess)


def test_plain_output(toy_job: Path, shared_home: Path) -> None:
    done = command_line(shared_home, "run", str(toy_job), "--set=training.steps=3")
    assert done.returncode == 0, done.stderr
    for part in ("preparing", "starting", "completed", "eval loss", "unigram entropy", "mlflow ui --backend-store-uri"):
        assert part in done.stdout, part
    assert "raylet" not in done.stdout
