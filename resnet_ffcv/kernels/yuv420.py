"""The yuv420 form of an image: luma, and colour at half the resolution, as bytes, column by column.

docs/format.md has the layout.
"""

import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF, split_colour
from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.geometry import Window, make_axes
from resnet_ffcv.kernels.planes import Planes, count_planes_work, resample_planes
from resnet_ffcv.kernels.resample import ANY_LINE, LANES, Plane
from resnet_ffcv.kernels.taps import axis_words, make_half_axis

PADDING_BYTES = LANES  # so that whole vectors can be read at the end


@kernel
def yuv420_bytes(height: int, width: int, colour: int) -> int:
    """Bytes of an image in this form."""
    luma, half = height * width, ((height + 1) // 2) * ((width + 1) // 2)
    return luma + (2 * half if colour == HALF else 0) + PADDING_BYTES


@kernel
def encode_yuv420(rgb: np.ndarray, colour: int, out: np.ndarray) -> None:
    """Fills uint8 (yuv420_bytes,) with the form of uint8 (height, width, 3)."""
    height, width = rgb.shape[0], rgb.shape[1]
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    y, cb, cr = split_colour(rgb)
    luma, half = height * width, half_height * half_width
    out[:luma].reshape(width, height)[:] = y.T
    end = luma
    if colour == HALF:
        out[luma : luma + half].reshape(half_width, half_height)[:] = cb.T
        out[luma + half : luma + 2 * half].reshape(half_width, half_height)[:] = cr.T
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
