"""Checks of one machine. Every function checks the machine it runs on; Ray calls them on all nodes."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pynvml
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.folder import open_storage
from packaging.requirements import Requirement

from drivetrain.doctor.finding import Finding, failed, ok, run_check, warning

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory, not a temporary folder
_SHARED_MEMORY_BYTES = (256 << 20, 2 << 30)  # minimum; recommended
_DISK_BYTES = (1 << 30, 10 << 30)
_PROBE_BYTES = 64 << 20
_MIN_BYTES_PER_S = 50e6


def examine(home: Path, locations: tuple[str, ...] = (), access: StorageSpec | None = None) -> list[Finding]:
    """Run all checks of one machine.

    Args:
        home: ``DRIVETRAIN_HOME``.
        locations: additional folders or storage URLs.
        access: settings for object storage.
    """
    return [
        versions(),
        shared_memory(),
        disk(home),
        gpus(),
        *(storage(location, access or StorageSpec()) for location in (str(home), *locations)),
    ]


def versions() -> Finding:
    """Check that the dependencies of `drivetrain` are installed in supported versions."""
    wanted = [Requirement(line) for line in metadata.requires("drivetrain") or []]
    problems = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": "train"}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if problems:
        return failed("versions", "; ".join(problems), "Reinstall Drivetrain: pip install --force-reinstall drivetrain")
    python = ".".join(map(str, sys.version_info[:3]))
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("drivetrain", "ray", "torch", "deepspeed"))
    return ok("versions", f"Python {python}, {shown}")


def shared_memory() -> Finding:
    """Check the shared memory, which holds samples and copies of checkpoints."""
    minimum, enough = _SHARED_MEMORY_BYTES
    usage = shutil.disk_usage(_SHARED_MEMORY)
    found = f"{_size(usage.free)} free of {_size(usage.total)}"
    fix = "Increase it: `docker run --shm-size=8g`, or an emptyDir with medium Memory at /dev/shm."
    if usage.free < minimum:
        return failed("shared memory", found, fix)
    return warning("shared memory", found, fix) if usage.free < enough else ok("shared memory", found)


def disk(home: Path) -> Finding:
    """Check the free disk space of the home, which holds datasets, runs and checkpoints."""
    minimum, enough = _DISK_BYTES
    free = shutil.disk_usage(home).free
    found = f"{_size(free)} free in {home}"
    fix = "Free some space (`drivetrain data gc`), or set DRIVETRAIN_HOME to a larger disk."
    if free < minimum:
        return failed("disk", found, fix)
    return warning("disk", found, fix) if free < enough else ok("disk", found)


def gpus() -> Finding:
    """Check the GPU driver and list the GPUs."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        if not any(Path("/dev").glob("nvidia[0-9]*")):
            return ok("GPUs", "none; training uses CPUs")
        return failed("GPUs", "devices exist, but the driver does not respond", "Install or reload NVIDIA's driver.")
    try:
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return ok("GPUs", f"{', '.join(names)}; driver {pynvml.nvmlSystemGetDriverVersion()}")
    finally:
        pynvml.nvmlShutdown()


def storage(location: str, access: StorageSpec) -> Finding:
    """Write, read and remove a file, and measure the speed."""
    check = f"storage {location}"
    fix = "Check the path or URL, the credentials and the write permission."
    return run_check(check, lambda: _measure(check, location, access), fix)


def _measure(check: str, location: str, access: StorageSpec) -> Finding:
    system, folder = open_storage(location, access)
    path = f"{folder.rstrip('/')}/.drivetrain-doctor-{os.getpid()}-{time.time_ns()}"
    content = os.urandom(_PROBE_BYTES)
    try:
        write = _seconds(lambda: system.pipe_file(path, content))
        received: list[bytes] = []
        read = _seconds(lambda: received.append(system.cat_file(path)))
    finally:
        if system.exists(path):
            system.rm_file(path)
    if received != [content]:
        return failed(check, "the data read differs from the data written", "Do not use this storage.")
    speeds = [_PROBE_BYTES / seconds for seconds in (write, read)]
    found = f"writes {speeds[0] / 1e6:.0f} MB/s, reads {speeds[1] / 1e6:.0f} MB/s"
    if min(speeds) < _MIN_BYTES_PER_S:
        return warning(check, found, "Slow storage delays checkpoints and data; use faster storage.")
    return ok(check, found)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
