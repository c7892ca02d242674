"""Ray as a command starts or joins it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.warm_ray import warm_ray

# Ray's agents, which it gives 15 s: the first ones take longer, as on a busy machine.
_SLOW = """
import os, sys, time
if any(name in " ".join(sys.orig_argv) for name in ("dashboard/agent.py", "runtime_env/agent/main.py")):
    if os.path.exists(os.environ["SLOW_UNTIL"]):
        time.sleep(20)
        try:
            os.unlink(os.environ["SLOW_UNTIL"])
        except FileNotFoundError:
            pass
"""
_CONNECT = """
import sys
import ray
from drivetrain.cluster.connection import connect
with connect(*sys.argv[1:]):
    print("connected to", ray.get_runtime_context().gcs_address)
    print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def start(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRIVETRAIN_HOME": str(tmp_path / "home"), **variables}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", _CONNECT, *arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_start_that_takes_too_long_for_ray_is_tried_again(tmp_path: Path) -> None:
    """Ray's files are in a short folder, as the one of ``RAY_TMPDIR`` is too long for its sockets."""
    (tmp_path / "sitecustomize.py").write_text(_SLOW)
    marker, long = tmp_path / "slow", tmp_path / ("long" * 20)
    marker.touch()
    long.mkdir()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = start(tmp_path, "local", PYTHONPATH=path, SLOW_UNTIL=str(marker), RAY_TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "42"
    folder, waiting, again, *rest = done.stderr.splitlines()
    assert folder.startswith("Ray's files are in /tmp, not in ")
    assert waiting == "starting Ray…"
    assert again == "Ray did not start (The current node timed out during startup); trying again…"
    assert rest == []
    assert not marker.exists()


def test_an_address_alone_is_enough_to_join_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    address = warm_ray.environment["RAY_ADDRESS"]
    proxy = "http://127.0.0.1:9"
    for done in (
        start(tmp_path, address, http_proxy=proxy, https_proxy=proxy, grpc_proxy=proxy, ALL_PROXY=proxy),
        start(tmp_path, RAY_ADDRESS=address),
    ):
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"connected to {address}", "42"]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = start(tmp_path, address, RAY_AUTH_TOKEN_PATH=f"{elsewhere}/token")
    assert "asks for a token, and none is here" in done.stderr
