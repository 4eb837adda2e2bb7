"""Where samples' data lies in memory, by the file's allocation table; never outside the file."""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel


@kernel
def find_size(pointer: int, starts: np.ndarray, sizes: np.ndarray) -> int:
    """Bytes of the region that begins at a pointer; -1 where none does. `starts` are sorted."""
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) >> 1
        if np.int64(starts[middle]) < pointer:
            low = middle + 1
        else:
            high = middle
    if low < len(starts) and np.int64(starts[low]) == pointer:
        return int(np.int64(sizes[low]))
    return -1


@kernel
def locate_in_file(
    pointers: np.ndarray, starts: np.ndarray, sizes: np.ndarray, file: int, length: int,
    regions: np.ndarray,
) -> None:  # fmt: skip
    """Fills int64 (n, 2), address and bytes of each sample; (0, 0) where it has no whole region.

    Args:
        pointers: uint64 (n,), offsets in the file.
        starts, sizes: uint64, of the allocation table, sorted by offset.
        file, length: address of the file in memory, and its bytes.
    """
    for i in range(len(pointers)):
        pointer = int(np.int64(pointers[i]))
        size = find_size(pointer, starts, sizes)
        regions[i, 0] = regions[i, 1] = 0
        if size > 0 and pointer >= 0 and pointer <= length - size:
            regions[i, 0], regions[i, 1] = file + pointer, size


@kernel
def locate_in_pages(
    pointers: np.ndarray, starts: np.ndarray, sizes: np.ndarray, pages: np.ndarray,
    slots: np.ndarray, regions: np.ndarray,
) -> None:  # fmt: skip
    """The same where pages of the file were read into slots.

    Args:
        pages: uint8 (slots, page size).
        slots: uint32, the slot of each page.
    """
    page_size = pages.shape[1]
    for i in range(len(pointers)):
        pointer = int(np.int64(pointers[i]))
        size = find_size(pointer, starts, sizes)
        page, offset = pointer // page_size, pointer % page_size
        regions[i, 0] = regions[i, 1] = 0
        if size > 0 and 0 <= page < len(slots) and offset <= page_size - size:
            slot = int(np.int64(slots[page]))
            if slot < len(pages):
                regions[i, 0] = pages.ctypes.data + slot * page_size + offset
                regions[i, 1] = size
