"""What samples' rows say, and where their data lies in memory; never outside the file."""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import load_byte, load_u16, load_u64


@kernel
def read_rows(
    metadata: int, step: int, count: int, offsets: np.ndarray, indices: np.ndarray,
    numbers: np.ndarray, pointers: np.ndarray,
) -> bool:  # fmt: skip
    """Fills int32 (n, 4) and int64 (n,) with the rows of n samples; False: there is no such row.

    Args:
        metadata, step, count: address of the first row, bytes from one to the next, rows.
        offsets: in a row, of two 16-bit numbers, two of 8 bits (-1: none, which is 0), and of the
            pointer to the data.
        indices: int64 (n,).
    """
    for i in range(len(indices)):
        index = indices[i]
        if index < 0 or index >= count:
            return False
        row = metadata + index * step
        numbers[i, 0] = load_u16(row + offsets[0])
        numbers[i, 1] = load_u16(row + offsets[1])
        numbers[i, 2] = load_byte(row + offsets[2])
        numbers[i, 3] = load_byte(row + offsets[3]) if offsets[3] >= 0 else 0
        pointers[i] = load_u64(row + offsets[4])
    return True


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
        pointers: int64 (n,), offsets in the file.
        starts, sizes: uint64, of the allocation table, sorted by offset.
        file, length: address of the file in memory, and its bytes.
    """
    for i in range(len(pointers)):
        pointer = int(pointers[i])
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
        pointer = int(pointers[i])
        size = find_size(pointer, starts, sizes)
        page, offset = pointer // page_size, pointer % page_size
        regions[i, 0] = regions[i, 1] = 0
        if size > 0 and 0 <= page < len(slots) and offset <= page_size - size:
            slot = int(np.int64(slots[page]))
            if slot < len(pages):
                regions[i, 0] = pages.ctypes.data + slot * page_size + offset
                regions[i, 1] = size
