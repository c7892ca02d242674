"""Checkpoints in object storage, on a real S3 server that refuses, breaks off, lies and goes away."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_workers.checkpoints.store import MANIFEST, committed

from tests.cluster.harness import Result, command_line, resume_run, run_job, wait_until_gone
from tests.s3 import S3, s3_server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        yield server


def settings(s3: S3) -> list[str]:
    return [f"checkpoint.location={s3.url}/runs", f"checkpoint.storage.endpoint_url={s3.storage.endpoint_url}"]


def test_a_run_without_its_folder_resumes_from_storage(
    toy_job: Path, shared_home: Path, undisturbed: Result, s3: S3
) -> None:
    """Requests fail in all ways, and the newest checkpoint in storage is damaged: the result is bit-identical."""
    s3.faults.refused, s3.faults.internal_error, s3.faults.cut = 0.3, 0.2, 0.1
    job = run_job(toy_job, shared_home, *settings(s3), own_ray=True)
    view = job.wait_for(lambda view: view["facts"].get("stored", "").split("/")[-1] >= "step-00000016")
    ours = [psutil.Process(pid) for pid in view["pids"].values()]
    job.close()
    assert wait_until_gone(ours) == []
    folder, run_id = shared_home / "runs" / view["run_id"], view["run_id"]
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "ledger")
    there = StorageFolder(f"{s3.url}/runs/{run_id}", s3.direct)
    stored = sorted(name for name in there.files("checkpoints") if name.endswith(MANIFEST))[-1]
    damaged = stored.replace(MANIFEST, "rank-00001.bin")
    content = bytearray(there.read(damaged))
    content[1000] ^= 4
    there.write(damaged, content)

    resumed = resume_run(run_id, shared_home)
    warned = resumed.wait_for(lambda view: bool(view["problem"]))
    assert damaged in warned["problem"]
    assert "do not have the checksum of the written ones" in warned["problem"]
    result = resumed.finish()
    assert result.code == 0, result.errors
    assert result.facts["reason"] == "completed"
    assert result.weights_digest() == undisturbed.weights_digest()
    assert result.series("loss") == undisturbed.series("loss")
    assert "step-00000040" in result.facts["stored"]
    audit = command_line(shared_home, "audit", run_id)
    assert "exactly once per epoch" in audit.stdout, audit.stderr
    set_aside = stored.replace(MANIFEST, "manifest.corrupt.json")
    assert set_aside in there.files("checkpoints")
    kept = {name.split("/")[1] for name in there.files("checkpoints")} - {set_aside.split("/")[1]}
    assert kept == {checkpoint.folder(folder).name for checkpoint in committed(folder / "checkpoints")}
    assert s3.faults.seen["refused"] > 0
    assert s3.faults.seen["internal_error"] > 0


@pytest.mark.slow
def test_an_outage_delays_no_step(
    toy_job: Path, shared_home: Path, tmp_path: Path, undisturbed: Result, s3: S3
) -> None:
    """Storage fails after the first upload and recovers after training."""
    job = run_job(toy_job, shared_home, *settings(s3))
    job.wait_for(lambda view: "stored" in view["facts"])
    s3.faults.down = True
    view = job.wait_for(lambda view: view["phase"] == "finishing" and view["problem"])
    assert view["step"] == 40
    assert "checkpoints are not uploaded yet (attempt 1)" in view["problem"]
    s3.faults.down = False
    result = job.finish()
    assert result.code == 0, result.errors
    assert result.series("loss") == undisturbed.series("loss")
    assert "step-00000040" in result.facts["stored"]
    (shared_home / "runs" / result.run_id / "checkpoints").rename(tmp_path / "away")
    there = StorageFolder(f"{s3.url}/runs/{result.run_id}", s3.direct)
    assert f"checkpoints/step-00000040.g0001/{MANIFEST}" in there.files("checkpoints")


def test_storage_that_cannot_be(toy_job: Path, tmp_path: Path) -> None:
    wrong = command_line(tmp_path, "validate", str(toy_job), "--set=checkpoint.location=s4://bucket")
    assert wrong.returncode == 2
    assert "checkpoint.location: got 's4://bucket'" in wrong.stderr


def test_a_run_does_not_restart_by_mistake(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """Its folder is lost, and its checkpoints in storage are damaged: an error, not step 0."""
    home, place = shared_home, tmp_path / "place"
    settings = [f"checkpoint.location={place}", "checkpoint.keep=2"]
    job = run_job(toy_job, home, *settings)
    view = job.wait_for(lambda view: view["facts"].get("stored", "").split("/")[-1] >= "step-00000016")
    job.process.send_signal(signal.SIGINT)
    stopped = job.finish()
    assert stopped.facts["reason"] == "cancelled"
    stored, run = place / view["run_id"] / "checkpoints", home / "runs" / view["run_id"]
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert (stored / newest / MANIFEST).exists(), "what was saved on the request to stop is uploaded"
    shutil.rmtree(run / "checkpoints")
    for path in stored.glob("*/rank-00000.json"):
        path.write_text(path.read_text().replace("3", "4", 1))
    lost = resume_run(view["run_id"], home).finish()
    assert lost.code == 1
    assert lost.facts["reason"] == "storage"
    assert f"no checkpoint in {place / view['run_id']} can be loaded" in lost.facts["detail"]
    assert len(list(stored.glob("*/manifest.corrupt.json"))) == 2


@pytest.mark.slow  # runs upload above
def test_upload_by_hand(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """Missing uploads at the end of a run are done later; the location may be a plain folder."""
    home, place = shared_home, tmp_path / "place"
    result = run_job(toy_job, home, f"checkpoint.location={place}", "checkpoint.keep={last: 1, every: 16}").finish()
    assert result.code == 0, result.errors
    stored = place / result.run_id / "checkpoints"
    assert sorted(path.name[:13] for path in stored.iterdir()) == ["step-00000016", "step-00000032", "step-00000040"]
    shutil.rmtree(place)
    done = command_line(home, "checkpoints", result.run_id, "--upload", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("uploaded") == 3
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [40, 32, 16]
    assert sorted(path.name[:13] for path in stored.iterdir()) == ["step-00000016", "step-00000032", "step-00000040"]
