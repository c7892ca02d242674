"""A real MLflow server that is killed, slow or broken while a run trains: in the end it has everything, once."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from drivetrain.runs.store import RunStore
from mlflow import MlflowClient

from tests.cluster.harness import Result, command_line, run_job
from tests.mlflow_server import mlflow_server


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "slow", "broken"])
def test_a_tracking_server_in_trouble(
    trouble: str, toy_job: Path, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        job = run_job(toy_job, tmp_path / "home", "tracking.register_as=toy")
        job.wait_for_step(5)
        if trouble == "killed":
            server.kill()
        else:
            server.mode = trouble
        ended = job.finish()
        assert ended.facts["reason"] == "completed"
        assert ended.facts["tracked"] is False
        server.mode = "good"
        if trouble == "killed":
            server.start()
        done = command_line(tmp_path / "home", "sync", ended.run_id)
        assert done.stdout == "MLflow has everything\n"
        facts = RunStore(f"sqlite:///{tmp_path / 'home' / 'drivetrain.db'}").get(ended.run_id).facts
        found = Result(0, ended.run_id, facts, {}, ended.home, "")
        assert found.series("loss") == undisturbed.series("loss")
        assert found.series("eval_loss") == undisturbed.series("eval_loss")
        steps = found.series("step_s").values()
        print(f"{trouble}: {median(steps):.4f} s a step; {median(undisturbed.series('step_s').values()):.4f} without")
        client = MlflowClient(server.direct)
        run = client.get_run(found.facts["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        models = client.search_logged_models([run.info.experiment_id])
        assert sorted(model.name for model in models) == ["step-00000024", "step-00000032", "step-00000040"]
        (version,) = client.search_model_versions("name = 'toy'")
        assert version.run_id == run.info.run_id
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "model")}
        assert names == {"model/model.safetensors"}
