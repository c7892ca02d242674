"""Mapping and unmapping of files in reserved addresses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drivetrain_pipelines.stream.address_range import HUGE_PAGE, PAGE, AddressRange

_READ_A_CLEARED_PAGE = """
import sys
from drivetrain_pipelines.stream.address_range import PAGE, AddressRange
space = AddressRange(PAGE)
with open(sys.argv[1], "rb") as file:
    space.map_file(0, file.fileno(), PAGE)
values = space.array(0, "u1", (PAGE,))
print(values[0], flush=True)
space.clear(0, PAGE)
print(values[0], flush=True)
"""


def page_of(folder: Path, value: int, pages: int = 1) -> Path:
    """Write a file of pages in which every byte has the same value."""
    path = folder / f"{value}.bin"
    path.write_bytes(bytes([value]) * PAGE * pages)
    return path


def map_path(space: AddressRange, page: int, path: Path) -> None:
    with path.open("rb") as file:  # a mapping outlives its descriptor
        space.map_file(page * PAGE, file.fileno(), path.stat().st_size)


def reserved(address: int) -> bool:
    """Check whether the process has a mapping at an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(begin <= address < end for begin, end in ranges)


def test_files_next_to_each_other_are_one_array(tmp_path: Path) -> None:
    space = AddressRange(4 * PAGE)
    assert space.base % HUGE_PAGE == 0
    map_path(space, 1, page_of(tmp_path, 1))
    map_path(space, 2, page_of(tmp_path, 2))
    across = space.array(2 * PAGE - 4, np.int16, (2, 2))
    assert across.tolist() == [[0x0101, 0x0101], [0x0202, 0x0202]]
    space.close()


def test_a_file_replaces_another_and_its_neighbours_stay(tmp_path: Path) -> None:
    space = AddressRange(3 * PAGE)
    for page in range(3):
        map_path(space, page, page_of(tmp_path, page))
    values = space.array(0, np.uint8, (3, PAGE))
    space.clear(PAGE, PAGE)
    assert (values[0].max(), values[2].min()) == (0, 2)
    map_path(space, 1, page_of(tmp_path, 7))
    assert [set(values[page].tolist()) for page in range(3)] == [{0}, {7}, {2}]
    space.close()


def test_a_removed_file_stays_readable(tmp_path: Path) -> None:
    space = AddressRange(PAGE)
    path = page_of(tmp_path, 9)
    map_path(space, 0, path)
    path.unlink()
    assert space.array(0, np.uint8, (PAGE,)).sum() == 9 * PAGE
    space.close()


def test_reading_an_unmapped_page_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _READ_A_CLEARED_PAGE, str(page_of(tmp_path, 5))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("5\n", -signal.SIGSEGV), done.stderr


def test_a_failed_mapping_is_an_error(tmp_path: Path) -> None:
    space = AddressRange(PAGE)
    closed = os.open(page_of(tmp_path, 1), os.O_RDONLY)
    os.close(closed)
    with pytest.raises(OSError, match="mmap of shards failed") as caught:
        space.map_file(0, closed, PAGE)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="mmap of shards failed"):
        AddressRange(1 << 60)
    space.close()


def test_closing_releases_the_addresses(tmp_path: Path) -> None:
    space = AddressRange(1 << 40)  # more than any machine's memory; reserving it uses none
    inside = space.base + (1 << 39)
    assert reserved(inside)
    space.close()
    assert not reserved(inside)
    space.close()  # does nothing
