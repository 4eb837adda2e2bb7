"""What stands beside a .beton: facts about its images, and checksums.

The format has no room for them. A manifest holds no time, no path and no number of workers, so that
the same source and options give the same bytes.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv.beton import ALLOCATION
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Pages:
    """Checksums of a .beton, CRC-32 in hexadecimal.

    `size` of a page in bytes, `first` page's offset, `crc32` of each page; `head_crc32` of all
    before the pages, `table_crc32` of all behind them.
    """

    size: int
    first: int
    crc32: list[str]
    head_crc32: str
    table_crc32: str


@dataclass(frozen=True)
class Manifest:
    """Facts about a .beton.

    `width` and `height` are [min, median, max]; `mean` and `std` those of each channel of the
    stored training pixels, from 0 to 1, null for other splits; `pixel_mean` the name of a .npy
    file, float32 (height, width, 3), 0 to 1, where all training images have one size of at most 256
    pixels a side; `skipped` the names of images that were left out, class and file; `images_sha256`
    that of the source's labels and names; `sha256` that of the whole .beton.
    """

    format_version: int
    source: str
    classes: list[str]
    samples: int
    width: list[int]
    height: list[int]
    mean: list[float] | None
    std: list[float] | None
    pixel_mean: str | None
    options: dict[str, Any]
    skipped: list[str]
    images_sha256: str
    sha256: str
    pages: Pages


def spread(sides: np.ndarray) -> list[int]:
    """[least, median, greatest] of widths or heights."""
    return [int(f(sides)) for f in (np.min, np.median, np.max)]


def manifest_path(beton: Path) -> Path:
    """Where the manifest of a .beton stands."""
    return beton.with_name(beton.name + ".json")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes a manifest, whole or not at all."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_manifest(beton: Path) -> Manifest:
    """The manifest of a .beton; checks that the file is as long as it says, not its checksums.

    Raises:
        FailureError: there is none, it cannot be read, or it is another file's.
    """
    path = manifest_path(beton)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            pages = Pages(**content.pop("pages"))
            content = {field.name: content[field.name] for field in fields(Manifest)[:-1]}
            manifest = Manifest(**content, pages=pages)
    except FileNotFoundError as error:
        raise FailureError(
            f"{beton} has no manifest ({path.name}); write_datasets.py writes both"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailureError(f"manifest {path} cannot be read ({error}); write it again") from error
    if version != FORMAT_VERSION:
        raise FailureError(f"manifest {path} has version {version}, not {FORMAT_VERSION}")
    try:
        pages_end = pages.first + len(pages.crc32) * pages.size
        expected = pages_end + manifest.samples * ALLOCATION.itemsize
    except TypeError as error:
        raise FailureError(f"manifest {path} makes no sense ({error}); write it again") from error
    found = beton.stat().st_size if beton.is_file() else 0
    if found != expected:
        raise FailureError(
            f"{beton} has {found:,} bytes, its manifest says {expected:,}: they are not of one "
            "write; write them again"
        )
    return manifest
