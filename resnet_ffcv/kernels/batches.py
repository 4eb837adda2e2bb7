"""Decoding of many samples, of any form, on several threads: `decode_samples`.

Its kernels take, for n samples:

    regions   int64 (n, 2): address and bytes of each sample's data; address 0 where it has none
    rows      int32 (n, 4): height, width and two numbers of the sample's row that the form explains
    windows   float64 (n, 6): see geometry.read_window
    filter_   of taps.FILTERS
    padded    whether windows of out's size, in whole pixels, may reach outside their image; what
              lies there becomes `fill`, (red, green, blue)
    out       uint8 (n, out height, out width, 3), is filled; black where a sample is damaged
    statuses  int32 (n,), is filled, of status.MEANING
    work      int32 (threads, words): memory to work with, for each thread
    counter   int64 (1,), 0

Threads take the samples one by one, by the counter, so that none waits for another's large image.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF
from resnet_ffcv.kernels.compiling import inlined_kernel, kernel, threaded_kernel
from resnet_ffcv.kernels.dct import (
    Tables,
    count_all_groups,
    count_dct_work,
    decode_dct,
    make_tables,
)
from resnet_ffcv.kernels.geometry import (
    Window,
    choose_eighths,
    count_axis_words,
    is_inside,
    read_window,
    scaled,
)
from resnet_ffcv.kernels.jpeg import count_jpeg_work, decode_jpeg, has_many_scans, read_frame
from resnet_ffcv.kernels.memory import take_next
from resnet_ffcv.kernels.padding import clip, fill_pixels, is_whole, place_pixels
from resnet_ffcv.kernels.raw import count_rgb_work, decode_raw
from resnet_ffcv.kernels.resample import align
from resnet_ffcv.kernels.yuv420 import count_yuv420_work, decode_yuv420, yuv420_bytes

# Forms. Beside the size, rows hold (FFCV's mode, 0), (colour, 0) and (colour, table).
IMAGE, YUV420, DCT = 0, 1, 2
JPEG_MODE, RAW_MODE = 0, 1  # of FFCV's image field

LEAST_GROUP = 5  # bytes of a dct group and its size, at least

_local = threading.local()  # of each thread that calls: memory to decode with


class Limits(NamedTuple):
    """What one sample may ask for: pixels, and bytes of memory for the thread that decodes it.

    Kernels take it as a plain tuple, whose type numba finds out in a tenth of the time.
    """

    pixels: int
    memory: int


UNLIMITED = Limits(1 << 62, 1 << 62)


def decode_samples(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    out: np.ndarray, *, fill: tuple[int, int, int] | None = None, tables: Tables | None = None,
    limits: Limits = UNLIMITED, threads: int = 1,
) -> np.ndarray:  # fmt: skip
    """Fills `out`; returns the statuses.

    Arguments as above; `fill` of padded windows, else None; `tables` of the form DCT.
    """
    size, statuses = (out.shape[1], out.shape[2]), np.empty(len(rows), np.int32)
    padded, colour = fill is not None, fill or (0, 0, 0)

    def check(within: Limits, found: np.ndarray) -> int:
        plain = within.pixels, within.memory
        return check_samples(form, regions, rows, windows, filter_, padded, size, plain, found)

    work = _find_work(check, limits, max(1, min(threads, len(rows))), statuses)
    threads, counter = len(work), np.zeros(1, np.int64)
    _, inverse, means = tables or make_tables(100)
    arguments = form, regions, rows, windows, filter_, padded, colour, inverse, means, out, statuses
    if threads > 1:
        decode_on_threads(*arguments, work, counter)
    else:
        decode_some(*arguments, work[0], counter)
    return statuses


def _find_work(
    check: Callable[[Limits, np.ndarray], int], limits: Limits, threads: int, statuses: np.ndarray
) -> np.ndarray:
    """Memory for the samples that can be decoded; fills in the statuses.

    Where the system has too little, one thread works alone; then the largest samples are given up.
    """
    within = limits
    while True:
        words = check(within, statuses)
        try:
            work = _work(threads, words)
        except MemoryError:
            if threads == 1:
                within = Limits(limits.pixels, 4 * words - 1)
            threads = 1
        else:
            break
    if within != limits:
        allowed = np.empty_like(statuses)
        check(limits, allowed)
        statuses[(statuses == status.TOO_MUCH_WORK) & (allowed == status.WHOLE)] = status.NO_MEMORY
    return work


def _work(threads: int, words: int) -> np.ndarray:
    """int32 (threads, words or more); the same memory in each call of a thread."""
    memory: np.ndarray = getattr(_local, "memory", np.empty((0, 0), np.int32))
    if memory.shape[0] < threads or memory.shape[1] < words:
        shape = max(threads, memory.shape[0]), max(words, memory.shape[1])
        memory = _local.memory = np.empty(shape, np.int32)
    return memory[:threads]


@kernel
def count_words(
    form: int, row: np.ndarray, window: Window, filter_: int, size: tuple[int, int]
) -> int:
    """Words of `work` that a sample takes."""
    height, width = row[0], row[1]
    eighths = choose_eighths(window, size[0], size[1])
    if form == IMAGE and row[2] == RAW_MODE:
        other = count_rgb_work(height, width, size[0])
    elif form == IMAGE:
        other = count_jpeg_work(scaled(height, eighths), scaled(width, eighths), size[0], size[1])
    elif form == YUV420:
        other = count_yuv420_work(height, size[0], size[1])
    else:
        other = count_dct_work(height, width, row[2], eighths, size[0], size[1])
    return count_axis_words(window, filter_, size[0], size[1]) + other // 4 + 64


@kernel
def check_jpeg(address: int, size: int, row: np.ndarray, limits: tuple[int, int]) -> int:
    """Compares the headers of a JPEG with its row and the limits; returns a status."""
    height, width = row[0], row[1]
    frame = read_frame(address, size)
    if frame.height == 0:
        return status.BAD_JPEG
    if frame.height != height or frame.width != width:
        return status.OTHER_JPEG_SIZE
    if height * width > limits[0]:
        return status.TOO_LARGE
    if frame.by_scans and 2 * frame.components * height * width > limits[1]:
        return status.TOO_MUCH_WORK  # libjpeg keeps 16 bits for each coefficient
    return status.TOO_MANY_SCANS if has_many_scans(address, size, frame) else status.WHOLE


@kernel
def check_sample(
    form: int, address: int, size: int, row: np.ndarray, limits: tuple[int, int]
) -> int:
    """Whether a sample's bytes can be of an image of its row's size, by what costs little to find
    out: memory is asked for by that size. Returns a status."""
    height, width, colour = row[0], row[1], row[2]
    if address == 0:
        return status.OUTSIDE_FILE
    if height < 1 or width < 1:
        return status.BAD_ROW
    if form == IMAGE and colour == JPEG_MODE:
        return check_jpeg(address, size, row, limits)
    if form == IMAGE and colour == RAW_MODE:
        fits = size == 3 * height * width
    elif form == IMAGE or (colour != GRAY and colour != HALF):
        return status.BAD_ROW
    elif form == YUV420:
        fits = size == yuv420_bytes(height, width, colour)
    else:
        fits = size >= LEAST_GROUP * count_all_groups(height, width, colour)
    if not fits:
        return status.WRONG_SIZE
    return status.TOO_LARGE if height * width > limits[0] else status.WHOLE


@kernel
def check_images(
    form: int, regions: np.ndarray, rows: np.ndarray, limits: tuple[int, int], statuses: np.ndarray
) -> None:
    """Finds samples that no decoder should be given, of whatever window."""
    for i in range(len(rows)):
        statuses[i] = check_sample(form, regions[i, 0], regions[i, 1], rows[i], limits)


@kernel
def check_samples(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    padded: bool, size: tuple[int, int], limits: tuple[int, int], statuses: np.ndarray,
) -> int:  # fmt: skip
    """Finds what cannot be decoded; returns the words of `work` that the others take at most."""
    most, border = 0, size[0] * size[1] + 16 if padded else 0
    for i in range(len(rows)):
        row, window = rows[i], read_window(windows[i])
        found = check_sample(form, regions[i, 0], regions[i, 1], row, limits)
        if found == status.WHOLE:
            if is_whole(window, size) if padded else is_inside(window, row[0], row[1]):
                words = count_words(form, row, window, filter_, size) + border
                if 4 * words > limits[1]:
                    found = status.TOO_MUCH_WORK
                else:
                    most = max(most, words)
            else:
                found = status.BAD_WINDOW
        statuses[i] = found
    return most


@inlined_kernel
def decode_window(
    form: int, address: int, size: int, row: np.ndarray, window: Window, filter_: int,
    tables: np.ndarray, means: np.ndarray, out: int, out_height: int, out_width: int,
    work: np.ndarray,
) -> int:  # fmt: skip
    """A window inside an image of any form; returns a status."""
    height, width, colour, table = row[0], row[1], row[2], row[3]
    if form == IMAGE and colour == RAW_MODE:
        return decode_raw(
            address, size, height, width, window, filter_, out, out_height, out_width, work
        )
    if form == IMAGE and colour == JPEG_MODE:
        return decode_jpeg(
            address, size, height, width, window, filter_, out, out_height, out_width, work
        )
    if form == YUV420:
        return decode_yuv420(
            address, size, height, width, colour, window, filter_, out, out_height, out_width, work
        )
    if form != DCT or table < 0 or table >= len(tables):
        return status.BAD_ROW
    return decode_dct(
        address, size, height, width, colour, tables[table], means[table], window, filter_,
        out, out_height, out_width, work,
    )  # fmt: skip


@inlined_kernel
def decode_padded(
    form: int, address: int, size: int, row: np.ndarray, window: Window, filter_: int,
    fill: tuple[int, int, int], tables: np.ndarray, means: np.ndarray, out: int, out_height: int,
    out_width: int, work: np.ndarray,
) -> int:  # fmt: skip
    """A window that may reach outside its image, pixel by pixel; returns a status."""
    height, width = row[0], row[1]
    top, bottom = clip(window.y, window.height, height)
    left, right = clip(window.x, window.width, width)
    rows, columns = bottom - top, right - left
    if rows * columns < out_height * out_width:
        fill_pixels(out, out_height * out_width, fill)
    if rows * columns == 0:
        return status.WHOLE
    if form == IMAGE and row[2] == RAW_MODE:
        if size != 3 * height * width:
            return status.WRONG_SIZE
        pixels, step = address + 3 * (top * width + left), 3 * width
    else:
        pixels, step = align(work.ctypes.data), 3 * columns
        inside = Window(top, left, rows, columns, False, False)
        rest = work[(pixels - work.ctypes.data) // 4 + (3 * rows * columns + 3) // 4 :]
        found = decode_window(
            form, address, size, row, inside, filter_, tables, means, pixels, rows, columns, rest
        )
        if found != status.WHOLE:
            return found
    y, x = top - int(window.y), left - int(window.x)
    if window.mirrored:
        x = out_width - columns - x
    place = out + 3 * (y * out_width + x)
    place_pixels(pixels, step, rows, columns, window.mirrored, place, 3 * out_width)
    return status.WHOLE


@kernel
def decode_some(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    padded: bool, fill: tuple[int, int, int], tables: np.ndarray, means: np.ndarray,
    out: np.ndarray, statuses: np.ndarray, work: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    """One thread's share; `work` is its own, int32 (words,)."""
    tall, wide = out.shape[1], out.shape[2]
    while True:
        i = take_next(counter.ctypes.data)
        if i >= len(rows):
            return
        address, size, target = regions[i, 0], regions[i, 1], out[i].ctypes.data
        row, window = rows[i], read_window(windows[i])
        found = int(statuses[i])
        if found == status.WHOLE:
            if padded:
                found = decode_padded(
                    form, address, size, row, window, filter_, fill, tables, means, target, tall,
                    wide, work,
                )  # fmt: skip
            else:
                found = decode_window(
                    form, address, size, row, window, filter_, tables, means, target, tall, wide,
                    work,
                )  # fmt: skip
        if found != status.WHOLE:
            out[i] = 0
        statuses[i] = found


@threaded_kernel
def decode_on_threads(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    padded: bool, fill: tuple[int, int, int], tables: np.ndarray, means: np.ndarray,
    out: np.ndarray, statuses: np.ndarray, work: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    for thread in numba.prange(len(work)):
        decode_some(
            form, regions, rows, windows, filter_, padded, fill, tables, means, out, statuses,
            work[thread], counter,
        )  # fmt: skip
