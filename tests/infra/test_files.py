"""Every file of infra/ is parsed by its tool, if that is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.infra.tools import INFRA, REPOSITORY

BIN = Path(sys.executable).parent
LOCKS = sorted(INFRA.glob("*.lock"))
PINNED = re.compile(r"^([\w.-]+)==(\S+)(?: ;.*)? \\$", re.MULTILINE)


def tracked(pattern: str) -> list[Path]:
    files = subprocess.check_output(["git", "ls-files", pattern], cwd=REPOSITORY, text=True).split()
    return [REPOSITORY / file for file in files]


def test_scripts_pass_shellcheck() -> None:
    scripts = [*tracked("*.sh"), *tracked("*.sbatch"), REPOSITORY / ".ci" / "run"]
    assert len(scripts) >= 6
    done = subprocess.run(
        [BIN / "shellcheck", "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_images_pass_hadolint() -> None:
    file = INFRA / "containers" / "Dockerfile"
    done = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_yaml_is_yaml() -> None:
    files = [path for path in tracked("infra/*.yaml") + tracked("infra/*.yml") if "templates" not in path.parts]
    assert len(files) >= 12
    for path in files:
        list(yaml.safe_load_all(path.read_text()))


def test_skypilot_scripts_are_scripts() -> None:
    task = yaml.safe_load((INFRA / "skypilot" / "drivetrain.yaml").read_text())
    assert {"resources", "num_nodes", "setup", "run", "envs"} <= task.keys()
    for part in ("setup", "run"):
        done = subprocess.run(
            [BIN / "shellcheck", "--shell=bash", "-"], input=task[part], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def pins(path: Path) -> dict[str, str]:
    return {name.lower().replace("_", "-"): version for name, version in PINNED.findall(path.read_text())}


@pytest.mark.parametrize("lock", LOCKS, ids=[path.name for path in LOCKS])
def test_every_package_of_a_lock_has_hashes(lock: Path) -> None:
    text = lock.read_text()
    packages = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)


def test_lock_files_contain_the_tested_versions() -> None:
    full, without_gpus = (pins(path) for path in sorted(LOCKS, key=lambda path: "cpu" in path.name))
    constraints = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    tested = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    assert {name: version for name, version in full.items() if tested.get(name, version) != version} == {}
    assert "torch" in full
    assert without_gpus.items() <= full.items()
    assert not {name for name in without_gpus if name in ("torch", "triton") or name.startswith(("nvidia-cu", "cuda-"))}


def test_locks_hold_all_that_is_needed() -> None:
    project = re.search(r"^dependencies = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.S | re.M)
    assert project
    full = pins(INFRA / "requirements.lock")
    for line in re.findall(r'"(.+?)"', project[1]):
        wanted = Requirement(line)
        assert SpecifierSet(str(wanted.specifier)).contains(full[wanted.name.lower()]), line


def test_slurm_script_requires_a_job() -> None:
    done = subprocess.run(["bash", INFRA / "slurm" / "drivetrain.sbatch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "JOB" in done.stderr
