import numpy as np
import pytest

from resnet_ffcv.kernels.moments import MOST, PIXELS, add_moments


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (32, 32), (1, 31), (3, 33), (500, 375)])
def test_sums_are_numpys(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    totals = np.full((2, 3), 7, np.int64)
    add_moments(pixels, totals)
    values = pixels.reshape(-1, 3).astype(np.int64)
    assert (totals - 7).tolist() == [values.sum(0).tolist(), (values**2).sum(0).tolist()]


def test_a_large_white_image_does_not_overflow() -> None:
    count = PIXELS * (MOST + 5) + 3
    totals = np.zeros((2, 3), np.int64)
    add_moments(np.full((1, count, 3), 255, np.uint8), totals)
    assert totals.tolist() == [[255 * count] * 3, [255 * 255 * count] * 3]
