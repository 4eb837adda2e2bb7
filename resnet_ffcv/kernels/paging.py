"""Advice to the operating system on which parts of a file to read or to drop.

The functions of the C library are called without the GIL, a batch at a time.
"""

import numpy as np
from numba import types

from resnet_ffcv.kernels.compiling import kernel

PAGE = 4096  # bytes; where the system's are larger, calls on smaller ones fail and nothing is done
POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED, MADV_DONTNEED = 3, 4, 4  # of Linux

_madvise = types.ExternalFunction("madvise", types.int32(types.uintp, types.uintp, types.int32))
_fadvise = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)


@kernel
def clamp(start: int, size: int, length: int) -> tuple[int, int]:
    """(begin, end) of the part of a file of `length` bytes; empty if none of it is inside."""
    if start < 0 or size <= 0 or start >= length:
        return 0, 0
    return start, start + min(size, length - start)


@kernel
def will_need(handle: int, length: int, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Asks for parts, int64 (n,), of a file of `length` bytes to be read into the page cache.

    Does not wait for them.
    """
    for i in range(len(starts)):
        begin, end = clamp(starts[i], sizes[i], length)
        if begin < end:
            _fadvise(handle, begin, end - begin, POSIX_FADV_WILLNEED)


@kernel
def drop(handle: int, file: int, length: int, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Drops the whole pages in parts, int64 (n,), of a file from the page cache.

    The file is mapped at the address `file` and has `length` bytes; nothing outside is touched.
    """
    for i in range(len(starts)):
        begin, end = clamp(starts[i], sizes[i], length)
        first = -(-begin // PAGE) * PAGE
        size = end // PAGE * PAGE - first
        if size > 0:
            _madvise(file + first, size, MADV_DONTNEED)
            _fadvise(handle, first, size, POSIX_FADV_DONTNEED)
