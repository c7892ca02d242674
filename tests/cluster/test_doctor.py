"""`drivetrain doctor` on a machine without problems, on one with problems, and on several hosts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import COMMAND
from tests.cluster.test_hosts import Site, site
from tests.hosts import needs_hosts

Findings = dict[tuple[str, str], dict[str, Any]]  # by node and check


def doctor(home: Path, *options: str, **environment: str) -> tuple[int, Findings]:
    done = subprocess.run(
        [str(COMMAND), "doctor", "--json", *options],
        env={**os.environ, "DRIVETRAIN_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, read(done.stdout)


def read(output: str) -> Findings:
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {(finding["node"], finding["check"]): finding for finding in found}


def verdicts(findings: Findings) -> dict[str, str]:
    return {check: finding["verdict"] for (_, check), finding in findings.items()}


def test_a_machine_that_is_well(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path)
    assert (code, set(verdicts(findings).values()) - {"warning"}) == (0, {"ok"}), findings
    storage = f"storage {tmp_path}"
    expected = {"versions", "shared memory", "disk", "GPUs", storage, "tracker", "token file", "server", "ports"}
    assert verdicts(findings).keys() == expected | {"all-reduce"}
    assert list(tmp_path.iterdir()) == []


def test_each_failure_comes_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("dt_x")
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "file").write_text("no folder")
    nowhere = "http://127.0.0.1:9"
    elsewhere = ("--storage", f"{tmp_path}/file/inside", "--storage", "s4://bucket")
    code, findings = doctor(tmp_path, *elsewhere, MLFLOW_TRACKING_URI=nowhere, DRIVETRAIN_SERVER=nowhere)
    bad = {check for check, verdict in verdicts(findings).items() if verdict != "ok"}
    assert code == 1
    storages = {f"storage {tmp_path}/file/inside", "storage s4://bucket"}
    assert bad - {"shared memory", "disk"} == {"token file", "tracker", "server", *storages}
    assert all(finding["fix"] for finding in findings.values() if finding["verdict"] != "ok")


@pytest.mark.slow  # findings about machines, clocks and all-reduces are tested in tests/unit/test_doctor.py
@needs_hosts
def test_three_hosts(tmp_path: Path) -> None:
    """No problem at first; then one host does not see the shared folder and is reported."""
    with site(2, tmp_path) as here:
        well = ask_cluster(here)
        assert [finding for finding in well.values() if finding["verdict"] == "failed"] == []
        names = {here.head.name, *(host.name for host in here.others)}
        for check in ("versions", "shared memory", "disk", "clock"):
            assert {node for node, found in well if found == check} == names, check
        sums = next(finding for (_, check), finding in well.items() if check == "all-reduce between nodes")
        assert sums["found"].startswith("3 processes by gloo")
        blind = here.others[0]
        blind.run("mount", "-t", "tmpfs", "tmpfs", str(here.home))
        ill = ask_cluster(here)
        blind.run("umount", str(here.home))
    (shared,) = (finding for (_, check), finding in ill.items() if check == "shared home")
    assert shared["verdict"] == "failed"
    assert blind.name in shared["found"]
    assert here.others[1].name not in shared["found"]


def ask_cluster(here: Site) -> Findings:
    words = [str(COMMAND), "doctor", "--cluster", "--json", "--address", f"{here.head.address}:6379"]
    process = here.head.start(*words, **here.environment)
    output, _ = process.communicate(timeout=200)
    findings = read(output)
    assert findings, output
    assert process.returncode == any(finding["verdict"] == "failed" for finding in findings.values())
    return findings
