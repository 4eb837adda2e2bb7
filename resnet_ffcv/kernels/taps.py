"""One axis of a resampling: for each output sample, where its taps begin and what they weigh.

Weights are integers that count in 1 / ONE and sum to ONE exactly: each is the difference of two
rounded running sums, so that rounding never adds up. A weight is stored twice, in both halves of 32
bits, because CPUs fill a vector with 32 bits from memory faster than with 16.

Of more than FEW_TAPS each would have too little weight for this: they are float32, in as many bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import store_double
from resnet_ffcv.kernels.vector import (
    F32,
    F64,
    I32,
    Scalar,
    Vector,
    broadcast,
    broadcast_float,
    count_lanes,
    load,
    repeat,
    store,
    vector_kernel,
    zeros,
)

ONE = 1 << 14

# Filters, as kernels take them. Each widens with the scale where it shrinks (antialiasing).
AREA = 0  # mean over the area of an output sample: INTER_AREA where it shrinks
TRIANGLE = 1  # linear: Pillow's BILINEAR, torchvision's antialiased bilinear
CUBIC = 2  # Keys' with a = -1/2: Pillow's BICUBIC, torchvision's antialiased bicubic
FILTERS = {"area": AREA, "triangle": TRIANGLE, "cubic": CUBIC}

RADIUS_OF_TRIANGLE, RADIUS_OF_CUBIC = 1.0, 2.0  # in output samples

FEW_TAPS = 32
FAR = 1 << 20  # samples; no tap is so far outside

OUTPUTS = 16  # whose taps are made at a time; as many as fill the last vector are added
SPARE_TAPS = 4  # of weight 0 behind the last, which make_half_axis reads
FACTS = 16  # words that the kernels take their numbers from


class Axis(NamedTuple):
    """Taps of an axis. Output i is the sum over t < taps of weights[t, i] times sample
    starts[i] + t; all samples lie in [begin, end). Further outputs fill the last vector."""

    outputs: int
    taps: int
    starts: np.ndarray  # int32 (padded,)
    weights: np.ndarray  # 32 bits (taps + SPARE_TAPS, padded): a weight twice, or float32
    begin: int
    end: int
    is_float: bool


def twice(weight: Vector) -> Vector:
    """Weights in both halves of 32 bits."""
    return (weight << 16) ^ (weight & 0xFFFF)


@kernel
def count_taps(filter_: int, origin: float, scale: float, low: int, high: int) -> int:
    """Taps of an axis: the most that any of its output samples needs. Arguments as of make_axis."""
    if filter_ == AREA:
        wanted = int(np.ceil(scale))
        if wanted != scale or np.floor(origin) != origin:
            wanted += 1
    else:
        radius = RADIUS_OF_TRIANGLE if filter_ == TRIANGLE else RADIUS_OF_CUBIC
        wanted = int(np.ceil(2 * radius * max(scale, 1.0)))
    return min(wanted, high - low)


# Vectors of outputs ----------------------------------------------------------------------


class _Outputs:
    """OUTPUTS outputs of an axis in float64: where each begins, and the numbers of make_axis."""

    def __init__(self, facts: Scalar, first: Scalar, step: Scalar) -> None:
        origin, self.scale, self.low, self.high, self.last_start, last = (
            broadcast_float(facts + 8 * i, OUTPUTS, F64) for i in range(6)
        )
        numbers = count_lanes(facts, I32, OUTPUTS) * broadcast(step, I32, OUTPUTS)
        numbers = (numbers + broadcast(first, I32, OUTPUTS)).to_float(F64)
        self.left = origin + numbers.at_least(0.0).at_most(last) * self.scale

    def clip_start(self, start: Vector) -> Vector:
        return start.at_most(self.last_start).at_least(self.low)


def _store_taps(
    add_share: Callable[[Vector, Vector], Vector], weights: Scalar, row: Scalar, taps: Scalar,
    floats: bool,
) -> None:  # fmt: skip
    """Weights of OUTPUTS. `add_share` of a tap's number and the sum of shares before it is that
    after it, so that the last sum is 1."""

    def store_tap(tap: Scalar, values: list[Vector]) -> list[Vector]:
        number, before, counted = values
        after = add_share(number, before)
        count = (after * ONE).round(I32)
        share = (after - before).to_single() if floats else twice(count - counted)
        store(weights + tap * row, share)
        return [number + 1.0, after, count]

    zero, none = zeros(weights, F64, OUTPUTS), zeros(weights, I32, OUTPUTS)
    repeat(taps, [zero, zero, none], store_tap)
    for spare in range(SPARE_TAPS):
        store(weights + (taps + spare) * row, none)


def _area(floats: bool) -> Callable[..., None]:
    def body(
        facts: Scalar, first: Scalar, step: Scalar, starts: Scalar, weights: Scalar, row: Scalar,
        taps: Scalar,
    ) -> None:  # fmt: skip
        """Starts and weights of the outputs first, first + step and so on; see fill_outputs."""
        outputs = _Outputs(facts, first, step)
        begin = outputs.left.at_least(outputs.low)
        length = (outputs.left + outputs.scale).at_most(outputs.high) - begin
        start = outputs.clip_start(outputs.left.truncate(I32).to_float(F64))
        store(starts, start.truncate(I32))
        share = (zeros(facts, F64, OUTPUTS) + 1.0) / length
        offset = start - begin + 1.0

        def add_share(number: Vector, _: Vector) -> Vector:
            return ((number + offset) * share).clip(0.0, 1.0)

        _store_taps(add_share, weights, row, taps, floats)

    body.__name__ = f"area{'_floats' * floats}"
    return body


def _weigh(filter_: int, distance: Vector) -> Vector:
    """TRIANGLE or CUBIC at a distance from the filter's middle."""
    x = distance.absolute()
    if filter_ == TRIANGLE:
        return (x * -1.0 + 1.0).at_least(0.0)
    near = (x * 1.5 - 2.5) * x * x + 1.0
    x = x.at_most(2.0)  # where it becomes 0
    far = ((x * -0.5 + 2.5) * x - 4.0) * x + 2.0
    return x.where_below(1.0, near, far)


