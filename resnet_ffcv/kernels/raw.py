"""Decoding of raw images: RGB bytes, row by row."""

import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.geometry import Window, make_axes
from resnet_ffcv.kernels.memory import copy_bytes, prefetch
from resnet_ffcv.kernels.resample import (
    CACHE_LINE,
    LANES,
    SPARE,
    Plane,
    align,
    filter_lines,
    line_bytes,
    write_columns_rgb,
)
from resnet_ffcv.kernels.taps import Axis


@kernel
def fetch_rows(pixels: int, step: int, rows: Axis, size: int) -> None:
    """Asks for the pixels that taps see, row by row.

    The first pass reads columns of LANES bytes: too far apart for the CPU to foresee.
    """
    for y in range(rows.begin, rows.end):
        row = pixels + y * step
        for line in range(row, row + size, CACHE_LINE):
            prefetch(line)


@kernel
def resample_rgb(
    pixels: int, height: int, width: int, window: Window, filter_: int,
    out: int, out_height: int, out_width: int, work: np.ndarray,
) -> None:  # fmt: skip
    """A window of RGB pixels -> uint8 (out_height, out_width, 3).

    Args:
        pixels: address of uint8 (height, width, 3).
        window: inside the image.
        filter_: of taps.FILTERS.
        out: address of the result.
        work: int32; see count_rgb_work.
    """
    axes = make_axes(window, height, width, filter_, out_height, out_width, work)
    spare = align(work.ctypes.data + 4 * axes.words)
    narrow, step = spare + SPARE, 3 * width
    fetch_rows(pixels + 3 * axes.x.begin, step, axes.y, 3 * (axes.x.end - axes.x.begin))
    lines = narrow
    if step < LANES:  # a row is shorter than what is read of it at once
        for y in range(axes.y.begin, axes.y.end):
            copy_bytes(narrow + LANES * (y - axes.y.begin), pixels + step * y, step)
        pixels, step = narrow - LANES * axes.y.begin, LANES
        lines += LANES * (axes.y.end - axes.y.begin)
    first = 3 * axes.x.begin
    plane = Plane(pixels, step, first, 3 * (axes.x.end - axes.x.begin), step, 1)
    stride = line_bytes(out_height)
    origin = lines + (LANES - first) * stride  # of line 0, were it there
    filter_lines(plane, axes.y, origin, stride)
    write_columns_rgb(origin, stride, axes.x, out, out_height, out_width, spare)


@kernel
def decode_raw(
    address: int, size: int, height: int, width: int, window: Window, filter_: int, out: int,
    out_height: int, out_width: int, work: np.ndarray,
) -> int:  # fmt: skip
    """A window of a raw image -> uint8 (out_height, out_width, 3); returns a status."""
    if size != 3 * height * width:
        return status.WRONG_SIZE
    resample_rgb(address, height, width, window, filter_, out, out_height, out_width, work)
    return status.WHOLE


@kernel
def count_rgb_work(height: int, width: int, out_height: int) -> int:
    """Bytes that resample_rgb takes beside its axes, at most."""
    lines = 3 * width + 3 * LANES
    return 64 + SPARE + LANES * height + lines * line_bytes(out_height)
