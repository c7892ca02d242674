"""A real MLflow server, as in production and with faults: finally it has every record exactly once."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import s3fs
from drivetrain.runs.store import RunStore
from mlflow import MlflowClient

from tests.cluster.harness import Result, command_line, run_job, wait_until
from tests.mlflow_server import PASSWORD, USER, mlflow_server
from tests.postgres import Postgres
from tests.s3 import s3_server


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "slow", "broken"])
def test_a_tracking_server_with_faults(
    fault: str, toy_job: Path, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        job = run_job(toy_job, tmp_path / "home", "tracking.registered_model=toy", own_ray=True)
        job.wait_for_step(5)
        if fault == "killed":
            server.kill()
        else:
            server.mode = fault
        ended = job.finish()
        assert ended.facts["reason"] == "completed"
        assert ended.facts["tracked"] is False
        server.mode = "good"
        if fault == "killed":
            server.start()
        done = command_line(tmp_path / "home", "sync", ended.run_id)
        assert done.stdout == "MLflow has received everything\n"
        facts = RunStore(f"sqlite:///{tmp_path / 'home' / 'drivetrain.db'}").get(ended.run_id).facts.to_json()
        found = Result(0, ended.run_id, facts, {}, ended.home, "")
        assert found.series("loss") == undisturbed.series("loss")
        assert found.series("eval_loss") == undisturbed.series("eval_loss")
        steps = found.series("step_s").values()
        print(f"{fault}: {median(steps):.4f} s a step; {median(undisturbed.series('step_s').values()):.4f} without")
        client = MlflowClient(server.direct)
        run = client.get_run(found.facts["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        models = client.search_logged_models([run.info.experiment_id])
        assert sorted(model.name for model in models) == ["step-00000024", "step-00000032", "step-00000040"]
        (version,) = client.search_model_versions("name = 'toy'")
        assert version.run_id == run.info.run_id
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "model")}
        assert names == {"model/model.safetensors"}


@pytest.mark.slow
def test_a_server_with_users_postgresql_and_s3(
    toy_job: Path, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong password only the tracking fails, until `sync` uses the right one."""
    places = [tmp_path / name for name in ("server", "s3")]
    for place in places:
        place.mkdir()
    with Postgres() as postgres, s3_server(places[1]) as s3:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", str(s3.direct.endpoint_url))
        database = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
        with mlflow_server(places[0], database, f"{s3.url}/mlflow", users=True) as server:
            monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong one")
            ended = run_job(toy_job, tmp_path / "home", "tracking.registered_model=toy", own_ray=True).finish()
            assert ended.facts["reason"] == "completed"
            assert ended.facts["tracked"] is False
            assert "401" in ended.facts["tracking_problem"]
            refused = command_line(tmp_path / "home", "sync", ended.run_id, "--timeout", "3")
            assert refused.returncode == 1
            assert "MLflow has not accepted everything within 3 s; the rest is kept. " in refused.stderr
            assert "401" in refused.stderr
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            assert command_line(tmp_path / "home", "sync", ended.run_id).stdout == "MLflow has received everything\n"
            facts = RunStore(f"sqlite:///{tmp_path / 'home' / 'drivetrain.db'}").get(ended.run_id).facts.to_json()
            found = Result(0, ended.run_id, facts, {}, ended.home, "")
            assert found.series("loss") == undisturbed.series("loss")
            client = MlflowClient(server.direct)
            run = client.get_run(facts["mlflow_run_id"])
            assert run.info.status == "FINISHED"
            assert client.get_model_version("toy", "1").run_id == run.info.run_id
            weights = Path(client.download_artifacts(run.info.run_id, "model/model.safetensors"))
            assert weights.stat().st_size > 4 * facts["parameters"]
            stored = s3fs.S3FileSystem(endpoint_url=s3.direct.endpoint_url).find(f"{s3.url}/mlflow")
            assert any(path.endswith("model.safetensors") for path in stored)


@pytest.mark.slow  # tests/unit/test_late_tracking.py is quicker
def test_a_run_whose_data_could_not_be_prepared_is_terminal_when_the_server_answers(
    toy_job: Path, shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a command: the coordinator sends what is missing. Until then `status` says so."""
    with mlflow_server(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        server.mode = "away"
        ended = run_job(toy_job, shared_home, "name=late", "data.text_column=missing", "data.format=csv").finish()
        assert ended.facts["reason"] == "prepare_failed"
        shown = command_line(shared_home, "status", ended.run_id).stdout
        assert f"`drivetrain sync {ended.run_id}` sends it" in shown
        assert f"last error: {server.uri} does not respond" in shown
        server.mode = "good"
        store = RunStore(f"sqlite:///{shared_home / 'drivetrain.db'}")
        wait_until(lambda: bool(store.get(ended.run_id).facts.tracked))
        run_id = store.get(ended.run_id).facts.mlflow_run_id
        assert MlflowClient(server.direct).get_run(run_id).info.status == "FAILED"