def _smooth(filter_: int, floats: bool) -> Callable[..., None]:
    def body(
        facts: Scalar, first: Scalar, step: Scalar, starts: Scalar, weights: Scalar, row: Scalar,
        taps: Scalar,
    ) -> None:  # fmt: skip
        """The same of TRIANGLE and CUBIC."""
        outputs = _Outputs(facts, first, step)
        zero = zeros(facts, F64, OUTPUTS)
        width = outputs.scale.at_least(1.0)
        center = outputs.left + outputs.scale * 0.5
        # A truncated number is its floor where it is positive.
        floor = (
            center
            - width * (RADIUS_OF_TRIANGLE if filter_ == TRIANGLE else RADIUS_OF_CUBIC)
            + (FAR + 0.5)
        ).truncate(I32) - FAR
        start = outputs.clip_start(floor.to_float(F64))
        store(starts, start.truncate(I32))
        narrow = (zero + 1.0) / width
        offset = (start + 0.5 - center) * narrow

        def weigh(number: Vector) -> Vector:
            return _weigh(filter_, number * narrow + offset)

        def add(_: Scalar, values: list[Vector]) -> list[Vector]:
            number, total = values
            return [number + 1.0, total + weigh(number)]

        _, total = repeat(taps, [zero, zero], add)
        share = (zero + 1.0) / total
        _store_taps(lambda n, before: before + weigh(n) * share, weights, row, taps, floats)

    body.__name__ = f"{'triangle' if filter_ == TRIANGLE else 'cubic'}{'_floats' * floats}"
    return body


area, area_floats = (vector_kernel(_area(floats)) for floats in (False, True))
triangle, triangle_floats = (vector_kernel(_smooth(TRIANGLE, floats)) for floats in (False, True))
cubic, cubic_floats = (vector_kernel(_smooth(CUBIC, floats)) for floats in (False, True))


