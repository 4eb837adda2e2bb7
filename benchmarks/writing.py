"""How fast photographs are written as .beton, against FFCV's own writer.

    python -m benchmarks.writing --photos FOLDER

Both read the same files, shrink them to the same side and encode with the same number of worker
processes; seconds are those of the wall clock, start and end of the processes included, in turn.
FFCV's DatasetWriter is given a dataset that opens each file with Pillow, as its users do. Ours
reads back and checks each file, which FFCV's does not. About a minute on two cores.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import photos
from benchmarks.timing import Ratio, describe_run, interleave
from resnet_ffcv import commandline
from resnet_ffcv.commandline import show_table
from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import write_dataset

FORMS = ("dct", "yuv420", "jpg")


@dataclass(frozen=True)
class Files:
    """Image files as FFCV's writer takes them."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.paths[index]).convert("RGB"), index


def unpack(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """The photographs as files, each `--repeat` times so that a write takes seconds."""
    paths = []
    for place, content in enumerate(photos.read_files(arguments)):
        paths.append(folder / f"{place:05}.jpg")
        paths[-1].write_bytes(content)
    return paths * arguments.repeat


def write_by_ffcv(paths: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    # Here, because our workers import this module: what they need alone is part of their time.
    import torch
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    field = RGBImageField("jpg", max_resolution=arguments.longest, jpeg_quality=arguments.quality)
    threads = torch.get_num_threads()
    writer = DatasetWriter(
        str(folder / "ffcv.beton"), {"image": field, "label": IntField()},
        num_workers=arguments.workers,
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        writer.from_indexed_dataset(Files(paths))
    torch.set_num_threads(threads)


def write_by_us(paths: list[Path], folder: Path, form: str, arguments: argparse.Namespace) -> None:
    labels = np.zeros(len(paths), np.int64)
    # write_dataset writes two splits; the other has one image.
    train, val = Split(paths, labels), Split(paths[:1], labels[:1])
    image = ImageConfig(
        mode=form, max_resolution=arguments.longest, quality=arguments.quality, keep_jpeg=False
    )
    config = WriteConfig(
        output=OutputConfig(str(folder)), image=image, writer=WriterConfig(arguments.workers)
    )
    write_dataset(Source("photos", ["one"], {"train": train, "val": val}), config, Report())


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.writing", description=__doc__)
    photos.add_arguments(parser)
    numbers = {
        "workers": (2, "encoding processes"),
        "repeat": (8, "times each file is written"),
        "passes": (3, "writes of each"),
    }
    for name, (default, why) in numbers.items():
        parser.add_argument(
            f"--{name}", type=photos.positive, default=default, metavar="N",
            help=f"{why} ({default})",
        )  # fmt: skip
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = unpack(arguments, folder)
        runs: dict[str, Callable[[], None]] = {
            "FFCV jpg": lambda: write_by_ffcv(paths, folder, arguments)
        }
        for form in FORMS:
            runs[form] = lambda form=form: write_by_us(paths, folder, form, arguments)  # type: ignore[misc]
        times = interleave(runs, arguments.passes, time.perf_counter, "write")
    rows, ratios = [], {}
    for form, seconds in times.items():
        ratios[form] = Ratio.of(times["FFCV jpg"], seconds)
        rate = len(paths) / median(seconds)
        rows.append((form, f"{rate:,.0f}", f"{ratios[form].median:.2f}", ratios[form].spread))
    show_table(
        f"{len(paths):,} files, longer side at most {arguments.longest}, "
        f"{arguments.workers} workers",
        ("", "images/s", "x FFCV", "spread"), rows,
    )  # fmt: skip
    return {"images": len(paths), "seconds": times, "ratios": ratios, **describe_run()}


if __name__ == "__main__":
    commandline.run_command(main)
