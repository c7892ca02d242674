"""A server that starts its own Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from tests.cluster.harness import command_line
from tests.cluster.service import Service
from tests.cluster.test_server import wait_for_step


def test_a_default_start_listens_on_loopback_alone(toy_job: Path, short_job: Path, tmp_path: Path) -> None:
    """This holds for the server and the Ray cluster that it starts, with a training run. Other commands join it."""
    service = Service(tmp_path)
    try:
        service.start()
        with service.client() as admin:
            run = admin.submit(str(toy_job)).id
            wait_for_step(admin, run, 1)
            serving = psutil.Process(service.pid)
            parts = {part.pid: part.name() for part in (serving, *serving.children(recursive=True))}
            listening = [
                (parts[connection.pid], connection.laddr.ip.removeprefix("::ffff:"))
                for connection in psutil.net_connections("inet")
                if connection.pid in parts and connection.status == psutil.CONN_LISTEN
            ]
            assert admin.wait(run, 240).reason == "completed"
            cluster = (tmp_path / "ray-address").read_text()
            done = command_line(tmp_path, "run", str(short_job), "--json", own_ray=True)
            assert done.returncode == 0, done.stderr
            joined = json.loads(done.stdout.splitlines()[-1])["run_id"]
            assert (tmp_path / "runs" / joined / "ray-address").read_text() == cluster, "the server's Ray is joined"
    finally:
        service.stop()
    assert not (tmp_path / "ray-address").exists()
    assert {ip for _, ip in listening} == {"127.0.0.1"}, listening
    assert {"drivetrain", "gcs_server", "raylet"} <= {name for name, _ in listening}
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
