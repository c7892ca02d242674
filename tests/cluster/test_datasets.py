"""Preparation of datasets with real actors, and the dataset commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.harness import Result, command_line, environment_of, run_job, wait_until_gone
from tests.cluster.warm_ray import warm_ray
from tests.s3 import s3_server


def test_pictures_in_object_storage(pictures: Path, shared_home: Path, tmp_path: Path) -> None:
    """Prepared into a bucket, streamed through the node's cache; the losses equal those from a local folder."""
    home = shared_home
    local = run_job(pictures, home).finish()
    assert local.code == 0, local.errors
    assert local.facts["eval_loss"] < 0.4  # 0.69 is chance
    assert local.facts["skipped_records"] == 1
    assert "77.png" in local.facts["skipped_first"][0]
    assert local.facts.get("sample") is None
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as s3:
        endpoint = str(s3.direct.endpoint_url)
        job = run_job(pictures, home, f"data.location={s3.url}/sets", f"data.storage.endpoint_url={endpoint}")
        job.kill_part("rank-1", 12)
        remote = job.finish()
        assert remote.code == 0, remote.errors
        assert remote.facts["dataset"].startswith(s3.url)
        assert remote.series("loss") == local.series("loss")
        assert list(warm_ray.cache.rglob("train-*.arrow"))
        where = (remote.facts["dataset"], f"--endpoint-url={endpoint}")
        assert "verified, every checksum matches" in command_line(home, "data", "verify", *where).stdout
        assert json.loads(command_line(home, "data", "inspect", *where, "--json").stdout)["classes"] == ["blue", "red"]
        audit = command_line(home, "audit", remote.run_id)
        assert "30 steps, 480 samples" in audit.stdout, audit.stderr
        assert "exactly once per epoch" in audit.stdout


@pytest.mark.slow  # test_recovery kills the preprocessors
def test_a_killed_preparation_resumes(toy_job: Path, tmp_path: Path) -> None:
    """The bytes are identical for any number of actors; finished work is not repeated after the kill."""
    arguments = ["data", "prepare", str(toy_job), "--set=data.shard_bytes=1024"]
    alone = command_line(tmp_path / "a", *arguments, "--set=resources.preprocessors=1")
    assert alone.returncode == 0, alone.stderr
    home = tmp_path / "b"
    command = [Path(sys.executable).with_name("drivetrain"), *arguments, "--set=resources.preprocessors=2"]
    first = subprocess.Popen(command, env=environment_of(home), stdout=subprocess.DEVNULL)
    while len(parts := sorted(home.glob("datasets/toy/*/.parts/groups/*.json"))) < 5:
        assert first.poll() is None
        time.sleep(0.005)
    actors = [process for process in warm_ray.processes() if process.name().startswith("ray::Preproc")]
    assert actors
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert wait_until_gone(actors) == []  # no process writes any more
    done = {path: path.stat().st_mtime_ns for part in parts[:3] for path in _shards_of(part)}
    assert not list(home.glob("datasets/toy/*/manifest.json"))
    again = command_line(home, *arguments)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert _contents(home) == _contents(tmp_path / "a")
    assert "found, nothing to prepare" in command_line(home, *arguments).stdout


def test_looking_into_a_dataset(undisturbed: Result, tmp_path: Path) -> None:
    home = undisturbed.home
    inspected = command_line(home, "data", "inspect", "toy").stdout
    assert "tokens  fixed_size_list<item: uint16>[33]" in inspected
    assert "unigram_entropy" in inspected
    first = json.loads(command_line(home, "data", "head", "toy", "-n", "1", "--json").stdout)
    assert " the " in first["text"]
    assert command_line(home, "data", "head", "toy", "--split=nowhere").returncode == 2
    missing = command_line(home, "data", "verify", "nowhere")
    assert missing.returncode == 2
    assert "toy" in missing.stderr
    audit = command_line(home, "audit", undisturbed.run_id)
    assert audit.stdout.startswith("40 steps, 320 samples")
    unused = home / "datasets" / "toy" / "unfinished"
    unused.mkdir()
    assert str(unused) in command_line(home, "data", "gc", "--yes").stdout
    assert not unused.exists()
    assert Path(undisturbed.facts["dataset"]).exists()


def test_a_damaged_dataset_is_reported_and_prepared_again(toy_job: Path, tmp_path: Path) -> None:
    arguments = ["data", "prepare", str(toy_job)]
    assert command_line(tmp_path, *arguments).returncode == 0
    shard = sorted(tmp_path.glob("datasets/toy/*/train-*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    found = command_line(tmp_path, "data", "verify", "toy")
    assert found.returncode == 1
    assert f"{shard} is corrupt: block 0" in found.stdout


def _contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.glob("datasets/toy/*/*") if path.is_file()}


def _shards_of(marker: Path) -> list[Path]:
    shards = json.loads(marker.read_text())["content"]["shards"].values()
    return [marker.parents[2] / shard["file"] for shard in shards]
