"""Checks of all nodes of a Ray cluster, individually and together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from drivetrain_pipelines.storage.json_files import JsonObject
from packaging.version import Version
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drivetrain.doctor import collectives, machine
from drivetrain.doctor.finding import Finding, failed, ok, run_check, warning
from drivetrain.home import Home

_TIMEOUT_S = 180.0
_CLOCK_SKEW_LIMITS_S = (0.5, 5.0)  # for a warning; for a failure: tokens, leases and metrics would be wrong
_COMPARED_PACKAGES = ("drivetrain", "ray", "torch", "deepspeed", "pyarrow", "numpy")
_PINGS = 5


@dataclass(frozen=True)
class _Node:
    id: str
    name: str
    address: str


def examine(home: Home) -> list[Finding]:
    """Check all nodes of the connected cluster, individually and then together."""
    nodes = [_node(found) for found in ray.nodes() if found["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    answers = {node: _on(node, _look, str(home.path)) for node in nodes}
    findings, reached = [], []
    for node, answer in answers.items():
        try:
            findings += [replace(finding, node=node.name) for finding in ray.get(answer, timeout=_TIMEOUT_S)]
            reached.append(node)
        except (ray.exceptions.RayError, TimeoutError) as error:
            why = str(error).strip().splitlines()[-1]
            findings.append(
                replace(failed("node", why, "See `ray status` and Ray's logs on the node."), node=node.name)
            )
    if not reached:
        return findings
    checks: dict[str, Callable[[], Finding]] = {
        "shared home": lambda: _shared_home(home, reached),
        **{f"clock of {node.name}": partial(_clock, node) for node in reached},
        "same versions": lambda: _same_versions(reached),
        "all-reduce between nodes": lambda: _all_reduce(reached),
    }
    together = [run_check(check, function, "See `ray status` and Ray's logs.") for check, function in checks.items()]
    return [*findings, _authentication(len(nodes)), *together]


def _node(found: JsonObject) -> _Node:
    return _Node(found["NodeID"], found["NodeManagerHostname"], found["NodeManagerAddress"])


def _on(node: _Node, work: Any, *arguments: Any) -> Any:
    """Run a function on a node, without using resources of runs."""
    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned).remote(*arguments)


def _all(nodes: list[_Node], work: Any, *arguments: Any) -> list[Any]:
    """Return the results of a function on all nodes."""
    found: list[Any] = ray.get([_on(node, work, *arguments) for node in nodes], timeout=_TIMEOUT_S)
    return found


def _look(home: str) -> list[Finding]:
    return machine.examine(Path(home)) if Path(home).is_dir() else [machine.versions(), machine.shared_memory()]


def _authentication(nodes: int) -> Finding:
    if nodes > 1 and os.environ.get("RAY_AUTH_MODE") != "token":
        fix = "Start Ray with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN on all nodes."
        return warning("Ray's token", "anyone who can reach Ray's ports can run code", fix)
    return ok("Ray's token", "required" if nodes > 1 else "not needed on a single node")


def _same_versions(nodes: list[_Node]) -> Finding:
    found = dict(zip(nodes, _all(nodes, _versions), strict=True))
    (usual, _), *others = Counter(found.values()).most_common()
    if others:
        odd = [
            f"{node.name} has {_difference(versions, usual)}" for node, versions in found.items() if versions != usual
        ]
        return failed("same versions", "; ".join(odd), "Install the same image or lock file on all nodes.")
    return ok("same versions", f"on {len(nodes)} nodes: {', '.join(_COMPARED_PACKAGES)}")


def _versions() -> tuple[str, ...]:
    """Return the versions without build suffixes such as ``+cpu``."""
    return tuple(Version(metadata.version(name)).public for name in _COMPARED_PACKAGES)


def _difference(versions: tuple[str, ...], usual: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name} {a}, not {b}" for name, a, b in zip(_COMPARED_PACKAGES, versions, usual, strict=True) if a != b
    )


def _shared_home(home: Home, nodes: list[_Node]) -> Finding:
    """Check that all nodes see a file that is written here."""
    secret, note = secrets.token_hex(8), home.path / f".drivetrain-doctor-{os.getpid()}"
    note.write_text(secret)
    fix = f"Mount a shared file system at {home.path} on all nodes, or set DRIVETRAIN_HOME to a shared folder."
    try:
        seen = _all(nodes, _read, str(note))
    finally:
        note.unlink()
    missing = [node.name for node, text in zip(nodes, seen, strict=True) if text != secret]
    if missing:
        return failed("shared home", f"{', '.join(missing)} cannot see files written in {home.path}", fix)
    return ok("shared home", f"all {len(nodes)} nodes see {home.path}")


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _clock(node: _Node) -> Finding:
    return replace(check_clock([_ask_time(node) for _ in range(_PINGS)]), node=node.name)


def _ask_time(node: _Node) -> tuple[float, float, float]:
    asked = time.time()
    answer: float = ray.get(_on(node, _now), timeout=_TIMEOUT_S)
    return asked, answer, time.time()


def _now() -> float:
    return time.time()


def check_clock(answers: list[tuple[float, float, float]]) -> Finding:
    """Compare a node's clock with this machine's; the answer with the shortest round trip is the most precise.

    Args:
        answers: time of the request, time of the node, time of the reply; in seconds since the epoch.
    """
    sent, node_time, received = min(answers, key=lambda answer: answer[2] - answer[0])
    skew, error = node_time - (sent + received) / 2, (received - sent) / 2
    warn_at, fail_at = _CLOCK_SKEW_LIMITS_S
    found = f"offset {skew:+.3f} s from this machine, uncertainty {error:.3f} s"
    fix = "Run chrony or systemd-timesyncd on all nodes."
    if abs(skew) - error > fail_at:
        return failed("clock", found, fix)
    return warning("clock", found, fix) if abs(skew) - error > warn_at else ok("clock", found)


def _all_reduce(nodes: list[_Node]) -> Finding:
    """Run an all-reduce with one process per node."""
    first = nodes[0]
    port = ray.get(_on(first, _free_port, first.address), timeout=_TIMEOUT_S)
    rendezvous = f"tcp://{first.address}:{port}"
    parts = [_on(node, _join, rendezvous, rank, len(nodes)) for rank, node in enumerate(nodes)]
    check = "all-reduce between nodes"
    try:
        return collectives.verdict(check, ray.get(parts, timeout=_TIMEOUT_S))
    except (ray.exceptions.RayError, TimeoutError) as error:
        return collectives.all_reduce_failed(check, str(error).strip().splitlines()[-1])


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _join(rendezvous: str, rank: int, world_size: int) -> collectives.Outcome:
    return collectives.outcome(collectives.start(rendezvous, rank, world_size))
