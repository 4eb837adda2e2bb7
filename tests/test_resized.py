"""Whole images resized to short sides: what they may ask for."""

from pathlib import Path

import numpy as np
import pytest

from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.progress import Report
from resnet_ffcv.resized import ResizedImages
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import write_dataset


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, the second of 3 x 900 pixels (width x height)."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((40, 30, 3), (900, 3, 3))]
    split = Split(images, np.arange(2))
    folder = tmp_path_factory.mktemp("long")
    config = WriteConfig(
        output=OutputConfig(str(folder)), image=ImageConfig(mode="raw"), writer=WriterConfig(1)
    )
    source = Source("noise", ["a", "b"], {"train": split, "val": split})
    return write_dataset(source, config, Report())["train"].path


def views(path: Path, *sides: int, **limits: int) -> ResizedImages:
    return ResizedImages(
        str(path), sides, resolution=32, batch_size=4, num_workers=1, **limits
    )  # fmt: skip


def test_a_resized_image_has_a_longest_side(path: Path) -> None:
    words = "sample 1, 3 x 900 pixels, would become 219 x 65,700 at a short side of 219"
    with pytest.raises(FailureError, match=words):
        views(path, 32, 219)
    views(path, 218)


def test_a_resized_image_has_a_limit_of_pixels(path: Path) -> None:
    with pytest.raises(FailureError, match=r"would become 30 x 9,000 .* max_pixels=269,999 in all"):
        views(path, 30, max_pixels=30 * 9_000 - 1)
    shapes = [images.shape[1:3] for _, images in views(path, 30, max_pixels=30 * 9_000)]
    assert sorted(shapes) == [(40, 30), (9_000, 30)]


def test_limits_hold_for_the_images_of_the_file(path: Path) -> None:
    with pytest.raises(FailureError, match=r"sample 1 .*more pixels than max_pixels allows"):
        list(views(path, 1, max_pixels=2_000))
    with pytest.raises(FailureError, match=r"sample \d .*more memory than max_memory allows"):
        list(views(path, 8, max_memory=1_000))