def _halve(floats: bool) -> Callable[..., None]:
    def body(
        starts: Scalar, weights: Scalar, row: Scalar, half_starts: Scalar, half_weights: Scalar,
        half_taps: Scalar,
    ) -> None:  # fmt: skip
        """Starts and weights of OUTPUTS on half the resolution, if none lay outside.

        With tap t moved to t + 1 where its first sample is even, tap j of the half gives 3/4 of
        itself to taps 2 j - 1 and 2 j of the full resolution, and 1/4 to 2 j - 2 and 2 j + 1.
        """
        first = load(starts, I32, OUTPUTS)
        store(half_starts, (first - 1) >> 1)

        def tap(number: Scalar) -> Vector:
            loaded = load(weights + number * row, F32 if floats else I32, OUTPUTS)
            return loaded if floats else loaded >> 16

        def quarter(weight: Vector) -> Vector:
            return weight * 0.25 if floats else (weight + 2) >> 2

        def rest(weight: Vector) -> Vector:
            return weight - quarter(weight)

        def store_tap(j: Scalar, values: list[Vector]) -> list[Vector]:
            w = [*values, tap(j * 2), tap(j * 2 + 1)]  # of 2 j - 3 to 2 j + 1
            moved = [first.where_odd(w[i + 1], w[i]) for i in range(4)]
            total = rest(moved[1]) + rest(moved[2]) + quarter(moved[0]) + quarter(moved[3])
            store(half_weights + j * row, total if floats else twice(total))
            return w[2:]

        none = zeros(starts, F32 if floats else I32, OUTPUTS)
        repeat(half_taps, [none, none, none], store_tap)

    body.__name__ = f"halve{'_floats' * floats}"
    return body


halve, halve_floats = vector_kernel(_halve(False)), vector_kernel(_halve(True))


# Axes ------------------------------------------------------------------------------------


@kernel
def fill_outputs(
    filter_: int, floats: bool, facts: int, first: int, step: int, starts: int, weights: int,
    row: int, taps: int,
) -> None:  # fmt: skip
    """Starts and weights of OUTPUTS outputs.

    Args:
        facts: address of float64: origin, scale, low and high of make_axis, the last start, and the
            number of the last output, which those beyond it repeat.
        first, step: number of the first output, and from one to the next, 1 or -1.
        starts, weights: addresses of the first output's.
        row: bytes from a tap's weights to the next tap's.
    """
    if filter_ == AREA:
        if floats:
            area_floats(facts, first, step, starts, weights, row, taps)
        else:
            area(facts, first, step, starts, weights, row, taps)
    elif filter_ == TRIANGLE:
        if floats:
            triangle_floats(facts, first, step, starts, weights, row, taps)
        else:
            triangle(facts, first, step, starts, weights, row, taps)
    elif floats:
        cubic_floats(facts, first, step, starts, weights, row, taps)
    else:
        cubic(facts, first, step, starts, weights, row, taps)


@kernel
def lay_out(count: int, taps: int, work: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, weights) of an axis in its work words."""
    padded = pad_outputs(count)
    end = FACTS + padded * (1 + taps + SPARE_TAPS)
    return work[FACTS : FACTS + padded], work[FACTS + padded : end].reshape(-1, padded)


@kernel
def end_axis(
    count: int, taps: int, starts: np.ndarray, weights: np.ndarray, is_float: bool
) -> Axis:
    """An axis of its filled arrays: its samples begin with its first or its last output's."""
    one, other = int(np.int64(starts[0])), int(np.int64(starts[count - 1]))
    return Axis(count, taps, starts, weights, min(one, other), max(one, other) + taps, is_float)


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
    starts, weights = lay_out(count, taps, work)
    facts, padded = work.ctypes.data, len(starts)
    store_double(facts, origin)
    store_double(facts + 8, scale)
    store_double(facts + 16, float(low))
    store_double(facts + 24, float(high))
    store_double(facts + 32, float(high - taps))
    store_double(facts + 40, float(count - 1))
    step = -1 if mirrored else 1
    to_starts, to_weights = starts.ctypes.data, weights.ctypes.data
    for i in range(0, padded, OUTPUTS):
        first = count - 1 - i if mirrored else i
        fill_outputs(
            filter_, taps > FEW_TAPS, facts, first, step, to_starts + 4 * i, to_weights + 4 * i,
            4 * padded, taps,
        )  # fmt: skip
    return end_axis(count, taps, starts, weights, taps > FEW_TAPS)


