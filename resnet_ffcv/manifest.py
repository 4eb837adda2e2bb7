"""The manifest that stands next to a .beton: facts about its images, and checksums.

The format has no room for them. A manifest holds no time, no path and no number of workers, so that
the same source and options give the same bytes. docs/manifest.md lists its keys.
"""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from resnet_ffcv.beton import (
    ALLOCATION,
    FORMS,
    MAX_PAGE_SIZE,
    MAX_SIDE,
    MIN_PAGE_SIZE,
    Tables,
    read_arguments,
)
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole
from resnet_ffcv.opening import read_file
from resnet_ffcv.schema import Crc32, Sha256, describe

FORMAT_VERSION = 2
MANIFEST_LIMIT = 1 << 26  # bytes; a terabyte's checksums take 2 MB
MEAN_SIDE = 256  # pixels a side up to which the mean image of a set is kept
MEAN_TOLERANCE = 1e-4  # between the mean image's mean and the manifest's
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\0..{'descr': '<f4', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+), 3\), } *\n",
    re.DOTALL,
)
NPY_HEADER_LIMIT = 1 << 12  # bytes; numpy's headers have 128

Count = Annotated[int, Meta(ge=1, lt=2**62)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
Spread = Annotated[list[Side], Meta(min_length=3, max_length=3)]
Channels = Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=3, max_length=3)]
Name = Annotated[str, Meta(min_length=1, max_length=10_000)]
MeanName = Annotated[str, Meta(pattern=r"^train\.beton\.pixel_mean\.npy\Z")]  # not just any path


@dataclass(frozen=True)
class Pages:
    """Checksums of a .beton, CRC-32 in hexadecimal.

    `size` of a page in bytes, `first` page's offset, `crc32` of each page; `head_crc32` of all
    before the pages, `table_crc32` of all after them.
    """

    size: Annotated[int, Meta(ge=MIN_PAGE_SIZE, le=MAX_PAGE_SIZE)]
    first: Count
    crc32: Annotated[list[Crc32], Meta(min_length=1)]
    head_crc32: Crc32
    table_crc32: Crc32

    def __post_init__(self) -> None:
        _require(self.size.bit_count() == 1, "size must be a power of two")
        _require(self.first % self.size == 0, "first must be a multiple of size")


@dataclass(frozen=True)
class Manifest:
    """Facts about a .beton.

    `width` and `height` are [min, median, max]; `mean` and `std` those of each channel of the
    stored training pixels, from 0 to 1, null for other splits; `pixel_mean` the name of a .npy
    file, float32 (height, width, 3), 0 to 1, where all training images have one size of at most 256
    pixels a side; `skipped` the names of images that were left out, class and file; `images_sha256`
    that of the source's labels and names; `sha256` that of the whole .beton.

    Raises:
        ValueError: values that contradict each other.
    """

    format_version: int
    source: Name
    classes: Annotated[list[Name], Meta(min_length=1)]
    samples: Count
    width: Spread
    height: Spread
    mean: Channels | None
    std: Channels | None
    pixel_mean: MeanName | None
    options: dict[str, str | int | float | bool | None]
    skipped: list[Name]
    images_sha256: Sha256
    sha256: Sha256
    pages: Pages

    def __post_init__(self) -> None:
        _require(len(set(self.classes)) == len(self.classes), "classes has a name twice")
        for side in ("width", "height"):
            least, median, greatest = getattr(self, side)
            _require(least <= median <= greatest, f"{side} must be in order: min, median, max")
        _require((self.mean is None) == (self.std is None), "mean and std must come together")
        _require(self.pixel_mean is None or self.mean is not None, "pixel_mean needs a mean")


def _require(is_met: bool, words: str) -> None:
    """Raises ValueError, which msgspec turns into its own error with the place in the file."""
    if not is_met:
        raise ValueError(words)


