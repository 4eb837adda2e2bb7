"""Files in which bytes were changed, or that were cut."""

import random
from pathlib import Path

import numpy as np

from benchmarks.reliability.trying import IMAGES, Tried, make_images, write
from resnet_ffcv import beton
from resnet_ffcv.progress import Report
from resnet_ffcv.verify import verify


def try_flips(folder: Path, tries: int) -> list[Tried]:
    flips = Tried("a byte of a file is flipped: --verify finds it, and names the page's samples")
    path = write(folder / "flips", make_images())
    tables, size, rng = beton.read_image_tables(path), path.stat().st_size, random.Random(0)
    pages = (tables.starts.astype(int) - tables.data_start) // tables.page_size
    with path.open("r+b", buffering=0) as file:
        for _ in range(tries * 10):
            place = rng.randrange(size if rng.random() < 0.5 else tables.data_start)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ rng.randrange(1, 256)]))
            verdict = verify(path, Report())
            file.seek(place)
            file.write(bytes([byte]))
            page = (place - tables.data_start) // tables.page_size
            hurt = np.flatnonzero(pages == page).tolist()
            inside = tables.data_start <= place < tables.data_end
            right = not verdict.whole and (not inside or sorted(verdict.damaged) == hurt)
            flips.expect(right, f"byte {place}")
    cuts = Tried("a file is cut at a structural border, or beside one: --verify finds it")
    content = path.read_bytes()
    fields = 24 + 2 * 1041
    borders = [
        0,
        24,
        24 + 1041,
        fields,
        fields + 24 * IMAGES,
        *range(tables.data_start, size, 1 << 23),
    ]
    borders += [tables.data_end, tables.data_end + 24, size]
    for cut in sorted({max(0, b + step) for b in borders for step in (-24, -1, 0, 1)}):
        if cut < size:
            path.write_bytes(content[:cut])
            cuts.expect(not verify(path, Report()).whole, f"cut at {cut}")
    return [flips, cuts]
