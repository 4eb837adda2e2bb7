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
def will_need(handle: int, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Has parts of a file, int64 (n,), read into the page cache; does not wait for them."""
    for i in range(len(starts)):
        _fadvise(handle, starts[i], sizes[i], POSIX_FADV_WILLNEED)


@kernel
def drop(handle: int, file: int, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Drops parts of a file that is mapped at `file` from the page cache: the whole pages."""
    for i in range(len(starts)):
        first = -(-starts[i] // PAGE) * PAGE
        size = (starts[i] + sizes[i]) // PAGE * PAGE - first
        if size > 0:
            _madvise(file + first, size, MADV_DONTNEED)
            _fadvise(handle, first, size, POSIX_FADV_DONTNEED)
