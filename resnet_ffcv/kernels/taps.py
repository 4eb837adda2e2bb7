"""One axis of a resampling: for each output sample, where its taps begin and what they weigh.

Weights are integers that count in 1 / ONE and sum to ONE exactly: each is the difference of two
rounded running sums, so that rounding never adds up. A weight is stored twice, in both halves of 32
bits, because CPUs fill a vector with 32 bits from memory faster than with 16.

Of more than FEW_TAPS each would have too little weight for this: they are float32, in as many bits.
"""

from typing import NamedTuple

import numpy as np

from resnet_ffcv.kernels.compiling import kernel

ONE = 1 << 14

# Filters, as kernels take them. Each widens with the scale where it shrinks (antialiasing).
AREA = 0  # mean over the area of an output sample: INTER_AREA where it shrinks
TRIANGLE = 1  # linear: Pillow's BILINEAR, torchvision's antialiased bilinear
CUBIC = 2  # Keys' with a = -1/2: Pillow's BICUBIC, torchvision's antialiased bicubic
FILTERS = {"area": AREA, "triangle": TRIANGLE, "cubic": CUBIC}

FEW_TAPS = 32

PADDING = 8  # outputs are made in eights: as many more, of weight 0, fill the last


class Axis(NamedTuple):
    """Taps of an axis. Output i is the sum over t < taps of weights[i taps + t] times sample
    starts[i] + t; all samples lie in [begin, end)."""

    taps: int
    starts: np.ndarray  # int32 (outputs + PADDING,)
    weights: np.ndarray  # 32 bits ((outputs + PADDING) taps,): a weight twice, or float32
    begin: int
    end: int
    is_float: bool


@kernel
def twice(weight: int) -> np.int32:
    """A weight in both halves of 32 bits."""
    return np.int32((weight << 16) | (weight & 0xFFFF))


@kernel
def count_taps(filter_: int, origin: float, scale: float, low: int, high: int) -> int:
    """Taps of an axis: the most that any of its output samples needs. Arguments as of make_axis."""
    if filter_ == AREA:
        wanted = int(np.ceil(scale))
        if wanted != scale or np.floor(origin) != origin:
            wanted += 1
    else:
        radius = 1.0 if filter_ == TRIANGLE else 2.0
        wanted = int(np.ceil(2 * radius * max(scale, 1.0)))
    return min(wanted, high - low)


@kernel
def weigh(filter_: int, distance: float) -> float:
    """TRIANGLE or CUBIC at a distance from the filter's middle."""
    x = abs(distance)
    if filter_ == TRIANGLE:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@kernel
def fill_area(
    left: float, scale: float, low: int, high: int, weights: np.ndarray, place: int, taps: int
) -> int:
    """Weights of one output of AREA, weights[place : place + taps]; returns its start."""
    begin, end = max(left, float(low)), min(left + scale, float(high))
    start = max(low, min(int(np.floor(left)), high - taps))
    share = 1.0 / (end - begin)
    floats, before, counted = weights.view(np.float32), 0.0, 0
    for tap in range(taps):
        after = min(max((start + tap + 1 - begin) * share, 0.0), 1.0)
        if taps > FEW_TAPS:
            floats[place + tap] = after - before
            before = after
        else:
            count = int(after * ONE + 0.5)
            weights[place + tap] = twice(count - counted)
            counted = count
    return start


@kernel
def fill_filter(
    filter_: int, left: float, scale: float, low: int, high: int, weights: np.ndarray, place: int,
    taps: int,
) -> int:  # fmt: skip
    """Weights of one output of TRIANGLE or CUBIC, as fill_area; returns its start."""
    width = max(scale, 1.0)
    center = left + 0.5 * scale
    radius = width if filter_ == TRIANGLE else 2.0 * width
    start = max(low, min(int(np.floor(center - radius + 0.5)), high - taps))
    step = 1.0 / width
    total = 0.0
    for tap in range(taps):
        total += weigh(filter_, (start + tap + 0.5 - center) * step)
    share = 1.0 / total
    floats, running, counted = weights.view(np.float32), 0.0, 0
    for tap in range(taps):
        weight = weigh(filter_, (start + tap + 0.5 - center) * step) * share
        if taps > FEW_TAPS:
            floats[place + tap] = weight
        else:
            running += weight
            count = int(np.floor(running * ONE + 0.5))
            weights[place + tap] = twice(count - counted)
            counted = count
    return start


