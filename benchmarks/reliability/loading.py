"""Epochs that are left early, the opening of a large file, damaged samples."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.trying import ROOT, Tried, make_images, run_ffcv, write
from resnet_ffcv import beton
from resnet_ffcv.errors import FailureError


def try_breaks(folder: Path, tries: int) -> list[Tried]:
    """Epochs that are left early."""
    from resnet_ffcv import Loader
    from resnet_ffcv.decoders import RandomResizedCrop
    from resnet_ffcv.stock import OrderOption, ToTensor

    tried = Tried("200 epochs, each left early: threads flat, memory within 2 %")
    path = write(folder / "breaks", make_images())
    loader = Loader(
        path, 16, num_workers=2, order=OrderOption.RANDOM,
        pipelines={"image": [RandomResizedCrop((128, 128)), ToTensor()], "label": None},
    )  # fmt: skip
    memory, threads = [], []
    for _ in range(tries * 4 + 20):
        for number, _batch in enumerate(loader):
            if number == 5:
                break
        memory.append(resident())
        threads.append(len(sys._current_frames()))
    del _batch
    growth = memory[-1] / memory[20] - 1
    tried.expect(len(set(threads)) == 1, f"threads {min(threads)} to {max(threads)}")
    tried.expect(growth < 0.02, f"memory grew by {growth:.1%}")
    tried.measured = f"{len(memory)} epochs, {max(threads)} threads, memory {growth:+.2%}"
    tried.ffcv = run_ffcv(FFCV_BREAKS, str(path), limit=300)
    return [tried]


FFCV_BREAKS = """
import os, sys, threading
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
loader = Loader(sys.argv[1], 16, num_workers=2, order=OrderOption.RANDOM,
    pipelines={"image": [RandomResizedCropRGBImageDecoder((128, 128)), ToTensor()], "label": None})
memory = []
for epoch in range(40):
    for number, batch in enumerate(loader):
        if number == 5: break
    memory.append(resident())
growth = memory[-1] / memory[20] - 1
print(f"after 40 epochs {threading.active_count()} threads, memory {growth:+.0%}")
sys.stdout.flush()
os._exit(0)
"""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


OURS_OPEN = """
import os, sys, time
from resnet_ffcv import Loader
from resnet_ffcv.stock import IntDecoder
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
pipelines = {"image": None, "label": [IntDecoder()]}
before = resident()
begin = time.perf_counter()
loader = Loader(sys.argv[1], 256, num_workers=1, pipelines=pipelines)
print(time.perf_counter() - begin, resident() - before - loader.reader.metadata.nbytes)
"""
FFCV_OPEN = """
import os, sys, time
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
begin = time.perf_counter()
loader = Loader(sys.argv[1], 256, num_workers=1, pipelines={"image": None, "label": [IntDecoder()]})
seconds = time.perf_counter() - begin
print(f"{seconds:.1f} s, {(resident() - before - loader.reader.metadata.nbytes) / 1e6:.0f} MB")
"""


def write_large(path: Path, samples: int) -> None:
    """A sparse file of `samples` raw images in a field of FFCV's, 128 GB of holes."""
    height, width, page_size = 182, 183, beton.DEFAULT_PAGE_SIZE
    size = 3 * height * width
    first, in_page = beton.first_page(samples, page_size), page_size // size
    numbers = np.arange(samples)
    metadata = np.zeros(samples, beton.metadata_type(beton.RGB_ROW))
    metadata["image"]["mode"], metadata["label"] = beton.RAW, numbers
    metadata["image"]["width"], metadata["image"]["height"] = width, height
    starts = first + numbers // in_page * page_size + numbers % in_page * size
    metadata["image"]["data_ptr"] = starts
    table = np.zeros(samples, beton.ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = numbers, starts, size
    header = np.zeros((), beton.HEADER)
    header["version"], header["num_fields"], header["page_size"] = beton.VERSION, 2, page_size
    end = first + -(-samples // in_page) * page_size
    header["num_samples"], header["alloc_table_ptr"] = samples, end
    with path.open("wb") as file:
        file.write(header.tobytes() + beton.describe_fields(None).tobytes() + metadata.tobytes())
        file.seek(end)
        file.write(table.tobytes())


def try_opening(folder: Path, _tries: int) -> list[Tried]:
    tried = Tried("1,281,167 samples open in 0.1 s and 50 MB beyond their metadata")
    path = folder / "large.beton"
    write_large(path, 1_281_167)
    seconds, memory = [], []
    for _ in range(5):
        ended = subprocess.run(
            [sys.executable, "-c", OURS_OPEN, str(path)], capture_output=True, text=True,
            check=True, cwd=ROOT,
        )  # fmt: skip
        took, bytes_ = map(float, ended.stdout.split())
        seconds.append(took)
        memory.append(bytes_ / 1e6)
    tried.expect(sorted(seconds)[2] <= 0.1, f"{seconds} s")
    tried.expect(max(memory) <= 50, f"{memory} MB")
    tried.measured = f"{sorted(seconds)[2]:.3f} s (median of 5), {max(memory):.0f} MB at most"
    tried.ffcv = run_ffcv(FFCV_OPEN, str(path), limit=120)
    return [tried]


def try_damaged(folder: Path, _tries: int) -> list[Tried]:
    from resnet_ffcv import Loader
    from resnet_ffcv.decoders import CenterCrop
    from resnet_ffcv.stock import IntDecoder, OrderOption

    tried = Tried("1 in 1,000 samples damaged: raise names one, skip counts them, the others come")
    path = write(folder / "damaged", make_images(5_000, 32), "jpg")
    tables = beton.read_image_tables(path)
    bad = sorted(random.Random(0).sample(range(5_000), 5))
    with path.open("r+b") as file:
        for sample in bad:
            start, size = tables.region(sample)
            file.seek(start + size // 2)
            file.write(bytes(size // 2))

    def load(order: Any, workers: int, on_error: str) -> Any:
        return Loader(
            path, 64, workers, order=order, drop_last=False, on_error=on_error, seed=1,
            pipelines={"image": [CenterCrop((32, 32), 1.0)], "label": [IntDecoder()]},
        )  # fmt: skip

    for order in (OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM):
        for workers in (1, 2):
            skipping = load(order, workers, "skip")
            labels = sorted(int(n) for _, batch in skipping for n in batch[:, 0])
            good = labels == sorted(set(range(5_000)) - set(bad))
            tried.expect(good and sorted(skipping.damaged) == bad, f"{order}: {skipping.damaged}")
            try:
                list(load(order, workers, "raise"))
                tried.expect(False, f"{order}: no error")
            except FailureError as error:
                first = bad[:1] if order == OrderOption.SEQUENTIAL else bad
                named = any(f"sample {sample} is damaged" in str(error) for sample in first)
                tried.expect(named and str(path) in str(error), str(error))
    tried.ffcv = run_ffcv(FFCV_DAMAGED, str(path), str(bad[0]))
    return [tried]


FFCV_DAMAGED = """
import os, sys
import numpy as np
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.loader import Loader
loader = Loader(sys.argv[1], 64, num_workers=1, drop_last=False,
                pipelines={"image": [SimpleRGBImageDecoder()], "label": None})
count = sum(len(images) for (images,) in loader)
print(f"{count} images, no error")
sys.stdout.flush()
os._exit(0)
"""
