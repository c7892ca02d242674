"""Address ranges into which files are mapped: the mmap(2) calls that Python's own module does not offer."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20  # files aligned to it can be mapped with huge pages, which halves the time of a gather
_LARGE_BLOCK = 16 << 20
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE, _MAP_POPULATE = 0, 0x10, 0x4000, 0x8000  # Linux
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def keep_freed_memory() -> None:
    """Keep memory that small arrays free in this process, instead of faulting it in again for the next ones.

    glibc returns the end of its heap to the kernel at 128 KiB, until a larger block is freed: then it raises the
    bound to twice that block (mallopt(3), "dynamic mmap threshold").
    """
    bytearray(_LARGE_BLOCK)


class AddressRange:
    """Reserved addresses without memory, into which files are mapped.

    Args:
        size: bytes, a multiple of the page size; uses no memory until files are mapped.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._begin = self._mmap(None, size + HUGE_PAGE, _PROT_NONE, flags, -1)
        self.base = -(-self._begin // HUGE_PAGE) * HUGE_PAGE

    def map_file(self, offset: int, descriptor: int, size: int) -> None:
        """Map a file read-only at ``offset`` (a multiple of the page size) and populate its pages."""
        flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE
        self._mmap(self.base + offset, size, mmap.PROT_READ, flags, descriptor)

    def clear(self, offset: int, size: int) -> None:
        """Unmap a range; the addresses stay reserved."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        self._mmap(self.base + offset, size, _PROT_NONE, flags, -1)

    def array(self, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the range as an array that begins at ``offset``. Reading an unmapped part ends the process."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_char * size).from_address(self.base + offset)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))

    def close(self) -> None:
        """Release the addresses. Arrays of the range must not be read any more."""
        if self.size:
            _libc.munmap(self._begin, self.size + HUGE_PAGE)
            self.size = 0

    @staticmethod
    def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
        mapped = _libc.mmap(address, size, protection, flags, descriptor, 0)
        if mapped is None or mapped == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, f"mmap of shards failed: {os.strerror(number)}")
        return int(mapped)
