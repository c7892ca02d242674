"""What one machine must have. Every function looks at the machine that it runs on; Ray calls them on all nodes."""

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

from drivetrain.doctor.finding import Finding, attempt, failed, ok, warning

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory is no temporary folder
_SHARED_MEMORY_BYTES = (256 << 20, 2 << 30)  # runs fail, or wait, with less
_DISK_BYTES = (1 << 30, 10 << 30)
_PROBE_BYTES = 64 << 20
_SLOW_BYTES_PER_S = 50e6


def examine(home: Path, locations: tuple[str, ...] = (), access: StorageSpec | None = None) -> list[Finding]:
    """All that can be seen without anybody else.

    Args:
        home: ``DRIVETRAIN_HOME``.
        locations: folders or URLs of storage, besides.
        access: how to reach them.
    """
    return [
        versions(),
        shared_memory(),
        disk(home),
        gpus(),
        *(storage(location, access or StorageSpec()) for location in (str(home), *locations)),
    ]


def versions() -> Finding:
    """Whether what `drivetrain` needs is installed, in versions that it works with."""
    wanted = [Requirement(line) for line in metadata.requires("drivetrain") or []]
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": "train"}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return failed("versions", "; ".join(wrong), "Install Drivetrain anew: pip install --force-reinstall drivetrain")
    python = ".".join(map(str, sys.version_info[:3]))
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("drivetrain", "ray", "torch", "deepspeed"))
    return ok("versions", f"Python {python}, {shown}")


def shared_memory() -> Finding:
    """Samples and copies of checkpoints pass through it."""
    least, enough = _SHARED_MEMORY_BYTES
    usage = shutil.disk_usage(_SHARED_MEMORY)
    found = f"{_size(usage.free)} free of {_size(usage.total)}"
    fix = "Give the container more: `docker run --shm-size=8g`, or an emptyDir of medium Memory at /dev/shm."
    if usage.free < least:
        return failed("shared memory", found, fix)
    return warning("shared memory", found, fix) if usage.free < enough else ok("shared memory", found)


def disk(home: Path) -> Finding:
    """Datasets, runs and checkpoints are kept there."""
    least, enough = _DISK_BYTES
    free = shutil.disk_usage(home).free
    found = f"{_size(free)} free in {home}"
    fix = "Make room (`drivetrain data gc`), or set DRIVETRAIN_HOME to a larger disk."
    if free < least:
        return failed("disk", found, fix)
    return warning("disk", found, fix) if free < enough else ok("disk", found)


def gpus() -> Finding:
    """Whether the driver answers, and what it drives."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        if not any(Path("/dev").glob("nvidia[0-9]*")):
            return ok("GPUs", "none; training is done on CPUs")
        return failed("GPUs", "there are devices, but no driver answers", "Install or reload NVIDIA's driver.")
    try:
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return ok("GPUs", f"{', '.join(names)}; driver {pynvml.nvmlSystemGetDriverVersion()}")
    finally:
        pynvml.nvmlShutdown()


def storage(location: str, access: StorageSpec) -> Finding:
    """Write, read back, remove; and how fast."""
    check = f"storage {location}"
    fix = "Check the path or URL, the credentials, and who may write there."
    return attempt(check, lambda: _measure(check, location, access), fix)


def _measure(check: str, location: str, access: StorageSpec) -> Finding:
    system, folder = open_storage(location, access)
    path = f"{folder.rstrip('/')}/.drivetrain-doctor-{os.getpid()}-{time.time_ns()}"
    content = os.urandom(_PROBE_BYTES)
    try:
        write = _seconds(lambda: system.pipe_file(path, content))
        back: list[bytes] = []
        read = _seconds(lambda: back.append(system.cat_file(path)))
    finally:
        if system.exists(path):
            system.rm_file(path)
    if back != [content]:
        return failed(check, "what was read is not what was written", "Do not use this storage.")
    speeds = [_PROBE_BYTES / seconds for seconds in (write, read)]
    found = f"writes {speeds[0] / 1e6:.0f} MB/s, reads {speeds[1] / 1e6:.0f} MB/s"
    if min(speeds) < _SLOW_BYTES_PER_S:
        return warning(check, found, "Checkpoints and data will wait for it; use faster storage.")
    return ok(check, found)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
