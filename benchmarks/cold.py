"""Epochs of a file that is not in memory: our Loader and FFCV's, beside plain reading of the disk.

    python -m benchmarks.cold --photos FOLDER

The file holds each photograph --repeat times, as dct, and is dropped from the page cache before
each epoch; wall clock, with the opening of the file, competitors in turn. The last column is what
waiting for the disk costs: the time over that of the same Loader's epoch in memory. "plain reading"
reads the file from its beginning to its end and decodes nothing.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import photos, stock
from benchmarks.timing import Ratio, describe_run, interleave
from resnet_ffcv import Loader, commandline
from resnet_ffcv.commandline import show_table
from resnet_ffcv.decoders import RandomResizedCrop
from resnet_ffcv.stock import IntDecoder, OrderOption, Squeeze, ToTensor

from ffcv.loader import Loader as StockLoader  # isort: skip  # after ours, which keeps threads

SIDE, BATCH = 224, 64
PLAIN, IN_MEMORY = "plain reading", "{}, RANDOM, in memory"
BLOCK = 1 << 23


def drop_from_memory(path: Path) -> None:
    """Has the kernel forget the file; it must have reached the disk, and be mapped by nobody."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK)
        while file.readinto(block):
            pass


def run_epoch(kind: Any, path: Path, order: OrderOption, *, os_cache: bool) -> None:
    """An epoch from opening to the last batch; FFCV's and ours are asked alike."""
    loader = kind(
        str(path), BATCH, num_workers=1, order=order, os_cache=os_cache, drop_last=False,
        custom_fields=stock.custom_fields("dct"),
        pipelines={
            "image": [RandomResizedCrop((SIDE, SIDE)), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )  # fmt: skip
    for _batch in loader:
        pass


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.cold", description=__doc__)
    photos.add_arguments(parser)
    parser.add_argument("--passes", type=photos.positive, default=5, help="epochs of each (5)")
    parser.add_argument("--repeat", type=photos.positive, default=8, help="of each photograph (8)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (the temporary one)")
    arguments = parser.parse_args(argv)
    images, what = photos.load_photos(arguments)
    images = images * arguments.repeat
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        path = stock.write(Path(name) / "dct.beton", images, "dct", arguments.quality)

        def cold(run: Callable[[], None]) -> Callable[[], None]:
            def dropped() -> None:
                drop_from_memory(path)
                run()

            return dropped

        runs: dict[str, Callable[[], None]] = {PLAIN: cold(lambda: read_plainly(path))}
        for loader, kind in (("ours", Loader), ("FFCV", StockLoader)):
            for order in (OrderOption.RANDOM, OrderOption.QUASI_RANDOM):
                for os_cache in (True, False):
                    words = f"{loader}, {order.name}" + ("" if os_cache else ", os_cache=False")
                    runs[words] = cold(
                        lambda kind=kind, order=order, os_cache=os_cache: run_epoch(
                            kind, path, order, os_cache=os_cache
                        )
                    )
            runs[IN_MEMORY.format(loader)] = lambda kind=kind: run_epoch(
                kind, path, OrderOption.RANDOM, os_cache=True
            )
        times = interleave(runs, arguments.passes, time.perf_counter, what="cold")
        size = path.stat().st_size
    rows, costs = [], {}
    for name, seconds in times.items():
        if name != PLAIN:
            costs[name] = Ratio.of(seconds, times[IN_MEMORY.format(name.partition(",")[0])])
        rows.append((
            name, f"{median(seconds):.2f}", f"{len(images) / median(seconds):,.0f}",
            f"{size / median(seconds) / 1e6:,.0f}", str(costs.get(name, "-")),
        ))  # fmt: skip
    show_table(
        f"{len(images)} images, {size / 1e6:,.0f} MB, one worker: {what}",
        ("", "seconds", "images/s", "MB/s", "x in memory"), rows,
    )  # fmt: skip
    return {"images": what, "bytes": size, "seconds": times, "costs": costs, **describe_run()}


if __name__ == "__main__":
    commandline.run_command(main)
