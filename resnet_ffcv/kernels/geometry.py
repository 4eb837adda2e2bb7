"""A window of an image and the size it is resampled to -> the taps of both axes."""

from typing import NamedTuple

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.taps import Axis, axis_words, count_taps, half_taps, make_axis

# Samples left for each output where blocks are decoded at a part of the resolution. One of fewer
# samples is cut off in frequency, not averaged: with 1 left, pixels are worse than FFCV's.
MARGIN = 2.0


class Window(NamedTuple):
    """A part of an image, in its pixels; it may begin and end inside a pixel.

    `sees_all`: the filter also reads pixels outside the window, as where a crop follows a resize
    (torchvision's Resize, then CenterCrop); else only those inside (as in RandomResizedCrop).
    """

    y: float
    x: float
    height: float
    width: float
    sees_all: bool
    mirrored: bool


@kernel
def read_window(row: np.ndarray) -> Window:
    """A window of its row, float64 (6,)."""
    return Window(row[0], row[1], row[2], row[3], row[4] != 0, row[5] != 0)


@kernel
def is_inside(window: Window, height: int, width: int) -> bool:
    """Whether a window has an area and lies in an image; so that all else may rely on it."""
    return (
        window.height > 0
        and window.width > 0
        and window.y >= 0
        and window.x >= 0
        and window.y + window.height <= height + 1e-6
        and window.x + window.width <= width + 1e-6
    )


@kernel
def choose_eighths(window: Window, out_height: int, out_width: int) -> int:
    """Eighths of the resolution to decode DCT blocks at, 8, 4, 2 or 1: the fewest that suffice."""
    shrink = min(window.height / out_height, window.width / out_width) / MARGIN
    return 1 if shrink >= 8 else 2 if shrink >= 4 else 4 if shrink >= 2 else 8


@kernel
def scaled(size: int, eighths: int) -> int:
    """Samples of an axis at so many eighths of the resolution; the last may be a part of one."""
    return (size * eighths + 7) // 8


@kernel
def shrink_window(window: Window, eighths: int) -> Window:
    """The window at so many eighths of the resolution."""
    shrink = eighths / 8
    return Window(
        window.y * shrink, window.x * shrink, window.height * shrink, window.width * shrink,
        window.sees_all, window.mirrored,
    )  # fmt: skip


class Axes(NamedTuple):
    """The taps of both axes, and the work words that they take."""

    y: Axis
    x: Axis
    words: int


@kernel
def bounds(begin: float, size: float, limit: int, sees_all: bool) -> tuple[int, int]:
    """(low, high) of the pixels that an axis of a window may read."""
    if sees_all:
        return 0, limit
    low = min(int(np.floor(begin)), limit - 1)
    return low, max(min(int(np.ceil(begin + size)), limit), low + 1)


@kernel
def make_axes(
    window: Window, height: int, width: int, filter_: int, out_height: int, out_width: int,
    work: np.ndarray,
) -> Axes:  # fmt: skip
    """Taps that take a window of a (height, width) image to (out_height, out_width)."""
    low, high = bounds(window.y, window.height, height, window.sees_all)
    scale = window.height / out_height
    y = make_axis(filter_, window.y, scale, low, high, False, out_height, work)
    words = axis_words(out_height, y.taps)
    low, high = bounds(window.x, window.width, width, window.sees_all)
    scale = window.width / out_width
    x = make_axis(filter_, window.x, scale, low, high, window.mirrored, out_width, work[words:])
    return Axes(y, x, words + axis_words(out_width, x.taps))


@kernel
def count_axis_words(window: Window, filter_: int, out_height: int, out_width: int) -> int:
    """32-bit words that both axes take, at most, and those of half the resolution."""
    y = count_taps(filter_, 0.5, window.height / out_height, 0, 1 << 30)
    x = count_taps(filter_, 0.5, window.width / out_width, 0, 1 << 30)
    words = axis_words(out_height, y) + axis_words(out_width, x)
    return words + axis_words(out_height, half_taps(y)) + axis_words(out_width, half_taps(x))
