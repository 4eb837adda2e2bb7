"""Files in which bytes were changed, or that were cut."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.reliability.trying import IMAGES, Tried, make_images, write
from resnet_ffcv import beton
from resnet_ffcv.data import Normalize
from resnet_ffcv.errors import FailureError
from resnet_ffcv.export import write_safetensors
from resnet_ffcv.models import build_model, read_weights
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


def try_weights(folder: Path, tries: int) -> list[Tried]:
    model, gray = build_model("resnet20", 10), torch.full((3, 1, 1), 0.5)
    state, exported = model.state_dict(), folder / "exported.safetensors"
    torch.save({"model": state, "spec": model.spec}, folder / "checkpoint")
    write_safetensors(exported, model, Normalize(gray, gray), {})
    return [
        _try_flipped(folder / "checkpoint", state, lambda path: torch.load(path)["model"], tries),
        _try_flipped(exported, state, safetensors.torch.load_file, tries),
    ]


def _try_flipped(
    path: Path, state: Mapping[str, Tensor], load: Callable[[Path], Any], tries: int
) -> Tried:
    """`load` is what others read such a file by."""
    tried = Tried(
        f"a bit of weights ({path.name}) is flipped: refused, or the same weights are read"
    )
    content, rng, unnoticed = path.read_bytes(), random.Random(0), 0
    for _ in range(tries):
        place = rng.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        misread = _misreads(lambda: read_weights(path)["model"], state, FailureError)
        tried.expect(not misread, f"byte {place}")
        unnoticed += _misreads(lambda: load(path), state, Exception)  # of many kinds
    tried.measured = f"the library alone takes {unnoticed} for whole"
    return tried


def _misreads(
    read: Callable[[], Mapping[str, Tensor]], state: Mapping[str, Tensor], error: type[Exception]
) -> bool:
    """Whether other weights are read, without an error."""
    try:
        found = read()
    except error:
        return False
    same = found.keys() == state.keys()
    return not (same and all(torch.equal(found[name], value) for name, value in state.items()))
