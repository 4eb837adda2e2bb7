"""Packed groups: every coefficient comes back, and bytes that make no sense are told."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from references import read_group

from resnet_ffcv.kernels.groups import BLOCKS, MOST_BYTES, pack_group, unpack_group


def draw_group(rng: np.random.Generator) -> np.ndarray:
    """int16 (64, BLOCKS) of many shapes: sparse, dense, one extreme, all extremes."""
    scale = rng.choice([0.3, 1, 4, 30, 300, 2_000])
    fall = np.exp(-np.arange(64) * rng.choice([0, 0.05, 0.3]))[:, None]
    group = rng.laplace(0, scale, (64, BLOCKS)) * fall
    if rng.integers(3) == 0:
        group[rng.integers(64), rng.integers(BLOCKS)] = rng.choice([-1024, 1023])
    if rng.integers(9) == 0:
        group = rng.choice([-1024.0, 1023.0], (64, BLOCKS))
    return np.clip(np.rint(group), -1024, 1023).astype(np.int16)


def pack(group: np.ndarray) -> bytes:
    memory = np.zeros((66, BLOCKS), np.int16)
    memory[:64] = group
    out = np.full(MOST_BYTES + 64, 77, np.uint8)
    size = pack_group(memory.ctypes.data, out.ctypes.data)
    assert size <= MOST_BYTES
    assert (out[size:] == 77).all()
    return out[:size].tobytes()


def unpack(data: bytes) -> tuple[bool, np.ndarray]:
    source = np.frombuffer(data + bytes(8), np.uint8)
    memory = np.full((66, BLOCKS), 77, np.int16)
    found = unpack_group(source.ctypes.data, source.ctypes.data + len(data), memory[1:].ctypes.data)
    assert (memory[0] == 77).all()
    assert (memory[65] == 77).all()
    return found, memory[1:65]


def test_groups_come_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        group = draw_group(rng)
        data = pack(group)
        assert np.array_equal(read_group(data), group)
        found, out = unpack(data)
        assert found
        middle = np.frombuffer(data[:2], np.int16)[0]
        assert np.array_equal(out + (np.arange(64) == 0)[:, None] * middle, group)


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_any_bytes_have_an_answer(data: bytes, seed: int) -> None:
    unpack(data)
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(pack(draw_group(rng)), np.uint8).copy()
    unpack(whole[: rng.integers(len(whole))].tobytes())
    whole[rng.integers(min(len(whole), 80))] ^= 1 << rng.integers(8)
    unpack(whole.tobytes())
