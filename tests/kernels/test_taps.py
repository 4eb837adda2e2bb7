"""Taps of one axis, against the filters' formulas."""

import numpy as np
from references import Taps

from resnet_ffcv.kernels import taps


def matrix(axis: taps.Axis, count: int, high: int) -> np.ndarray:
    if axis.is_float:
        weights = axis.weights[: axis.taps].view(np.float32) * np.float64(taps.ONE)
    else:
        weights = axis.weights[: axis.taps] >> 16
        assert np.array_equal(axis.weights[: axis.taps].astype(np.int16), weights)
    assert axis.outputs == count
    found = np.zeros((count, high))
    for i in range(count):
        start = axis.starts[i]
        assert axis.begin <= start
        assert start + axis.taps <= axis.end
        found[i, start : start + axis.taps] = weights[:, i]
    return found


def draw(rng: np.random.Generator) -> Taps:
    size, count, low = (int(rng.integers(1, n)) for n in (80, 80, 4))
    if rng.integers(2):  # whole pixels, and nothing outside
        return Taps(int(rng.integers(3)), float(low), size / count, count, low, low + size)
    extent = rng.uniform(0.01, size)
    origin = low + rng.uniform(0, size - extent)
    return Taps(int(rng.integers(3)), origin, extent / count, count, low, low + size)


def make(wanted: Taps, mirrored: bool = False) -> taps.Axis:
    work = np.empty(1_000_000, np.int32)
    arguments = (wanted.filter_, wanted.origin, wanted.scale, wanted.low, wanted.high)
    return taps.make_axis(*arguments, mirrored, wanted.count, work)


def test_weights_are_the_filters_and_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    for case in range(2_000):
        wanted = draw(rng)
        axis = make(wanted, mirrored=case % 3 == 0)
        assert wanted.low <= axis.begin < axis.end <= wanted.high
        found = matrix(axis, wanted.count, wanted.high)
        assert np.abs(found.sum(1) - taps.ONE).max() <= (1e-2 if axis.is_float else 0)
        expected = wanted.matrix() * taps.ONE
        if case % 3 == 0:
            expected = expected[::-1]
        assert np.abs(found - expected).max() < 1.01, wanted


def test_many_taps_of_little_weight_are_exact() -> None:
    for filter_ in range(3):
        wanted = Taps(filter_, 0.0, 9_999.0, 3, 0, 29_997)
        axis = make(wanted)
        assert axis.is_float
        assert np.abs(matrix(axis, 3, 29_997) / taps.ONE - wanted.matrix()).max() < 1e-9


def test_half_axes_have_the_upsampling_in_them() -> None:
    rng = np.random.default_rng(1)
    for _ in range(1_000):
        wanted = draw(rng)
        axis = make(wanted)
        size = (wanted.high + 1) // 2
        half = taps.make_half_axis(axis, size, np.empty(100_000, np.int32))
        x = np.arange(wanted.high)
        near = x // 2
        far = np.clip(np.where(x % 2, near + 1, near - 1), 0, size - 1)
        upsampling = np.zeros((wanted.high, size))
        np.add.at(upsampling, (x, near), 0.75)
        np.add.at(upsampling, (x, far), 0.25)
        expected = matrix(axis, wanted.count, wanted.high) @ upsampling
        found = matrix(half, wanted.count, size)
        assert np.abs(found.sum(1) - taps.ONE).max() <= (1e-2 if axis.is_float else 0)
        assert np.abs(found - expected).max() <= 0.5 * axis.taps
