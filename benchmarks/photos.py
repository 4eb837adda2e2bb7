"""The photographs that benchmarks are run on."""

import argparse
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from resnet_ffcv.encode import shrink
from resnet_ffcv.errors import UsageError

MADE = 200  # of one picture, where there are no photographs
SUFFIXES = {".jpg", ".jpeg", ".png"}


def positive(text: str) -> int:
    """An argument of one or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def quality(text: str) -> int:
    """An argument from 1 to 100."""
    number = positive(text)
    if number > 100:
        raise ValueError
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photos", type=Path, metavar="PATH",
        help="folder or .tar of photographs; without, windows of the one that matplotlib ships",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="photographs at most")
    parser.add_argument(
        "--quality", type=quality, default=90, metavar="Q", help="of JPEG and dct (90)"
    )
    parser.add_argument(
        "--longest", type=positive, default=500, metavar="N",
        help="pixels of the longer side, to which larger ones are shrunk (500)",
    )  # fmt: skip


def open_classes(folder: Path, transform: Callable[[Any], Any] | None = None) -> ImageFolder:
    """A folder of folders of images, by torchvision: (image, class) each.

    Raises:
        UsageError: it is none.
    """
    try:
        return ImageFolder(folder, transform)
    except OSError as error:
        raise UsageError(f"{folder} has no folders of images, one a class: {error}") from error


def load_photos(arguments: argparse.Namespace) -> tuple[list[np.ndarray], str]:
    """(images, uint8 (height, width, 3); what they are, for a table's title).

    Raises:
        UsageError: there are none.
    """
    images = []
    for content in read_files(arguments):
        with Image.open(io.BytesIO(content)) as image:
            images.append(shrink(np.array(image.convert("RGB")), arguments.longest))
    name = "windows of one photograph (matplotlib's)"
    if arguments.photos is not None:
        name = f"photographs of {arguments.photos.name}"
    return images, f"{len(images)} {name}, longer side at most {arguments.longest}"


def read_files(arguments: argparse.Namespace) -> list[bytes]:
    """The photographs' files, in order of their names; or JPEGs of what stands for them.

    Raises:
        UsageError: there are none.
    """
    if arguments.photos is None:
        files = _encode_photos()
    elif arguments.photos.is_dir():
        files = _read_folder(arguments.photos)
    elif arguments.photos.is_file() and tarfile.is_tarfile(arguments.photos):
        files = _read_tar(arguments.photos)
    else:
        raise UsageError(f"--photos={arguments.photos}: no such folder or tar")
    found = list(itertools.islice(files, arguments.limit))
    if not found:
        raise UsageError(f"--photos={arguments.photos}: no {', '.join(sorted(SUFFIXES))} there")
    return found


def _read_folder(path: Path) -> Iterator[bytes]:
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            yield file.read_bytes()


def _read_tar(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            if file and Path(member.name).suffix.lower() in SUFFIXES:
                yield file.read()


def _encode_photos() -> Iterator[bytes]:
    for image in make_photos():
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        yield out.getvalue()


def make_photos() -> Iterator[np.ndarray]:
    """Windows of a portrait in the public domain, brought to sizes that photographs have."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as opened:
        picture = opened.convert("RGB")
    rng = np.random.default_rng(0)
    for _ in range(MADE):
        share = rng.uniform(0.6, 1)
        wide, tall = (int(share * side * rng.uniform(0.8, 1)) for side in picture.size)
        left, top = rng.integers(picture.width - wide + 1), rng.integers(picture.height - tall + 1)
        window = (left, top, left + wide, top + tall)
        longest = 500 / max(wide, tall)
        size = round(wide * longest), round(tall * longest)
        yield np.array(picture.resize(size, Image.Resampling.BICUBIC, box=window))
