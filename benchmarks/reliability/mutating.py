"""Honest .beton files of every form and field, and one random lie at a time told about them."""

import colorsys
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.reliability.trying import write
from resnet_ffcv import beton

SAMPLES = 12
MODES = ("raw", "jpg", "smart", "proportion", "dct", "yuv420")  # write_datasets.py's
SIDES = (17, 40)  # pixels of an image, from and to
PAGE_SIZE = 1 << 15  # bytes, of our files: small ones are read in no time


def colour(sample: int) -> tuple[int, int, int]:
    """Each sample has one colour of its own; no change of brightness makes it another sample's."""
    red, green, blue = colorsys.hsv_to_rgb(sample / SAMPLES, 0.7, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def make_image(sample: int) -> np.ndarray:
    """uint8 (height, width, 3) in the sample's colour."""
    height, width = random.Random(sample).sample(range(*SIDES), 2)
    return np.full((height, width, 3), colour(sample), np.uint8)


def make_note(sample: int) -> bytes:
    """Bytes that only this sample has; those of the last are empty."""
    return bytes([65 + sample]) * (50 if sample < SAMPLES - 1 else 0)


def write_seeds(folder: Path) -> list[Path]:
    """The honest files: write_datasets.py's in each mode, with manifests, and FFCV's with each kind
    of field."""
    images = [make_image(sample) for sample in range(SAMPLES)]
    with patch.object(beton, "DEFAULT_PAGE_SIZE", PAGE_SIZE):
        ours = [write(folder / mode, images, mode) for mode in MODES]
    return ours + [write_with_ffcv(folder / f"ffcv-{name}.beton", name) for name in FFCV_FILES]


def _ffcv_fields() -> dict[str, tuple[Callable[[], Any], Callable[[int], Any]]]:
    from ffcv import fields

    from resnet_ffcv.fields import DCTImageField, YUV420ImageField

    def array(sample: int) -> np.ndarray:
        return np.full((3, 4), sample + 0.5, np.float32)

    def tensor(sample: int) -> Any:
        import torch

        return torch.full((5,), sample + 0.5)

    return {
        "raw": (lambda: fields.RGBImageField(write_mode="raw"), make_image),
        "jpg": (lambda: fields.RGBImageField(write_mode="jpg"), make_image),
        "dct": (DCTImageField, make_image),
        "yuv420": (YUV420ImageField, make_image),
        "int": (fields.IntField, lambda sample: sample),
        "float": (fields.FloatField, lambda sample: sample + 0.5),
        "bytes": (fields.BytesField, lambda sample: np.frombuffer(make_note(sample), "u1").copy()),
        "json": (fields.JSONField, lambda sample: {"note": make_note(sample).decode()}),
        "array": (lambda: fields.NDArrayField(np.dtype("float32"), (3, 4)), array),
        "tensor": (lambda: fields.TorchTensorField(tensor(0).dtype, (5,)), tensor),
    }


# name of the file -> its fields
FFCV_FILES = {
    "raw": ("raw", "int"),
    "jpg": ("jpg", "int", "float"),
    "mask": ("dct", "yuv420"),
    "bytes": ("raw", "bytes"),
    "json": ("json", "jpg"),
    "arrays": ("array", "tensor", "float"),
    "all": ("raw", "jpg", "dct", "yuv420", "int", "float", "bytes", "json", "array", "tensor"),
}


def write_with_ffcv(path: Path, name: str) -> Path:
    """A file by FFCV's own DatasetWriter."""
    from ffcv.writer import DatasetWriter

    known = _ffcv_fields()
    chosen = {kind: known[kind] for kind in FFCV_FILES[name]}

    class Samples:
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, sample: Any) -> tuple[Any, ...]:
            return tuple(value(int(sample)) for _, value in chosen.values())

    fields = {kind: make() for kind, (make, _) in chosen.items()}
    writer = DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1)
    writer.from_indexed_dataset(Samples(), shuffle_indices=False)
    return path


