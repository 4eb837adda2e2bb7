"""Decoding of many samples on several threads: one function a form of image.

Each takes, for n samples:

    regions   int64 (n, 2): address and bytes of each sample's data; address 0 where it has none
    rows      int32 (n, 4): height, width and two numbers of the sample's row that the form explains
    windows   float64 (n, 6): see geometry.read_window
    filter_   of taps.FILTERS
    out       uint8 (n, out height, out width, 3), is filled; black where a sample is damaged
    statuses  int32 (n,), is filled, of status.MEANING
    work      int32 (threads, words): memory to work with, for each thread
    counter   int64 (1,), 0

Threads take the samples one by one, by the counter, so that none waits for another's large image.
"""

import numba
import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.compiling import kernel, threaded_kernel
from resnet_ffcv.kernels.dct import count_dct_work, decode_dct
from resnet_ffcv.kernels.geometry import Window, count_axis_words, is_inside, read_window
from resnet_ffcv.kernels.jpeg import count_jpeg_work, decode_jpeg
from resnet_ffcv.kernels.memory import take_next
from resnet_ffcv.kernels.raw import count_rgb_work, decode_raw
from resnet_ffcv.kernels.yuv420 import count_yuv420_work, decode_yuv420

# Forms. Beside the size, rows hold (FFCV's mode, 0), (colour, 0) and (colour, table).
IMAGE, YUV420, DCT = 0, 1, 2
JPEG_MODE, RAW_MODE = 0, 1  # of FFCV's image field


@kernel
def count_words(
    form: int, height: int, width: int, window: Window, filter_: int, size: tuple[int, int]
) -> int:
    """Words of `work` that a sample takes."""
    axes = 2 * count_axis_words(window, filter_, size[0], size[1])
    if form == IMAGE:
        other = max(
            count_rgb_work(height, width, size[0]),
            count_jpeg_work(height, width, size[0], size[1]),
        )
    elif form == YUV420:
        other = count_yuv420_work(height, size[0], size[1])
    else:
        other = count_dct_work(height, width, size[0], size[1])
    return axes + other // 4 + 64


@kernel
def check_samples(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    size: tuple[int, int], statuses: np.ndarray,
) -> int:  # fmt: skip
    """Finds what cannot be decoded; returns the words of `work` that the others take at most."""
    words = 0
    for i in range(len(rows)):
        height, width, window = rows[i, 0], rows[i, 1], read_window(windows[i])
        statuses[i] = status.WHOLE
        if regions[i, 0] == 0:
            statuses[i] = status.OUTSIDE_FILE
        elif height < 1 or width < 1:
            statuses[i] = status.BAD_ROW
        elif not is_inside(window, height, width):
            statuses[i] = status.BAD_WINDOW
        else:
            words = max(words, count_words(form, height, width, window, filter_, size))
    return words


@kernel
def decode_image(
    mode: int, address: int, size: int, height: int, width: int, window: Window, filter_: int,
    out: int, out_height: int, out_width: int, work: np.ndarray,
) -> int:  # fmt: skip
    """A window of an image of FFCV's own field; returns a status."""
    if mode == RAW_MODE:
        return decode_raw(
            address, size, height, width, window, filter_, out, out_height, out_width, work
        )
    if mode == JPEG_MODE:
        return decode_jpeg(
            address, size, height, width, window, filter_, out, out_height, out_width, work
        )
    return status.BAD_ROW


@kernel
def decode_some(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    tables: np.ndarray, means: np.ndarray, out: np.ndarray, statuses: np.ndarray,
    work: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    """One thread's share."""
    tall, wide = out.shape[1], out.shape[2]
    while True:
        i = take_next(counter.ctypes.data)
        if i >= len(rows):
            return
        address, size = regions[i, 0], regions[i, 1]
        height, width, colour, table = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3]
        window, target = read_window(windows[i]), out[i].ctypes.data
        found = int(statuses[i])
        if found == status.WHOLE:
            if form == IMAGE:
                found = decode_image(
                    colour, address, size, height, width, window, filter_, target, tall, wide, work
                )
            elif form == YUV420:
                found = decode_yuv420(
                    address, size, height, width, colour, window, filter_, target, tall, wide, work
                )
            elif table < 0 or table >= len(tables):
                found = status.BAD_ROW
            else:
                found = decode_dct(
                    address, size, height, width, colour, tables[table], means[table], window,
                    filter_, target, tall, wide, work,
                )  # fmt: skip
        if found != status.WHOLE:
            out[i] = 0
        statuses[i] = found


@threaded_kernel
def decode_on_threads(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    tables: np.ndarray, means: np.ndarray, out: np.ndarray, statuses: np.ndarray,
    work: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    for thread in numba.prange(len(work)):
        decode_some(
            form, regions, rows, windows, filter_, tables, means, out, statuses, work[thread],
            counter,
        )  # fmt: skip


@kernel
def decode_alone(
    form: int, regions: np.ndarray, rows: np.ndarray, windows: np.ndarray, filter_: int,
    tables: np.ndarray, means: np.ndarray, out: np.ndarray, statuses: np.ndarray,
    work: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    """decode_on_threads on the thread that calls it."""
    decode_some(
        form, regions, rows, windows, filter_, tables, means, out, statuses, work[0], counter
    )
