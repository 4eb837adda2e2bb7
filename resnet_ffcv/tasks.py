"""What is written of a source, and how: a job for each split, cut into tasks for workers."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv import beton
from resnet_ffcv.config import WriteConfig, WriterConfig
from resnet_ffcv.sources import Source, Split, printable
from resnet_ffcv.workers import Task

# In a task for a worker: images at most, and bytes of files, so that few large ones are in memory.
TASK_FILES, TASK_ARRAYS, TASK_BYTES = 16, 500, 1 << 22


@dataclass(frozen=True)
class Job:
    """A split to write: which of its images (sorted indices), and how."""

    source: Source
    split: str
    indices: np.ndarray
    config: WriteConfig

    @property
    def images(self) -> Split:
        return self.source.splits[self.split]

    @property
    def arguments(self) -> bytes | None:
        """The image field's, where it is one of ours."""
        image = self.config.image
        if image.mode not in beton.FORMS:
            return None
        quality = image.quality if image.mode == "dct" else 100
        return beton.write_arguments(image.mode, quality, image.max_resolution)

    def short_name(self, index: int) -> str:
        """An image's file with its folder, the same on every machine, as `printable` gives it; or
        its number."""
        item = self.images.items[index]
        return printable(_short(item)) if isinstance(item, Path) else self.images.describe(index)

    def identify(self) -> tuple[str, str]:
        """SHA-256 of the labels and images, by their pixels, or by their files' names, folders and
        sizes, which are the same on every machine; and of the files' times of change on this one.
        """
        digest = hashlib.sha256(self.images.labels[self.indices].tobytes())
        times = hashlib.sha256()
        for index in map(int, self.indices):
            item = self.images.items[index]
            if isinstance(item, np.ndarray):
                digest.update(item.tobytes())
                continue
            digest.update(os.fsencode(f"{_short(item)} {_size(item)}\n"))
            with suppress(OSError):  # the worker that reads it says what is wrong
                times.update(f"{item.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest(), times.hexdigest()

    def options(self) -> dict[str, Any]:
        """What the file's bytes depend on, apart from the source."""
        writer, image = self.config.writer, asdict(self.config.image)
        if writer.on_error == "raise":  # a limit that ends a write may be raised to resume it
            del image["max_pixels"]
        chosen = {"limit": writer.limit, "seed": writer.seed, "on_error": writer.on_error}
        return {**image, **chosen}

    def tasks(self, indices: np.ndarray) -> Iterator[Task]:
        """The images cut into tasks, in order."""
        items = self.images.items
        in_memory = isinstance(items, np.ndarray)
        part: list[int] = []
        weight = 0
        for index in map(int, indices):
            part.append(index)
            weight += _size(items[index])
            if len(part) == (TASK_ARRAYS if in_memory else TASK_FILES) or weight > TASK_BYTES:
                yield self._task(part)
                part, weight = [], 0
        if part:
            yield self._task(part)

    def _task(self, part: list[int]) -> Task:
        names = [self.images.describe(index) for index in part]
        items = [self.images.items[index] for index in part]
        return Task(self.split, part, items, names, self.config.image, self.config.writer)


def _short(path: Path) -> str:
    """A file's name with its folder's: the same on every machine."""
    return f"{path.parent.name}/{path.name}"


def _size(item: Path | np.ndarray) -> int:
    if isinstance(item, np.ndarray):
        return item.nbytes
    try:
        return item.stat().st_size
    except OSError:  # the worker that reads it says what is wrong
        return 0


def choose(count: int, config: WriterConfig) -> np.ndarray:
    """Sorted indices of the images to write: all, or `writer.limit` drawn by `writer.seed`."""
    if config.limit is None or config.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).permutation(count)[: config.limit])
