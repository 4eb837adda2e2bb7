"""What a write has stored so far: rows of the metadata, and sums for the manifest."""

import math
from dataclasses import dataclass

import numpy as np

from resnet_ffcv import beton


@dataclass
class Content:
    """What was stored so far.

    Attributes:
        done: images of the job that were stored or skipped.
        rows: (n,) of beton.metadata_type, of the images stored; longer than `count` while it grows.
        count: of these.
        moments: int64 (2, 3), sums of each channel of their pixels, and of its squares.
        sums: int64 (height, width, 3), all images added up; None where they are large or differ in
            size, or there is none yet.
        skipped: names of images that could not be stored.
    """

    rows: np.ndarray
    moments: np.ndarray
    done: int = 0
    count: int = 0
    sums: np.ndarray | None = None
    damaged: int = 0
    skipped: tuple[str, ...] = ()

    @classmethod
    def empty(cls, images: int, row: np.dtype) -> "Content":
        """Nothing yet, with room for so many images."""
        return cls(np.zeros(images, beton.metadata_type(row)), np.zeros((2, 3), np.int64))

    @property
    def metadata(self) -> np.ndarray:
        return self.rows[: self.count]

    def moments_of_pixels(self) -> tuple[list[float], list[float]]:
        """(mean, standard deviation) of each channel, from 0 to 1."""
        sides = self.metadata["image"]
        total = int((sides["width"].astype(np.int64) * sides["height"]).sum())
        means, deviations = [], []
        for first, second in self.moments.T.tolist():  # Python's integers: exact
            means.append(first / total / 255)
            deviations.append(math.sqrt(second * total - first * first) / total / 255)
        return means, deviations

    def add(self, moments: np.ndarray, sums: np.ndarray | None, images: int) -> None:
        """Adds the sums over images that come next; before they are counted."""
        if images:
            self.moments = self.moments + moments
            self.sums = sums if self.count == 0 else add_pixels(self.sums, sums)


def add_pixels(sums: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    """The sum of two arrays of pixels; None where one is None or their sizes differ."""
    if sums is None or more is None or sums.shape != more.shape:
        return None
    total: np.ndarray = sums + more
    return total
