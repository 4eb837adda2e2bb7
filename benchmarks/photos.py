"""The photographs that benchmarks are run on."""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib.cbook
import numpy as np
from PIL import Image

from resnet_ffcv.encode import fit, resize
from resnet_ffcv.errors import UsageError

MADE = 200  # of one picture, where there are no photographs
SUFFIXES = {".jpg", ".jpeg", ".png"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photos", type=Path, metavar="PATH",
        help="folder or .tar of photographs; without, windows of the one that matplotlib ships",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="photographs at most")
    parser.add_argument(
        "--longest", type=int, default=500, metavar="N",
        help="pixels of the longer side, to which larger ones are shrunk (500)",
    )  # fmt: skip


def load_photos(arguments: argparse.Namespace) -> tuple[list[np.ndarray], str]:
    """(images, uint8 (height, width, 3); what they are, for a table's title).

    Raises:
        UsageError: there are none.
    """
    if arguments.photos is None:
        images, name = list(make_photos()), "windows of one photograph (matplotlib's)"
    else:
        contents = read_files(arguments.photos)
        images = []
        for content in contents:
            with Image.open(io.BytesIO(content)) as image:
                images.append(np.array(image.convert("RGB")))
            if len(images) == arguments.limit:
                break
        name = f"photographs of {arguments.photos.name}"
    if not images:
        raise UsageError(f"--photos={arguments.photos}: no {', '.join(sorted(SUFFIXES))} there")
    images = [shrink(image, arguments.longest) for image in images[: arguments.limit]]
    return images, f"{len(images)} {name}, longer side at most {arguments.longest}"


def read_files(path: Path) -> Iterator[bytes]:
    """The files of a folder or a tar, in order of their names.

    Raises:
        UsageError: there is no such path.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                yield file.read_bytes()
    elif path.is_file():
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                file_ = archive.extractfile(member)
                if file_ and Path(member.name).suffix.lower() in SUFFIXES:
                    yield file_.read()
    else:
        raise UsageError(f"--photos={path}: no such folder or tar")


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


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    size = fit(image.shape[1], image.shape[0], longest)
    if size == image.shape[1::-1]:
        return image
    return resize(image, *size)
