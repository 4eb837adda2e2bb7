"""Sums of pixels and of their squares, for the mean and the deviation of a training set."""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import keep, load_byte, load_u32
from resnet_ffcv.kernels.vector import (
    I8,
    I16,
    I32,
    Scalar,
    Vector,
    load,
    repeat,
    store,
    vector_kernel,
    zeros,
)

PIXELS = 32  # that are added at a time: 96 lanes, whose channels alternate
MOST = 30_000  # times, before a sum of squares leaves 31 bits


@vector_kernel
def add_pieces(pixels: Scalar, count: Scalar, out: Scalar) -> None:
    """Of each lane of `count` pieces, the sum and that of squares: int32 (2, 3 PIXELS) at `out`."""
    zero = zeros(pixels, I32, PIXELS)

    def add(piece: Scalar, totals: list[Vector]) -> list[Vector]:
        after = []
        for part in range(3):
            place = pixels + piece * (3 * PIXELS) + PIXELS * part
            x = load(place, I8, PIXELS).widen_unsigned(I16).widen_unsigned(I32)
            after += [totals[2 * part] + x, totals[2 * part + 1] + x * x]
        return after

    totals = repeat(count, [zero] * 6, add)
    for part in range(3):
        for power in range(2):
            place = out + 4 * PIXELS * (3 * power + part)
            store(place, totals[2 * part + power])


@kernel
def add_moments(pixels: np.ndarray, totals: np.ndarray) -> None:
    """Adds uint8 (height, width, 3), contiguous, to int64 (2, 3): sums and sums of squares."""
    count = pixels.shape[0] * pixels.shape[1]
    sums = np.empty(6 * PIXELS, np.int32)
    begin, room = pixels.ctypes.data, sums.ctypes.data
    pieces = count // PIXELS
    for first in range(0, pieces, MOST):
        add_pieces(begin + 3 * PIXELS * first, min(MOST, pieces - first), room)
        for power in range(2):
            for lane in range(3 * PIXELS):
                totals[power, lane % 3] += load_u32(room + 4 * (3 * PIXELS * power + lane))
    for place in range(3 * PIXELS * pieces, 3 * count):
        value = load_byte(begin + place)
        totals[0, place % 3] += value
        totals[1, place % 3] += value * value
    keep(sums)
