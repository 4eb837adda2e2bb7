"""Resampling of RGB, against float64, Pillow and torchvision."""

import numpy as np
import pytest
import torch
from images import Guarded, Work, draw_image, draw_size, draw_window
from PIL import Image
from references import resample
from torchvision.transforms.v2 import functional as F

from resnet_ffcv.kernels.geometry import Window, count_axis_words
from resnet_ffcv.kernels.raw import count_rgb_work, resample_rgb


def run(image: np.ndarray, window: Window, filter_: int, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    words = count_axis_words(window, filter_, *size)
    work, out = Work(4 * words + count_rgb_work(height, width, size[0])), Guarded(size)
    resample_rgb(
        image.ctypes.data, height, width, window, filter_, out.image.ctypes.data, *size, work.words
    )
    work.check()
    return out.check()


def test_windows_are_within_a_level_of_float64() -> None:
    rng = np.random.default_rng(0)
    for case in range(900):
        shape, size = draw_size(rng), draw_size(rng)
        image, window = draw_image(rng, *shape), draw_window(rng, *shape)
        expected = np.clip(resample(image, window, case % 3, size), 0, 255)
        assert np.abs(run(image, window, case % 3, size) - expected).max() < 1, (shape, window)


@pytest.mark.parametrize("shape", [(3_000, 8), (7, 4_001), (1_999, 2_503), (65_535, 3)])
def test_large_images_are_within_a_level_of_float64(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for case in range(6):
        image, size = draw_image(rng, *shape), draw_size(rng, 30)
        window = (
            draw_window(rng, *shape) if case else Window(0, 0, *map(float, shape), False, False)
        )
        expected = np.clip(resample(image, window, case % 3, size), 0, 255)
        assert np.abs(run(image, window, case % 3, size) - expected).max() < 1, window


def test_flat_images_stay_flat() -> None:
    for level in range(256):
        image = np.full((97, 103, 3), level, np.uint8)
        window = Window(1.0, 2.0, 95.0, 99.0, False, False)
        for filter_, size in ((0, (3, 5)), (1, (40, 7)), (2, (150, 130))):
            assert (run(image, window, filter_, size) == level).all()


def test_whole_images_are_pillows_and_torchvisions() -> None:
    rng = np.random.default_rng(2)
    for case in range(400):
        shape, size = draw_size(rng), draw_size(rng)
        image = draw_image(rng, *shape)
        window = Window(0.0, 0.0, float(shape[0]), float(shape[1]), True, False)
        name, filter_ = [("BILINEAR", 1), ("BICUBIC", 2)][case % 2]
        if name == "BICUBIC":  # what overshoots is cut off between their passes, not between ours
            image = 64 + image // 2
        found = run(image, window, filter_, size).astype(int)
        theirs = Image.fromarray(image).resize(size[::-1], Image.Resampling[name])
        # They round between their passes.
        assert np.abs(found - np.asarray(theirs)).max() <= 2
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        mode = F.InterpolationMode[name]
        other = F.resize(tensor, list(size), mode, antialias=True).permute(1, 2, 0)
        assert np.abs(found - other.numpy()).max() <= 2


def test_mirrored_is_the_mirror_image() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        shape, size = draw_size(rng), draw_size(rng)
        image, window = draw_image(rng, *shape), draw_window(rng, *shape)
        both = [run(image, window._replace(mirrored=flag), 1, size) for flag in (False, True)]
        assert np.array_equal(both[0], both[1][:, ::-1])
