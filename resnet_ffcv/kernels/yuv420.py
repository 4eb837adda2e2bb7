"""The yuv420 form of an image: luma, and colour at half the resolution, as bytes, column by column.

docs/format.md has the layout.
"""

import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF, split_colour
from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.geometry import Window, make_axes
from resnet_ffcv.kernels.memory import load_byte, store_byte
from resnet_ffcv.kernels.planes import Planes, count_planes_work, resample_planes
from resnet_ffcv.kernels.resample import ANY_LINE, LANES, Plane
from resnet_ffcv.kernels.taps import axis_words, make_half_axis
from resnet_ffcv.kernels.vector import I8, Scalar, load, store, transpose, vector_kernel

SIDE = 8  # of a tile that is transposed at a time
PADDING_BYTES = LANES  # so that whole vectors can be read at the end


@kernel
def yuv420_bytes(height: int, width: int, colour: int) -> int:
    """Bytes of an image in this form."""
    luma, half = height * width, ((height + 1) // 2) * ((width + 1) // 2)
    return luma + (2 * half if colour == HALF else 0) + PADDING_BYTES


@vector_kernel
def transpose_tile(source: Scalar, step: Scalar, out: Scalar, out_step: Scalar) -> None:
    """SIDE x SIDE bytes; rows are `step` and `out_step` bytes apart."""
    rows = [load(source + step * row, I8, SIDE) for row in range(SIDE)]
    for column, values in enumerate(transpose(rows)):
        store(out + out_step * column, values)


@kernel
def store_columns(plane: np.ndarray, out: int) -> None:
    """Writes uint8 (height, width), contiguous, column by column."""
    height, width = plane.shape
    begin = plane.ctypes.data
    for y in range(0, height, SIDE):
        for x in range(0, width, SIDE):
            place, target = begin + y * width + x, out + x * height + y
            if y + SIDE <= height and x + SIDE <= width:
                transpose_tile(place, width, target, height)
            else:
                for row in range(min(SIDE, height - y)):
                    for column in range(min(SIDE, width - x)):
                        value = load_byte(place + row * width + column)
                        store_byte(target + column * height + row, value)


@kernel
def encode_yuv420(rgb: np.ndarray, colour: int, out: np.ndarray) -> None:
    """Fills uint8 (yuv420_bytes,) with the form of uint8 (height, width, 3)."""
    height, width = rgb.shape[0], rgb.shape[1]
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    y, cb, cr = split_colour(rgb)
    luma, half = height * width, half_height * half_width
    store_columns(y, out.ctypes.data)
    end = luma
    if colour == HALF:
        store_columns(cb, out.ctypes.data + luma)
        store_columns(cr, out.ctypes.data + luma + half)
        end += 2 * half
    out[end:] = 0


@kernel
def decode_yuv420(
    address: int, size: int, height: int, width: int, colour: int, window: Window, filter_: int,
    out: int, out_height: int, out_width: int, work: np.ndarray,
) -> int:  # fmt: skip
    """A window of an image in this form -> uint8 (out_height, out_width, 3); returns a status.

    Args:
        address, size: of its bytes.
        height, width, colour: from its row.
        window: inside the image.
        filter_: of taps.FILTERS.
        out: address of the result.
        work: int32; count_yuv420_work bytes beside the axes.
    """
    if colour != GRAY and colour != HALF:
        return status.BAD_ROW
    if size != yuv420_bytes(height, width, colour):
        return status.WRONG_SIZE
    axes = make_axes(window, height, width, filter_, out_height, out_width, work)
    used = axes.words
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    half_x = make_half_axis(axes.x, half_width, work[used:])
    used += axis_words(out_width, half_x.taps)
    half_y = make_half_axis(axes.y, half_height, work[used:])
    used += axis_words(out_height, half_y.taps)
    lines, first = axes.y.end - axes.y.begin, axes.y.begin
    y = Plane(address, height, first, lines, ANY_LINE, 1)
    lines, first = half_y.end - half_y.begin if colour == HALF else 0, half_y.begin
    cb_address = address + height * width
    cr_address = cb_address + half_height * half_width
    cb = Plane(cb_address, half_height, first, lines, ANY_LINE, 1)
    cr = Plane(cr_address, half_height, first, lines, ANY_LINE, 1)
    resample_planes(
        Planes(y, cb, cr), True, axes.x, half_x, axes.y, half_y,
        out, out_height, out_width, work[used:],
    )  # fmt: skip
    return status.WHOLE


@kernel
def count_yuv420_work(height: int, out_height: int, out_width: int) -> int:
    """Bytes that decode_yuv420 takes beside its axes, at most."""
    return count_planes_work(height, (height + 1) // 2, out_width, out_height)
