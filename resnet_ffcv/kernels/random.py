"""Random numbers as a function of (seed, epoch, sample, draw), without a state.

So an image's crop does not depend on threads, batches, ranks, or on what was drawn before. It is
SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014, with Stafford's mix 13), taken once for each of the four.
"""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


@kernel
def absorb(key: np.uint64, number: int) -> np.uint64:
    """A key of a key and a number: whose keys of different numbers have nothing in common."""
    x = (key ^ np.uint64(number)) + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    return x ^ (x >> np.uint64(31))


@kernel
def epoch_key(seed: int, epoch: int) -> np.uint64:
    return absorb(absorb(np.uint64(0), seed), epoch)


@kernel
def uniform(key: np.uint64, draw: int) -> float:
    """Draw number `draw` of a sample's key, on [0, 1): a multiple of 2^-53."""
    return (absorb(key, draw) >> np.uint64(11)) * 2.0**-53


@kernel
def below(key: np.uint64, draw: int, count: int) -> int:
    """An integer from 0 to count - 1; count is far below 2^53."""
    return min(int(uniform(key, draw) * count), count - 1)