def spread(sides: np.ndarray) -> list[int]:
    """[least, median, greatest] of uint16 widths or heights; the median is rounded down."""
    ends = np.cumsum(np.bincount(sides))  # of each side's places if they were sorted
    middle = len(sides) - 1
    least, low, high, greatest = np.searchsorted(
        ends, (0, middle // 2, (middle + 1) // 2, middle), side="right"
    ).tolist()
    return [least, (low + high) // 2, greatest]


def manifest_path(beton: Path) -> Path:
    """Where the manifest of a .beton stands."""
    return Path(f"{beton}.json")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes a manifest, whole or not at all."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_manifest(beton: Path) -> Manifest:
    """The manifest of a .beton; checks that the file is as long as it says, not its checksums.

    Raises:
        FailureError: there is none, it has more than MANIFEST_LIMIT bytes, a key is missing or has
            a value that makes no sense, or it is another file's.
    """
    path = manifest_path(beton)
    manifest = _decode(path, _read(beton, path))
    pages_end = manifest.pages.first + len(manifest.pages.crc32) * manifest.pages.size
    expected = pages_end + manifest.samples * ALLOCATION.itemsize
    found = os.stat(beton).st_size if os.path.isfile(beton) else 0
    if found != expected:
        raise FailureError(
            f"{beton} has {found:,} bytes, its manifest says {expected:,}: they are not of one "
            "write; write them again"
        )
    return manifest


def _read(beton: Path, path: Path) -> bytes:
    try:
        return read_file(path, MANIFEST_LIMIT)
    except FileNotFoundError as error:
        raise FailureError(
            f"{beton} has no manifest ({path.name}); write_datasets.py writes both"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise FailureError(f"manifest {path} cannot be read: {reason}; write it again") from error


@dataclass(frozen=True)
class _Version:
    format_version: int


def _decode(path: Path, content: bytes) -> Manifest:
    """The manifest that `content` is; keys that are not known are ignored.

    Raises:
        FailureError: it is no JSON, or not what Manifest says; names the key.
    """
    try:
        version = msgspec.json.decode(content, type=_Version).format_version
        if version == FORMAT_VERSION:
            return msgspec.json.decode(content, type=Manifest)
    except RecursionError as error:
        raise FailureError(f"manifest {path} is nested too deeply; write it again") from error
    except ValueError as error:  # msgspec's, with the place
        raise FailureError(
            f"manifest {path} cannot be read: {describe(error)}; write it again"
        ) from error
    raise FailureError(f"manifest {path} has version {version}, not {FORMAT_VERSION}")


def read_pixel_mean(beton: Path, manifest: Manifest) -> np.ndarray:
    """The mean image of a training file's manifest: float32 (height, width, 3), from 0 to 1.

    Raises:
        FailureError: it cannot be read, or is not the mean of the manifest's images.
    """
    path = beton.with_name(str(manifest.pixel_mean))
    if manifest.height[0] != manifest.height[2] or manifest.width[0] != manifest.width[2]:
        raise FailureError(f"{path} cannot be the mean of {beton}, whose images differ in size")
    if max(manifest.height[0], manifest.width[0]) > MEAN_SIDE:
        raise FailureError(f"{path} cannot be the mean of {beton}, of sides over {MEAN_SIDE}")
    shape = (manifest.height[0], manifest.width[0], 3)
    size = 4 * math.prod(shape)
    try:
        content = read_file(path, size + NPY_HEADER_LIMIT)
    except OSError as error:
        raise FailureError(
            f"{path}, the mean of {beton}, cannot be read ({error.strerror}); write them again"
        ) from error
    header = NPY_HEADER.match(content)
    if (
        header is None
        or (int(header[1]), int(header[2])) != shape[:2]
        or len(content) - header.end() != size
    ):
        raise FailureError(
            f"{path}, the mean of {beton}, cannot be read: it must be a .npy file of float32 "
            f"{shape}; write them again"
        )
    mean = np.frombuffer(content, "<f4", offset=header.end()).reshape(shape).copy()
    distance = np.abs(mean.mean((0, 1), dtype=float) - np.array(manifest.mean)).max()
    if not ((mean >= 0) & (mean <= 1)).all() or distance > MEAN_TOLERANCE:
        raise FailureError(f"{path} is not the mean of {beton}; write them again")
    return mean


def contradictions(tables: Tables, manifest: Manifest) -> list[str]:
    """What a file's tables and its manifest say differently, as ends of sentences about the file.

    Args:
        tables: of read_image_tables.
        manifest: that stands next to the file.
    """
    images, labels = (tables.metadata[name] for name in ("image", "label"))
    found = []
    if len(labels) != manifest.samples:
        found.append(f"it holds {len(labels):,} samples, its manifest says {manifest.samples:,}")
    least, greatest = labels.min(), labels.max()
    if least < 0 or greatest >= len(manifest.classes):
        found.append(
            f"its labels go from {least} to {greatest}, its manifest has "
            f"{len(manifest.classes)} classes"
        )
    for side, said in (("width", manifest.width), ("height", manifest.height)):
        has = spread(images[side])
        if has != said:
            found.append(f"its {side}s (least, median, most) are {has}, its manifest says {said}")
    pages = manifest.pages
    layout = tables.page_size, tables.data_start
    if layout != (pages.size, pages.first):
        found.append(
            f"its pages have {layout[0]:,} bytes from {layout[1]:,} on, its manifest says "
            f"{pages.size:,} from {pages.first:,}"
        )
    return found + _other_form(tables, manifest.options)


def _other_form(tables: Tables, options: dict[str, Any]) -> list[str]:
    mode, quality = options.get("mode"), options.get("quality")
    if (mode if mode in FORMS else "rgb") != tables.form:
        return [f"its images are of the form {tables.form}, its manifest says mode={mode!r:.40}"]
    if mode == "dct":
        stored = int(read_arguments(tables.fields[0].arguments)["quality"])
        if quality not in (None, stored):
            return [
                f"its images are of quality {stored}, its manifest says quality={quality!r:.40}"
            ]
    return []
