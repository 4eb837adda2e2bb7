"""The order of an epoch's samples, a function of (seed, epoch), and each rank's share of it.

One order holds for all ranks. It is cut into global batches, one batch for each rank side by side;
so how far an epoch is, is one number of samples, and it can be gone on with by any number of ranks
in batches of any size.
"""

import numpy as np

PAGES_AT_ONCE = 64  # that the quasi-random order draws from at a time


def random_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The indices, permuted."""
    return np.random.default_rng((seed, epoch)).permutation(indices)


def quasi_random_order(indices: np.ndarray, pages: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The indices, permuted, but so that few pages of the file are read at a time.

    Pages are put into a random order and taken PAGES_AT_ONCE at a time; the samples of these are
    mixed.

    Args:
        indices: (n,).
        pages: int (n,), the page that each sample lies in.
        seed, epoch: what the order is a function of.
    """
    generator = np.random.default_rng((seed, epoch))
    found, page = np.unique(pages, return_inverse=True)
    group = generator.permutation(len(found))[page] // PAGES_AT_ONCE
    mixed: np.ndarray = indices[np.lexsort((generator.permutation(len(indices)), group))]
    return mixed


def share(
    samples: int, batch_size: int, rank: int, world_size: int, *, drop_last: bool, start: int = 0
) -> np.ndarray:
    """int64 (batches, 2): from where to where in the epoch's order each of a rank's batches goes.

    What is left behind the last whole global batch is dropped, or else divided among the ranks as
    evenly as can be: each sample comes once, and a rank may have no last batch.

    Args:
        samples: in the epoch, of all ranks.
        batch_size: of a rank.
        rank, world_size: whose share.
        drop_last: whether the rest is dropped.
        start: samples of the epoch that were handed out before.
    """
    step = batch_size * world_size
    whole, rest = divmod(max(0, samples - start), step)
    begin = start + np.arange(whole) * step + rank * batch_size
    bounds = np.stack([begin, begin + batch_size], axis=1)
    if rest and not drop_last:
        base = start + whole * step
        last = [base + rest * rank // world_size, base + rest * (rank + 1) // world_size]
        if last[0] < last[1]:
            bounds = np.concatenate([bounds, [last]])
    return bounds