@kernel
def make_axis(
    filter_: int, origin: float, scale: float, low: int, high: int, mirrored: bool, count: int,
    work: np.ndarray,
) -> Axis:  # fmt: skip
    """Taps for `count` outputs.

    Args:
        filter_: AREA, TRIANGLE or CUBIC.
        origin, scale: output i covers source coordinates origin + i scale to origin + (i + 1)
            scale; sample j covers j to j + 1.
        low, high: the source samples that exist: low, low + 1, ... high - 1.
        mirrored: whether the outputs are in reverse order.
        work: int32 of axis_words(count, taps) at least; holds the result.
    """
    taps = count_taps(filter_, origin, scale, low, high)
    padded = count + PADDING
    starts, weights = work[:padded], work[padded : padded + padded * taps]
    for i in range(count):
        place = count - 1 - i if mirrored else i
        left, first = origin + i * scale, place * taps
        if filter_ == AREA:
            starts[place] = fill_area(left, scale, low, high, weights, first, taps)
        else:
            starts[place] = fill_filter(filter_, left, scale, low, high, weights, first, taps)
    one, other = int(np.int64(starts[0])), int(np.int64(starts[count - 1]))
    begin, end = min(one, other), max(one, other) + taps
    starts[count:] = begin
    weights[count * taps :] = 0
    return Axis(taps, starts, weights, begin, end, taps > FEW_TAPS)


@kernel
def make_half_axis(axis: Axis, size: int, work: np.ndarray) -> Axis:
    """Taps on samples of half the resolution, such as 4:2:0 colour, with the upsampling in them.

    Sample x of the full resolution is 3/4 of sample x // 2 and 1/4 of its other neighbour, the
    first and the last repeated: libjpeg's "fancy" upsampling (jdsample.c, h2v1_fancy_upsample).

    Args:
        axis: of the full resolution.
        size: samples of half the resolution that exist.
        work: int32 of axis_words(count, axis.taps // 2 + 2) at least; holds the result.
    """
    taps = min(axis.taps // 2 + 2, size)
    padded = len(axis.starts)
    starts, weights = work[:padded], work[padded : padded + padded * taps]
    weights[:] = 0
    floats, of_axis = weights.view(np.float32), axis.weights.view(np.float32)
    begin, end = size, 0
    for i in range(padded):
        first = axis.starts[i]
        start = max(0, min((first - 1) >> 1, size - taps))
        starts[i] = start
        begin, end = min(begin, start), max(end, start + taps)
        place = i * taps - start
        for tap in range(axis.taps):
            x = first + tap
            near = x >> 1
            far = min(max(near + 2 * (x & 1) - 1, 0), size - 1)
            if axis.is_float:
                part = of_axis[i * axis.taps + tap]
                floats[place + near] += 0.75 * part
                floats[place + far] += 0.25 * part
            else:
                weight = axis.weights[i * axis.taps + tap] >> 16
                quarter = (weight + 2) >> 2
                weights[place + near] += weight - quarter
                weights[place + far] += quarter
    if not axis.is_float:
        for i in range(len(weights)):
            weights[i] = twice(weights[i])
    return Axis(taps, starts, weights, begin, end, axis.is_float)


@kernel
def make_empty_axis(count: int, work: np.ndarray) -> Axis:
    """An axis that sees nothing: one tap of weight 0, of sample 0. `work`: axis_words(count, 1)."""
    padded = count + PADDING
    starts, weights = work[:padded], work[padded : 2 * padded]
    starts[:] = 0
    weights[:] = 0
    return Axis(1, starts, weights, 0, 0, False)


@kernel
def axis_words(count: int, taps: int) -> int:
    """32-bit words that an axis takes."""
    return (count + PADDING) * (taps + 1)
