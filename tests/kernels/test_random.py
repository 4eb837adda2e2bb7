"""Random numbers: the published function, uniform, and independent in each of the four numbers."""

import numpy as np
from numba import njit

from resnet_ffcv.kernels.random import absorb, below, epoch_key, uniform


@njit
def many(seed: int, epochs: int, samples: int, draws: int) -> np.ndarray:
    out = np.empty((epochs, samples, draws))
    for e in range(epochs):
        for s in range(samples):
            key = absorb(epoch_key(seed, e), s)
            for d in range(draws):
                out[e, s, d] = uniform(key, d)
    return out


def test_it_is_splitmix64() -> None:
    # The generator's first numbers from the seed 1234567, as published with it: its state grows by
    # the golden constant, which absorb adds to what it is given.
    state, found = 1234567, []
    for _ in range(3):
        found.append(int(absorb(np.uint64(0), np.uint64(state))))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_independent() -> None:
    numbers = many(3, 8, 2_000, 6)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 64, (0, 1))[0]
    expected = numbers.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5
    flat = numbers.reshape(-1, 6)
    for axis_pairs in (np.corrcoef(flat.T), np.corrcoef(numbers.reshape(8, -1))):
        others = axis_pairs[~np.eye(len(axis_pairs), dtype=bool)]
        assert np.abs(others).max() < 0.05
    neighbours = numbers[:, :-1].ravel(), numbers[:, 1:].ravel()
    assert abs(np.corrcoef(*neighbours)[0, 1]) < 0.02
    assert len(np.unique(numbers)) == numbers.size


def test_seeds_and_epochs_do_not_meet() -> None:
    # FFCV's order of seed 1, epoch 1 is that of seed 2, epoch 0.
    keys = {int(epoch_key(seed, epoch)) for seed in range(200) for epoch in range(200)}
    assert len(keys) == 200 * 200


def test_integers_below() -> None:
    key = np.uint64(12345)
    for count in (1, 2, 3, 7):
        drawn = [below(key, draw, count) for draw in range(3_000)]
        found = np.bincount(drawn, minlength=count)
        assert len(found) == count
        assert np.abs(found - 3_000 / count).max() < 5 * (3_000 / count) ** 0.5
