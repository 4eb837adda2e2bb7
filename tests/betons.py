"""Files of random images and files packed by hand, and damage to them."""

import struct
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


# Files packed by hand ----------------------------------------------------------------------
#
# By `struct` alone, so that every number of the header, fields, rows and table may be anything.

PAGE = 4096
FLOAT, INT, RGB, BYTES, ARRAY, JSON, TENSOR, OURS = 0, 1, 2, 3, 4, 5, 6, 255
ROW_FORMATS = {
    FLOAT: "<d", INT: "<q", RGB: "<BHHQ", BYTES: "<QQ", ARRAY: "<Q", JSON: "<QQ", TENSOR: "<Q",
    OURS: "<HHBBQ",
}  # fmt: skip
Field = tuple[bytes, int, bytes]  # name, type id, arguments


def array_arguments(shape: tuple[int, ...], description: bytes) -> bytes:
    """Of an array's field: `description` as in b'[["", "<f4"]]'."""
    return struct.pack("<32QQ", *shape, *[0] * (32 - len(shape)), len(description)) + description


def form_arguments(form: bytes, version: int = 1, quality: int = 90, side: int = 0) -> bytes:
    return struct.pack("<8sHBI", form, version, quality, side)


def row_layout(types: list[int]) -> tuple[list[int], int]:
    """(offset of each column in a row, bytes of a row), as C aligns them: numbers to 8 bytes."""
    offsets, end, aligned = [], 0, False
    for kind in types:
        if ROW_FORMATS[kind] in ("<d", "<q", "<Q"):
            end, aligned = -(-end // 8) * 8, True
        offsets.append(end)
        end += struct.calcsize(ROW_FORMATS[kind])
    return offsets, -(-end // 8) * 8 if aligned else end


def first_page(types: list[int], samples: int) -> int:
    return -(-(24 + 1041 * len(types) + samples * row_layout(types)[1]) // PAGE) * PAGE


def pack_file(
    fields: list[Field], samples: list[list[tuple[tuple[float, ...], int | None]]]
) -> bytearray:
    """A file whose regions hold bytes of 1.

    Args:
        fields: of the file.
        samples: for each sample and field, the row's numbers but for the pointer (which is the last
            of them; of BYTES and JSON the first) and the size of its region; None: no region.
    """
    types = [kind for _, kind, _ in fields]
    offsets, row_bytes = row_layout(types)
    first = place = first_page(types, len(samples))
    rows, table = bytearray(row_bytes * len(samples)), b""
    for number, sample in enumerate(samples):
        total = sum(size or 0 for _, size in sample)
        if place % PAGE + total > PAGE:
            place = -(-place // PAGE) * PAGE
        for offset, kind, (values, size) in zip(offsets, types, sample, strict=True):
            if size is not None:
                values = (place, *values) if kind in (BYTES, JSON) else (*values, place)
                table += struct.pack("<QQQ", number, place, size)
                place += size
            struct.pack_into(ROW_FORMATS[kind], rows, number * row_bytes + offset, *values)
    end = max(first, -(-place // PAGE) * PAGE)
    head = struct.pack("<HHIQQ", 2, len(fields), PAGE, len(samples), end)
    for name, kind, arguments in fields:
        head += struct.pack("<B16s1024s", kind, name, arguments)
    return bytearray((head + rows).ljust(first, b"\0").ljust(end, b"\1") + table)
