"""Files of random images, and damage to them."""

from pathlib import Path

import numpy as np

from resnet_ffcv.beton import read_image_tables
from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import write_dataset


def write_noise(
    folder: Path, mode: str, shape: tuple[int, int, int], classes: int | None = None
) -> Path:
    """A training file of images of (count, height, width) `shape`, and a val.beton of the same.

    The label is the index, or that modulo the number of classes.
    """
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    names = [f"class {label}" for label in range(classes or len(images))]
    split = Split(images, np.arange(len(images)) % len(names))
    config = WriteConfig(
        output=OutputConfig(str(folder)), image=ImageConfig(mode=mode), writer=WriterConfig(1)
    )
    source = Source("noise", names, {"train": split, "val": split})
    return write_dataset(source, config, Report())["train"].path


def spoil(path: Path, *samples: int) -> None:
    """Overwrites the second half of each sample's data with zeros."""
    tables = read_image_tables(path)
    with path.open("r+b") as file:
        for sample in samples:
            start, size = tables.region(sample)
            file.seek(start + size // 2)
            file.write(bytes(size - size // 2))