@dataclass
class Lie:
    """What is changed in a file: bytes at offsets, then its size; or its manifest's text."""

    words: str
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    size: int | None = None
    manifest: bytes | None = None

    def tell(self, path: Path) -> Callable[[], None]:
        """Changes the file at `path`; what is returned changes it back."""
        size = path.stat().st_size
        before: list[tuple[int, bytes]] = []
        with path.open("r+b") as file:
            for offset, new in self.patches:
                file.seek(offset)
                before.append((offset, file.read(len(new))))
                file.seek(offset)
                file.write(new)
            if self.size is not None:
                file.seek(min(self.size, size))
                before.append((min(self.size, size), file.read()))
                file.truncate(self.size)
        manifest = path.with_name(path.name + ".json")
        said = manifest.read_bytes() if self.manifest is not None else None
        if self.manifest is not None:
            manifest.write_bytes(self.manifest)

        def undo() -> None:
            with path.open("r+b") as file:
                for offset, old in reversed(before):
                    file.seek(offset)
                    file.write(old)
                file.truncate(size)
            if said is not None:
                manifest.write_bytes(said)

        return undo


class Liar:
    """Draws lies about one honest file; the same number gives the same lie."""

    def __init__(self, path: Path) -> None:
        self.path, self.tables = path, beton.read_tables(path)
        self.content = path.read_bytes()
        self.fields_end = beton.HEADER.itemsize + len(self.tables.fields) * beton.FIELD.itemsize
        self.manifest = path.with_name(path.name + ".json")
        self.kinds: list[Callable[[random.Random], Lie]] = [
            self.header, self.descriptor, self.row, self.row, self.pointer, self.pointer,
            self.region, self.region, self.sizes, self.blob, self.blob, self.blob, self.blob_head,
            self.cut, self.noise,
        ]  # fmt: skip
        if self.manifest.exists():
            self.kinds.append(self.manifest_value)

    def draw(self, number: int) -> Lie:
        """The lie of this number, which changes something."""
        rng = random.Random(number)
        while True:
            lie = self._draw(rng)
            if any(self.content[p : p + len(new)] != new for p, new in lie.patches):
                return lie
            if lie.size not in (None, len(self.content)) or lie.manifest is not None:
                return lie

    def _draw(self, rng: random.Random) -> Lie:
        lies = [rng.choice(self.kinds)(rng) for _ in range(1 + (rng.random() < 0.2))]
        lie = lies[0]
        for other in lies[1:]:
            lie.words += f" and {other.words}"
            lie.patches += other.patches
            lie.size = other.size if lie.size is None else lie.size
            lie.manifest = other.manifest if lie.manifest is None else lie.manifest
        return lie

    def _number(self, rng: random.Random, now: int, others: Sequence[int] = ()) -> int:
        """A number that hurts: near a power of two, near today's, another sample's."""
        power = 1 << rng.randrange(65)
        return rng.choice(
            [
                0,
                1,
                power - 1,
                power,
                power + 1,
                now + rng.choice((-9, -1, 1, 9, 4096)),
                now ^ (1 << rng.randrange(64)),
                rng.getrandbits(64),
                *(rng.choice(others) for _ in range(4) if others),
                rng.choice((self.tables.data_start, self.tables.data_end, len(self.content))),
            ]
        )

    def _set(
        self, rng: random.Random, place: int, dtype: np.dtype, others: Sequence[int] = ()
    ) -> tuple[list[tuple[int, bytes]], int]:
        """A number of `dtype` at `place` becomes another: (patches, the new number)."""
        now = int.from_bytes(self.content[place : place + dtype.itemsize], "little")
        new = self._number(rng, now, others) % (1 << 8 * dtype.itemsize)
        return [(place, new.to_bytes(dtype.itemsize, "little"))], new

    def header(self, rng: random.Random) -> Lie:
        name = rng.choice(beton.HEADER.names or ())
        dtype, place = (beton.HEADER.fields or {})[name][:2]
        patches, new = self._set(rng, place, dtype)
        return Lie(f"header {name}={new}", patches)

    def descriptor(self, rng: random.Random) -> Lie:
        number = rng.randrange(len(self.tables.fields))
        begin = beton.HEADER.itemsize + number * beton.FIELD.itemsize
        what = rng.choice(("type", "name", "arguments", "arguments"))
        if what == "type":
            return Lie(
                f"field {number} type", [(begin, bytes([rng.choice((*range(8), 254, 255))]))]
            )
        if what == "name":
            name = rng.choice((b"", b"\x1b[2J", b"label", b"image", b"\xff\xfe", rng.randbytes(16)))
            return Lie(f"field {number} name={name!r}", [(begin + 1, name.ljust(16, b"\0"))])
        place = begin + 17 + rng.choice((rng.randrange(24), rng.randrange(300), 256, 264))
        new = rng.choice((rng.randbytes(8), bytes(8), b"\xff" * 8, bytes([rng.randrange(256)])))
        return Lie(f"field {number} arguments at {place - begin - 17}: {new.hex()}", [(place, new)])

    def _columns(self, *, pointers: bool) -> list[tuple[str, int, np.dtype]]:
        """(name, offset in a row, dtype) of the metadata's pointers, or of its other numbers."""
        found = []
        for info in self.tables.fields:
            dtype, begin = (self.tables.metadata.dtype.fields or {})[info.name][:2]
            parts = {n: (dtype.fields or {})[n][:2] for n in dtype.names or ()} or {"": (dtype, 0)}
            for name, (kind, offset) in parts.items():
                is_pointer = name in ("ptr", "data_ptr") or (
                    not name and info.type_id in beton.ARRAY_TYPES
                )
                if is_pointer == pointers:
                    found.append((f"{info.name}.{name}", begin + offset, kind))
        return found

    def _change_row(self, rng: random.Random, *, pointers: bool) -> Lie:
        columns = self._columns(pointers=pointers)
        name, offset, dtype = rng.choice(columns)
        sample = rng.randrange(SAMPLES)
        size = self.tables.metadata.dtype.itemsize
        others = [
            int.from_bytes(self.content[place : place + dtype.itemsize], "little")
            for place in range(self.fields_end + offset, self.fields_end + SAMPLES * size, size)
        ]
        others += self.tables.starts.tolist() if pointers else []
        place = self.fields_end + sample * size + offset
        patches, new = self._set(rng, place, dtype, others)
        return Lie(f"row {sample} {name}={new}", patches)

    def row(self, rng: random.Random) -> Lie:
        if not self._columns(pointers=False):
            return self._change_row(rng, pointers=True)
        return self._change_row(rng, pointers=False)

    def pointer(self, rng: random.Random) -> Lie:
        if not self._columns(pointers=True):
            return self._change_row(rng, pointers=False)
        return self._change_row(rng, pointers=True)

    def _table_row(self, rng: random.Random) -> int:
        count = (len(self.content) - self.tables.data_end) // beton.ALLOCATION.itemsize
        return self.tables.data_end + rng.randrange(count) * beton.ALLOCATION.itemsize

    def region(self, rng: random.Random) -> Lie:
        begin = self._table_row(rng)
        if rng.random() < 0.2:
            other = self._table_row(rng)
            rows = [self.content[p : p + beton.ALLOCATION.itemsize] for p in (begin, other)]
            return Lie("two regions exchanged", [(begin, rows[1]), (other, rows[0])])
        name = rng.choice(beton.ALLOCATION.names or ())
        dtype, offset = (beton.ALLOCATION.fields or {})[name][:2]
        others = {"sample_id": range(SAMPLES), "ptr": self.tables.starts, "size": self.tables.sizes}
        numbers = [int(number) for number in others[name]]
        patches, new = self._set(rng, begin + offset, dtype, numbers)
        return Lie(f"region {name}={new}", patches)

    def sizes(self, rng: random.Random) -> Lie:
        """A region's size, and the size in its row if it has one: they agree, and lie."""
        begin = self._table_row(rng)
        sample, pointer, size = np.frombuffer(self.content, "<u8", 3, begin).tolist()
        new = self._number(rng, size, self.tables.sizes.tolist()) % 2**64
        patches = [(begin + 16, new.to_bytes(8, "little"))]
        row_size = self.tables.metadata.dtype.itemsize
        row = self.fields_end + sample * row_size
        for _, offset, dtype in self._columns(pointers=False):
            place = row + offset
            if dtype.itemsize == 8 and self.content[place : place + 8] == size.to_bytes(
                8, "little"
            ):
                patches.append((place, new.to_bytes(8, "little")))
        return Lie(f"sizes of the region at {pointer}={new}", patches)

    def _region(self, rng: random.Random) -> tuple[int, int]:
        place = rng.randrange(len(self.tables.starts))
        return int(self.tables.starts[place]), int(self.tables.sizes[place])

    def blob(self, rng: random.Random) -> Lie:
        start, size = self._region(rng)
        if rng.random() < 0.3:
            begin = rng.randrange(size)
            count = min(size - begin, 1 << rng.randrange(10))
            new = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count)))
            return Lie(f"{count} bytes of data", [(start + begin, new)])
        patches = []
        for _ in range(1 << rng.randrange(5)):
            place = start + rng.randrange(size)
            patches.append((place, bytes([self.content[place] ^ (1 << rng.randrange(8))])))
        return Lie(f"{len(patches)} bits of data", patches)

    def blob_head(self, rng: random.Random) -> Lie:
        start, size = self._region(rng)
        place = start + rng.randrange(min(size, 64))
        new = bytes([rng.choice((0, 0xFF, 0xC0, 0xC2, 0xDA, 0xD8, rng.randrange(256)))])
        return Lie(f"byte {place - start} of a region={new.hex()}", [(place, new)])

    def cut(self, rng: random.Random) -> Lie:
        ends = [0, 24, self.fields_end, self.tables.data_start, self.tables.data_end]
        ends += [rng.randrange(len(self.content)), len(self.content)]
        size = max(0, rng.choice(ends) + rng.choice((-24, -1, 0, 1, 24)))
        return Lie(f"size={size}", size=size)

    def noise(self, rng: random.Random) -> Lie:
        """Some bytes anywhere but in the pages."""
        table = len(self.content) - self.tables.data_end
        place = rng.randrange(self.tables.data_start + table)
        if place >= self.tables.data_start:
            place += self.tables.data_end - self.tables.data_start
        new = rng.randbytes(min(1 << rng.randrange(6), len(self.content) - place))
        return Lie(f"{len(new)} bytes at {place}", [(place, new)])

    def manifest_value(self, rng: random.Random) -> Lie:
        content = json.loads(self.manifest.read_bytes())
        place, key = content, rng.choice(list(content))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        values = [
            None, True, -1, 0, 1, 1.5, 2**62, -(2**70), 1e999, float("nan"), "", "x", "\x1b[2J",
            "../../x", [], [1], {}, {"a": 1}, "9" * 1000, [0.5] * 5, [[[[]]]],
        ]  # fmt: skip
        name = str(key)
        if rng.random() < 0.2 and isinstance(place, dict):
            del place[key]
            return Lie(f"manifest without {name}", manifest=json.dumps(content).encode())
        place[key] = rng.choice(values)
        words = f"manifest {name}={str(place[key])[:20]!r}"
        text = json.dumps(content).encode()
        if rng.random() < 0.1:
            words, text = "manifest cut", text[: rng.randrange(len(text))]
        return Lie(words, manifest=text)
