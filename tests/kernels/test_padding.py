import numpy as np
import pytest

from resnet_ffcv.kernels.padding import clip, fill_pixels, place_pixels


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 1000])
def test_fill_writes_so_many_pixels(count: int) -> None:
    out = np.full((count + 2, 3), 99, np.uint8)
    fill_pixels(out[1:].ctypes.data, count, (1, 20, 255))
    assert (out[[0, -1]] == 99).all()
    assert (out[1:-1] == (1, 20, 255)).all()


@pytest.mark.parametrize("columns", [*range(1, 70), 300])
def test_rows_are_copied_or_mirrored(columns: int) -> None:
    rng = np.random.default_rng(columns)
    source = rng.integers(0, 256, (5, columns + 7, 3), np.uint8)
    for mirrored in (False, True):
        out = np.full((5, columns + 4, 3), 99, np.uint8)
        place_pixels(
            source[:, 3:].ctypes.data, 3 * (columns + 7), 5, columns, mirrored,
            out[:, 2:].ctypes.data, 3 * (columns + 4),
        )  # fmt: skip
        part = source[:, 3 : columns + 3]
        assert np.array_equal(out[:, 2:-2], part[:, ::-1] if mirrored else part)
        assert (out[:, :2] == 99).all()
        assert (out[:, -2:] == 99).all()


def test_a_window_is_clipped_to_its_image() -> None:
    assert clip(-4, 32, 32) == (0, 28)
    assert clip(4, 32, 32) == (4, 32)
    assert clip(-40, 32, 32) == (0, 0)
    assert clip(40, 32, 32) == (32, 32)
    assert clip(-2, 50, 32) == (0, 32)