@kernel
def make_half_axis(axis: Axis, size: int, work: np.ndarray) -> Axis:
    """Taps on samples of half the resolution, such as 4:2:0 colour, with the upsampling in them.

    Sample x of the full resolution is 3/4 of sample x // 2 and 1/4 of its other neighbour, the
    first and the last repeated: libjpeg's "fancy" upsampling (jdsample.c, h2v1_fancy_upsample).

    Args:
        axis: of the full resolution.
        size: samples of half the resolution that exist.
        work: int32 of axis_words(axis.outputs, half_taps(axis.taps)) at least; holds the result.
    """
    wanted = half_taps(axis.taps)
    taps = min(wanted, size)
    starts, weights = lay_out(axis.outputs, taps, work)
    padded = len(starts)
    for i in range(0, padded, OUTPUTS):
        of_starts, of_weights = axis.starts[i:].ctypes.data, axis.weights.ctypes.data + 4 * i
        to_starts, to_weights = starts[i:].ctypes.data, weights.ctypes.data + 4 * i
        if axis.is_float:
            halve_floats(of_starts, of_weights, 4 * padded, to_starts, to_weights, taps)
        else:
            halve(of_starts, of_weights, 4 * padded, to_starts, to_weights, taps)
    for i in range(padded):
        if starts[i] < 0 or starts[i] + wanted > size:
            halve_at_border(axis, i, size, taps, starts, weights)
    return end_axis(axis.outputs, taps, starts, weights, axis.is_float)


@kernel
def halve_at_border(
    axis: Axis, i: int, size: int, taps: int, starts: np.ndarray, weights: np.ndarray
) -> None:
    """Output i of a half axis, which sees the first sample or the last one repeated."""
    floats, of_axis = weights.view(np.float32), axis.weights.view(np.float32)
    first = int(np.int64(axis.starts[i]))
    start = max(0, min((first - 1) >> 1, size - taps))
    starts[i] = start
    weights[:taps, i] = 0
    for tap in range(axis.taps):
        near = (first + tap) >> 1
        far = min(max(near + 2 * ((first + tap) & 1) - 1, 0), size - 1)
        if axis.is_float:
            floats[near - start, i] += 0.75 * of_axis[tap, i]
            floats[far - start, i] += 0.25 * of_axis[tap, i]
        else:
            weight = axis.weights[tap, i] >> 16
            quarter = (weight + 2) >> 2
            weights[near - start, i] += weight - quarter
            weights[far - start, i] += quarter
    if not axis.is_float:
        for tap in range(taps):
            weight = int(np.int64(weights[tap, i]))
            weights[tap, i] = np.int32((weight << 16) | (weight & 0xFFFF))


@kernel
def make_empty_axis(count: int, work: np.ndarray) -> Axis:
    """An axis that sees nothing: one tap of weight 0, of sample 0. `work`: axis_words(count, 1)."""
    starts, weights = lay_out(count, 1, work)
    starts[:] = 0
    weights[:] = 0
    return Axis(count, 1, starts, weights, 0, 0, False)


@kernel
def half_taps(taps: int) -> int:
    """Taps of a half axis, at most."""
    return taps // 2 + 2


@kernel
def pad_outputs(count: int) -> int:
    """Outputs of an axis with those that fill its last vector."""
    return (count + OUTPUTS - 1) // OUTPUTS * OUTPUTS


@kernel
def axis_words(count: int, taps: int) -> int:
    """32-bit words that an axis takes."""
    return FACTS + pad_outputs(count) * (1 + taps + SPARE_TAPS)
