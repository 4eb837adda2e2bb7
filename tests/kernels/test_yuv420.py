"""The yuv420 form: its layout, and windows of it against float64."""

import numpy as np
import pytest
from images import Guarded, Work, draw_image, draw_size, draw_window
from references import join, resample, split, to_rgb

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF
from resnet_ffcv.kernels.geometry import Window, count_axis_words
from resnet_ffcv.kernels.yuv420 import (
    count_yuv420_work,
    decode_yuv420,
    encode_yuv420,
    yuv420_bytes,
)


def encode(image: np.ndarray, colour: int) -> np.ndarray:
    data = np.empty(yuv420_bytes(*image.shape[:2], colour), np.uint8)
    encode_yuv420(image, colour, data)
    return data


def decode(data, shape, colour, window: Window, filter_: int, size) -> tuple[int, np.ndarray]:
    words = count_axis_words(window, filter_, *size)
    work, out = Work(4 * words + count_yuv420_work(shape[0], *size)), Guarded(size)
    found = decode_yuv420(
        data.ctypes.data, len(data), *shape, colour, window, filter_,
        out.image.ctypes.data, *size, work.words,
    )  # fmt: skip
    work.check()
    return found, out.check()


def planes_of(data: np.ndarray, shape: tuple[int, int], colour: int) -> list[np.ndarray]:
    """Y, Cb and Cr, by docs/format.md."""
    half = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    y, rest = data[: shape[0] * shape[1]], data[shape[0] * shape[1] :]
    planes = [y.reshape(shape[::-1]).T]
    for k in range(2):
        count = half[0] * half[1]
        if colour == HALF:
            planes.append(rest[k * count : (k + 1) * count].reshape(half[::-1]).T)
        else:
            planes.append(np.full(half, 128, np.uint8))
    return planes


@pytest.mark.parametrize("colour", [GRAY, HALF])
def test_layout_and_windows(colour: int) -> None:
    rng = np.random.default_rng(colour)
    for case in range(500):
        shape, size = draw_size(rng), draw_size(rng)
        image, window = draw_image(rng, *shape), draw_window(rng, *shape)
        data = encode(image, colour)
        planes = planes_of(data, shape, colour)
        if colour == HALF:
            for ours, exact in zip(planes, split(image), strict=True):
                assert np.abs(ours - exact).max() <= 0.502
        found, out = decode(data, shape, colour, window, case % 3, size)
        assert found == status.WHOLE
        expected = to_rgb(resample(join(*planes), window, case % 3, size))
        assert np.abs(out - expected).max() < 1, (shape, window)


def test_what_does_not_fit_is_told() -> None:
    data = encode(np.zeros((9, 7, 3), np.uint8), HALF)
    window = Window(0.0, 0.0, 5.0, 5.0, False, False)
    assert decode(data[:-1], (9, 7), HALF, window, 0, (4, 4))[0] == status.WRONG_SIZE
    assert decode(data, (9, 8), HALF, window, 0, (4, 4))[0] == status.WRONG_SIZE
    assert decode(data, (9, 7), 2, window, 0, (4, 4))[0] == status.BAD_ROW
