"""Resampling of an image whose luma and colour lie apart, to RGB."""

from typing import NamedTuple

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import store_byte
from resnet_ffcv.kernels.resample import (
    CACHE_LINE,
    LANES,
    SPARE,
    Colour,
    Plane,
    align,
    filter_lines,
    line_bytes,
    write_columns,
    write_rows,
)
from resnet_ffcv.kernels.taps import Axis, axis_words, make_empty_axis


class Planes(NamedTuple):
    """Luma and colour. An image without colour has no lines of it."""

    y: Plane
    cb: Plane
    cr: Plane


@kernel
def resample_planes(
    planes: Planes, by_columns: bool, first: Axis, first_colour: Axis, second: Axis,
    second_colour: Axis, out: int, height: int, width: int, work: np.ndarray,
) -> None:  # fmt: skip
    """Both passes.

    Args:
        planes: lines are columns of the image where `by_columns`, else rows.
        first, first_colour: taps along the strided axis: x where `by_columns`, else y.
        second, second_colour: taps along the lines.
        out: address of uint8 (height, width, 3).
        work: int32; count_planes_work bytes.
    """
    outputs = width if by_columns else height
    stride = line_bytes(outputs)
    spare = align(work.ctypes.data)
    begin = spare + SPARE
    y = begin + (LANES - planes.y.first) * stride  # of line 0, were it there
    filter_lines(planes.y, first, y, stride)
    begin += (planes.y.lines + 2 * LANES) * stride
    if planes.cb.lines > 0:
        cb = begin + (LANES - planes.cb.first) * stride
        cr = cb + (planes.cb.lines + 2 * LANES) * stride
        filter_lines(planes.cb, first_colour, cb, stride)
        filter_lines(planes.cr, first_colour, cr, stride)
    else:
        cb = cr = begin
        for i in range(stride):
            store_byte(begin + i, 0)
        empty = work[(begin + stride - work.ctypes.data) // 4 + 1 :]
        second_colour = make_empty_axis(second.outputs, empty)
    lines = Colour(y, cb, cr, stride)
    if by_columns:
        write_rows(lines, second, second_colour, out, height, width, spare)
    else:
        write_columns(lines, second, second_colour, out, height, width, spare)


@kernel
def count_planes_work(luma_lines: int, colour_lines: int, outputs: int, second: int) -> int:
    """Bytes that resample_planes takes, at most.

    Args:
        luma_lines, colour_lines: of a plane.
        outputs, second: of the first and of the second pass.
    """
    lines = luma_lines + 2 * colour_lines + 7 * LANES
    return 128 + SPARE + lines * line_bytes(outputs) + 4 * axis_words(second, 1) + CACHE_LINE
