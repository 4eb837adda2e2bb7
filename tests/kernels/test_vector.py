"""The vocabulary of vectors, against NumPy, and with the CPU's product against the plain one."""

import numpy as np
import pytest
from numba import njit

from resnet_ffcv.kernels import vector
from resnet_ffcv.kernels.vector import (
    F32,
    I8,
    I16,
    I32,
    Scalar,
    broadcast,
    concatenate,
    load,
    load_integer,
    mask_lanes,
    repeat,
    store,
    transpose,
    vector_kernel,
    weave,
    zeros,
)

rng = np.random.default_rng(0)
EXTREME = np.array([-32768, -32767, -16384, -1, 0, 1, 2, 16383, 16384, 32766, 32767], np.int16)


def run(body, *arrays: np.ndarray, result: np.dtype, lanes: int) -> np.ndarray:
    """Calls a vector kernel on the arrays' addresses, the last of them its result."""
    kernel = vector_kernel(body)
    out = np.zeros(lanes, result)
    addresses = [array.ctypes.data for array in (*arrays, out)]
    calls = {1: lambda k: njit(lambda a: k(a)), 2: lambda k: njit(lambda a, b: k(a, b)),
             3: lambda k: njit(lambda a, b, c: k(a, b, c))}  # fmt: skip
    calls[len(addresses)](kernel)(*addresses)
    return out


def pairs() -> tuple[np.ndarray, np.ndarray]:
    grid = np.array(np.meshgrid(EXTREME, EXTREME)).reshape(2, -1)
    noise = rng.integers(-32768, 32768, (2, 32 * 40 - grid.shape[1]), np.int16)
    return tuple(np.concatenate([grid, noise], 1).reshape(2, 40, 32))


def times(a: Scalar, b: Scalar, out: Scalar) -> None:
    store(out, load(a, I16, 32).times_q15(load(b, I16, 32)))


@pytest.mark.parametrize("lanes", [None, 8, 16, 32])
def test_rounding_products(lanes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vector._fast_product()
    if lanes is not None and lanes not in (found or {}):
        pytest.skip("this CPU has no such instruction")
    chosen = None if lanes is None else {lanes: found[lanes]}
    monkeypatch.setattr(vector, "_fast_product", lambda: chosen)
    for a, b in zip(*pairs(), strict=True):
        b = np.where((a == -32768) & (b == -32768), 0, b)  # is forbidden
        expected = (a.astype(np.int32) * b + (1 << 14)) >> 15
        assert np.array_equal(run(times, a, b, result=np.int16, lanes=32), expected)


def test_saturation_and_clipping() -> None:
    def body(a: Scalar, b: Scalar, out: Scalar) -> None:
        x, y = load(a, I16, 32), load(b, I16, 32)
        store(out, x.add_saturated(y))
        store(out + 64, x.sub_saturated(y))
        store(out + 128, x.clip(-100, 200))
        store(out + 192, x.narrow_saturated())

    a, b = (part[0] for part in pairs())
    out = run(body, a, b, result=np.int16, lanes=112)
    wide = a.astype(int), b.astype(int)
    assert np.array_equal(out[:32], np.clip(wide[0] + wide[1], -32768, 32767))
    assert np.array_equal(out[32:64], np.clip(wide[0] - wide[1], -32768, 32767))
    assert np.array_equal(out[64:96], np.clip(a, -100, 200))
    assert np.array_equal(out[96:].view(np.int8), np.clip(a, -128, 127))


def test_transpose_within_blocks() -> None:
    def body(rows: Scalar, out: Scalar) -> None:
        for k, row in enumerate(transpose([load(rows + 64 * k, I16, 32) for k in range(8)])):
            store(out + 64 * k, row)

    rows = rng.integers(-99, 99, (8, 32), np.int16)
    out = run(body, rows, result=np.int16, lanes=256).reshape(8, 4, 8)
    assert np.array_equal(out, rows.reshape(8, 4, 8).transpose(2, 1, 0))


def test_masks_sums_and_signs() -> None:
    def body(a: Scalar, out: Scalar) -> None:
        x = load(a, I16, 32)
        bits = x.signs()
        for place, word in enumerate((bits, x.is_not(0), x.clip(-99, 99).sum())):
            store(out + 4 * place, broadcast(word, I32, 1))
        store(out + 12, zeros(a, I16, 32).add_where(mask_lanes(bits, 32), 7))

    a = np.where(rng.random(32) < 0.3, 0, rng.integers(-99, 99, 32)).astype(np.int16)
    out = run(body, a, result=np.uint8, lanes=76)
    words = out[:12].view(np.uint32)
    assert words[0] == sum(1 << i for i in range(32) if a[i] < 0)
    assert words[1] == sum(1 << i for i in range(32) if a[i])
    assert words[2].astype(np.int32) == a.sum()
    assert np.array_equal(out[12:].view(np.int16), np.where(a < 0, 7, 0))


def test_floats_round_to_even() -> None:
    def body(a: Scalar, out: Scalar) -> None:
        store(out, (load(a, F32, 16) * 0.5 + 1.0).round(I16))

    a = np.array([1, 2, 3, 5, -1, -3, -5, 7, 9, 11, 0, 4, 6, 8, 10, 12], np.float32)
    assert np.array_equal(run(body, a, result=np.int16, lanes=16), np.rint(a * 0.5 + 1))


def test_a_loop_keeps_its_values_and_lanes_move() -> None:
    def body(a: Scalar, out: Scalar) -> None:
        (total,) = repeat(
            load_integer(a, I16),
            [zeros(a, I16, 8)],
            lambda i, sums: [sums[0] + broadcast(i, I16, 8)],
        )
        low, high = load(a, I8, 8), load(a + 8, I8, 8)
        store(out, total)
        store(out + 16, weave(low, high))
        store(out + 32, concatenate([low, high]))

    a = rng.integers(0, 99, 16, np.uint8)
    a[:2] = [10, 0]
    out = run(body, a, result=np.uint8, lanes=48)
    assert (out[:16].view(np.int16) == 45).all()
    assert np.array_equal(out[16:32], a.reshape(2, 8).T.ravel())
    assert np.array_equal(out[32:], a)
