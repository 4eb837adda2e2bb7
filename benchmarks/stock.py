"""Stock FFCV in a benchmark: files by its writer, and its pipelines run in the thread that asks."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_ffcv.fields import FIELDS, DCTImageField, YUV420ImageField
from resnet_ffcv.kernels.memory import load_u32, take_next
from resnet_ffcv.stock import Compiler

from ffcv.fields import IntField, RGBImageField  # isort: skip  # after ours, which keeps threads
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder  # isort: skip
from ffcv.memory_managers import OSCacheManager  # isort: skip
from ffcv.pipeline.allocation_query import AllocationQuery  # isort: skip
from ffcv.pipeline.state import State  # isort: skip
from ffcv.reader import Reader  # isort: skip
from ffcv.writer import DatasetWriter  # isort: skip


def custom_fields(form: str) -> dict[str, type]:
    """What FFCV's Reader and Loader are to be told of a form of image."""
    return {"image": FIELDS[form]} if form in FIELDS else {}


@dataclass(frozen=True)
class Images:
    """A dataset as FFCV's writer takes it; the label is the index."""

    images: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], index


def make_field(form: str, quality: int) -> Any:
    if form == "dct":
        return DCTImageField(quality)
    if form == "yuv420":
        return YUV420ImageField()
    return RGBImageField(form, jpeg_quality=quality)


def write(path: Path, images: Sequence[np.ndarray], form: str, quality: int) -> Path:
    """A file by FFCV's own DatasetWriter."""
    fields = {"image": make_field(form, quality), "label": IntField()}
    threads = torch.get_num_threads()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Images(images))
    torch.set_num_threads(threads)
    return path


class Pipeline:
    """The image pipeline of a file, as FFCV's Loader compiles and calls it, batch by batch."""

    def __init__(self, path: Path, form: str, operations: Sequence[Any], batch: int) -> None:
        reader = Reader(str(path), custom_fields(form))
        self.metadata, self.batch = reader.metadata["f0"], batch
        manager = OSCacheManager(reader)
        read = manager.compile_reader()
        self.context = manager.schedule_epoch(np.zeros((1, 1)))
        self.context.__enter__()
        self.bytes = int(reader.alloc_table["size"].sum()) / len(self.metadata)
        state = State(True, torch.device("cpu"), (), np.dtype("u1"))
        self.stages: list[tuple[Callable[..., Any], Any]] = []
        for operation in operations:
            operation.accept_field(reader.handlers["image"])
            operation.accept_globals(self.metadata, read)
            state, query = operation.declare_state_and_memory(state)
            code = Compiler.compile(operation.generate_code())
            self.stages.append((code, self._allocate(query)))
        self.shape = state.shape

    def _allocate(self, query: Any) -> Any:
        if isinstance(query, AllocationQuery):
            shape = tuple(int(side) for side in query.shape)
            return np.zeros((self.batch, *shape), query.dtype)
        return tuple(self._allocate(one) for one in query)

    def run(self, indices: np.ndarray) -> np.ndarray:
        """A batch: uint8 (n, height, width, 3), valid until the next."""
        (decode, memory), *others = self.stages
        images = decode(indices, memory, self.metadata, self.context.state)
        for code, room in others:
            images = code(images, room[: len(indices)])
        found: np.ndarray = images
        return found

    def batches(self, count: int) -> list[np.ndarray]:
        """Indices of `count` samples, in order, cut into batches."""
        return [np.arange(i, min(i + self.batch, count)) for i in range(0, count, self.batch)]


class GivenCrops(RandomResizedCropRGBImageDecoder):  # type: ignore[misc]  # ffcv has no types
    """FFCV's decoder, but for where its crops come from: a list, one after the other.

    `crops` are rows (y, x, height, width) in the order of the samples that will be asked for.
    """

    def __init__(self, output_size: tuple[int, int], crops: np.ndarray) -> None:
        super().__init__(output_size)
        self.crops = np.ascontiguousarray(crops, np.uint32)
        self.place = np.zeros(1, np.int64)

    @property
    def get_crop_generator(self) -> Any:
        place, crops, count = self.place.ctypes.data, self.crops.ctypes.data, len(self.crops)

        def next_crop(*_: Any) -> tuple[int, int, int, int]:
            row = crops + 16 * (take_next(place) % count)
            return load_u32(row), load_u32(row + 4), load_u32(row + 8), load_u32(row + 12)

        return next_crop  # FFCV compiles it
