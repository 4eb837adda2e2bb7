"""RGB to YCbCr, against float64 and against libjpeg's own conversion by way of Pillow."""

import numpy as np
from images import draw_image, draw_size
from PIL import Image
from references import split

from resnet_ffcv.kernels.colour import is_gray, split_colour


def test_planes_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = draw_size(rng, 100)
        image = draw_image(rng, height, width)
        found = split_colour(image)
        for ours, exact in zip(found, split(image), strict=True):
            assert np.abs(ours - exact).max() <= 0.502
        luma = np.asarray(Image.fromarray(image).convert("YCbCr"))[..., 0].astype(int)
        assert np.abs(found[0] - luma).max() <= 1


def test_gray_is_told() -> None:
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (5, 7), (64, 40)):
        image = np.repeat(rng.integers(0, 256, (*shape, 1), np.uint8), 3, 2)
        assert is_gray(image)
        for place in ((0, 0), (-1, -1)):
            other = image.copy()
            other[(*place, 1)] ^= 1
            assert not is_gray(other)
