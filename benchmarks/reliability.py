"""What is promised of files, Loader and training, tried until it would break.

    python -m benchmarks.reliability

Each part breaks something on purpose, many times, and counts where a promise was not kept; beside
it stands what stock FFCV does in the same test, where it can be run at all (under a limit of time).
All parts take about fifteen minutes on two cores; no failure is expected, on any hardware.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.photos import positive
from benchmarks.timing import describe_run
from resnet_ffcv import beton, commandline
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.verify import verify
from resnet_ffcv.writer import write_dataset

ROOT = Path(__file__).parent.parent
SIDE = 160  # pixels of the images that are written
IMAGES = 400  # 31 MB raw: four pages


@dataclass
class Tried:
    """A promise, how often it was tried, each time that it was not kept, and what FFCV does."""

    promise: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)
    measured: str = ""
    ffcv: str = "-"

    def expect(self, kept: bool, words: str) -> None:
        self.tries += 1
        if not kept:
            self.failures.append(words)


def make_images(count: int = IMAGES, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def write(folder: Path, images: Any, mode: str = "raw", **writer: Any) -> Path:
    """Writes images, in this process; the label is the index. Returns the training file."""
    split = Split(images, np.arange(len(images)))
    source = Source("made", [str(i) for i in range(len(images))], {"train": split, "val": split})
    config = WriteConfig(
        output=OutputConfig(str(folder)), image=ImageConfig(mode=mode),
        writer=WriterConfig(**{"workers": 1, **writer}),
    )  # fmt: skip
    return write_dataset(source, config, Report())["train"].path


def make_folder(folder: Path, count: int = IMAGES) -> Path:
    """Images as files, for the command."""
    for number, image in enumerate(make_images(count)):
        path = folder / ("val" if number % 10 == 0 else "train") / "abc"[number % 3]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number:04}.png", compress_level=0)
    return folder


def command(source: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "write_datasets.py"), "--source.name=imagefolder",
        f"--source.path={source}", f"--output.folder={output}", "--image.mode=raw", *more,
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# Writing ---------------------------------------------------------------------------------


def try_kills(folder: Path, tries: int) -> list[Tried]:
    """kill -9 of the writer, with and without resume."""
    whole = Tried("kill -9 of a write: no broken file opens, and the next run gives the same bytes")
    resumed = Tried("kill -9 with --writer.resume=true: the next runs go on, to the same bytes")
    source = make_folder(folder / "source")
    run = command(source, folder / "expected")
    duration = seconds_of(lambda: subprocess.run(run, check=True, capture_output=True))
    expected = digests(folder / "expected")
    rng = random.Random(0)
    for number in range(tries):
        resume = number % 2 == 1
        tried, out = (resumed if resume else whole), folder / f"out{number}"
        arguments = command(source, out, f"--writer.resume={str(resume).lower()}")
        for _ in range(3 if resume else 1):
            kill_after(arguments, rng.uniform(0.2, duration))
            for path in out.glob("*.beton"):
                verdict = verify(path, Report())
                tried.expect(verdict.whole, f"{path.name} opens: {verdict.problems}")
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        found = digests(out) if out.exists() else {}
        tried.expect(ended.returncode == 0 and found == expected, f"{number}: {ended.stderr}")
    whole.ffcv = ffcv_killed(folder)
    return [whole, resumed]


def kill_after(
    arguments: list[str], seconds: float, number: int = signal.SIGKILL
) -> tuple[float, int]:
    """Runs a command, ends it after so many seconds by a signal: (seconds it took, exit code)."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    os.killpg(process.pid, number)
    begin = time.perf_counter()
    code = process.wait(30)
    return time.perf_counter() - begin, code


FFCV_WRITE = """
import sys, time
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
class Images:
    def __len__(self): return 400
    def __getitem__(self, i):
        if len(sys.argv) > 2 and i == 200: raise ValueError("broken")
        time.sleep(0.01)
        return np.full((160, 160, 3), i % 256, np.uint8), i + 1
fields = {"image": RGBImageField("raw"), "label": IntField()}
DatasetWriter(sys.argv[1], fields, num_workers=1).from_indexed_dataset(Images())
"""
FFCV_READ = """
import sys
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader
labels = [int(n) for (batch,) in Loader(sys.argv[1], 50, num_workers=1,
          pipelines={"image": None, "label": [IntDecoder()]}) for n in batch[:, 0]]
print(f"it opens, and gives {len(labels)} labels, of which {labels.count(0)} are 0")
"""


def run_ffcv(script: str, *arguments: str, limit: float = 60) -> str:
    """The last line that a script with FFCV prints, or how it ended."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True,
            timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"hangs ({limit:.0f} s)"
    lines = ended.stdout.strip().splitlines() or ended.stderr.strip().splitlines()
    return lines[-1][:100] if lines else f"exit code {ended.returncode}"


def ffcv_killed(folder: Path) -> str:
    path = str(folder / "ffcv.beton")
    kill_after([sys.executable, "-c", FFCV_WRITE, path], 6)
    return run_ffcv(FFCV_READ, path) if Path(path).exists() else "it had not begun"


def try_interrupts(folder: Path, tries: int) -> list[Tried]:
    tried = Tried("Ctrl-C: the end within 2 s, nothing left in the folder or in /dev/shm")
    source, before = make_folder(folder / "source"), shared_memory()
    run = command(source, folder / "out")
    duration = seconds_of(lambda: subprocess.run(run, check=True, capture_output=True))
    slowest = 0.0
    for number in range(tries):
        out = folder / f"out{number}"
        after = 0.5 + 0.9 * (duration - 0.5) * number / tries
        took, code = kill_after(command(source, out), after, signal.SIGINT)
        slowest = max(slowest, took)
        left = [path.name for path in out.iterdir()] if out.exists() else []
        for split in ("train", "val"):  # whole, with all that belongs to it, or not there
            names = [name for name in left if name.startswith(f"{split}.beton")]
            if (
                len(names) == 2 + (split == "train")
                and verify(out / f"{split}.beton", Report()).whole
            ):
                left = [name for name in left if name not in names]
        time.sleep(0.2)  # its workers end with it
        left += shared_memory() - before
        kept = took < 2 and not left and code in (130, 0)
        tried.expect(kept, f"{number}: {took:.1f} s, exit code {code}, left {left}")
    tried.measured = f"{slowest:.2f} s at most"
    return [tried]


CALLS = ("pwrite", "fsync", "replace", "preadv", "open")


def try_failing_calls(folder: Path, tries: int) -> list[Tried]:
    """The n-th call of each kind fails, for every n, until a write has fewer."""
    tried = Tried("any os.pwrite, fsync, replace, open or preadv fails: an error, nothing left")
    images = make_images(40, 32)
    for name in CALLS:
        for error in ((5, "Input/output error"), (28, "No space left on device")):
            for number in range(tries):
                out = folder / f"{name}{error[0]}-{number}"
                ended, failed = write_with_failure(out, images, name, number, OSError(*error))
                if not failed:  # it has no more calls
                    break
                left = [path.name for path in out.iterdir()] if out.exists() else []
                left = [n for n in left if not (n.startswith("train") and len(left) == 3)]
                words = f"call {number} of {name}, {error[1]}: {ended}, left {left}"
                tried.expect("Error" in ended and error[1] in ended and not left, words)
    return [tried]


def write_with_failure(
    out: Path, images: np.ndarray, name: str, number: int, error: OSError
) -> tuple[str, bool]:
    """(how a write ended, whether the call failed) of a write in which one call fails."""
    original, calls = getattr(os, name), 0
    main = threading.get_ident()

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        path = str(arguments[0])
        if name == "open" and str(out) not in path:  # the workers' start is not what is tried
            return original(*arguments, **options)
        if threading.get_ident() == main or name == "preadv":
            calls += 1
            if calls == number + 1:
                raise error
        return original(*arguments, **options)

    setattr(os, name, fail)
    try:
        write(out, images)
    except (FailureError, OSError) as caught:
        return f"{type(caught).__name__}: {caught}", calls > number
    finally:
        setattr(os, name, original)
    return "no error", calls > number


def try_failures(folder: Path, tries: int) -> list[Tried]:
    tried = Tried("worker killed, image vanished or corrupt, full disk: in 5 s an error names it")
    slowest = 0.0
    source = make_folder(folder / "source", 1_000)
    images = sorted(source.rglob("*.png"))
    for number in range(max(1, tries // 4)):
        for kind in ("killed worker", "vanished image", "corrupt image", "full disk"):
            victim = images[(37 * number + 500) % len(images)]
            content = victim.read_bytes()
            out, words = folder / f"out{number}", str(victim)
            arguments = command(source, out, "--writer.workers=2")
            if kind == "vanished image":
                victim.unlink()
                victim.symlink_to("nowhere")
            elif kind == "corrupt image":
                victim.write_bytes(content[: len(content) // 2])
            elif kind == "full disk":
                arguments = ["prlimit", f"--fsize={20_000_000 + 1_000_000 * number}", *arguments]
                words = "could not be written"
            begin = time.perf_counter()
            process = subprocess.Popen(
                arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            if kind == "killed worker":
                begin, words = kill_a_worker(process.pid), "a worker was killed"
            said = process.communicate(timeout=60)[1]
            took = time.perf_counter() - begin
            slowest = max(slowest, took)
            victim.unlink()
            victim.write_bytes(content)
            left = [path.name for path in out.glob(".*")]
            kept = process.returncode == 1 and words in said and not left
            tried.expect(kept and took < 5 + 3, f"{kind}: {took:.1f} s, {said!r}, left {left}")
    tried.measured = f"{slowest:.1f} s at most, with the start"
    tried.ffcv = (
        f"source raises: {run_ffcv(FFCV_WRITE, str(folder / 'ffcv.beton'), 'raise', limit=30)}"
    )
    return [tried]


def kill_a_worker(coordinator: int) -> float:
    """Kills the first process that encodes; the time at which it did."""
    while True:
        for path in Path("/proc").glob("[0-9]*/stat"):
            fork_server = parent_of(path)
            if fork_server and parent_of(Path(f"/proc/{fork_server}/stat")) == coordinator:
                time.sleep(0.3)
                os.kill(int(path.parent.name), signal.SIGKILL)
                return time.perf_counter()
        time.sleep(0.02)


def parent_of(stat: Path) -> int | None:
    """The process that started another, by its /proc/N/stat; None where it has ended."""
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


# Files -----------------------------------------------------------------------------------


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


# Loading ---------------------------------------------------------------------------------


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
        threads.append(threading.active_count())
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
    """A sparse file of so many raw images of 4 x 4 pixels, in a field of FFCV's."""
    page_size, size = beton.DEFAULT_PAGE_SIZE, 100_000  # of a region: 128 GB, of holes
    first, in_page = beton.first_page(samples, page_size), page_size // 100_000
    numbers = np.arange(samples)
    metadata = np.zeros(samples, beton.metadata_type(beton.RGB_ROW))
    metadata["image"]["mode"], metadata["label"] = beton.RAW, numbers
    metadata["image"]["width"] = metadata["image"]["height"] = 4
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
                named = any(f"sample {sample} is damaged" in str(error) for sample in bad)
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


# Training --------------------------------------------------------------------------------


def try_training(folder: Path, tries: int) -> list[Tried]:
    tried = Tried("a training killed at a random step and resumed: the same weights, bit for bit")
    path = write(folder / "data", make_images(300, 32))
    arguments = [
        sys.executable, str(ROOT / "train.py"), f"--data.train={path}",
        f"--data.val={path.with_name('val.beton')}", "--data.resolution=32",
        "--data.crop=random_resized", "--data.batch_size=32", "--model.name=resnet8",
        "--training.epochs=20", "--run.checkpoint_steps=2", "--lr.base=0.01",
    ]  # fmt: skip

    def begin(run: Path, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*arguments, f"--run.folder={run}", *more], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    begin(folder / "whole").wait(300)
    expected, rng, steps = read_weights(folder / "whole"), random.Random(0), []
    for number in range(tries):
        run, target = folder / f"run{number}", rng.randrange(2, 180)
        process = begin(run, f"--data.num_workers={1 + number % 2}")
        while process.poll() is None:
            if (run / "checkpoints" / "last").exists() and read_checkpoint(run)["step"] >= target:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(30)
        steps.append(read_checkpoint(run)["step"])
        resume = [sys.executable, str(ROOT / "train.py"), f"--run.resume={run}"]
        subprocess.run(resume, capture_output=True, timeout=300)
        tried.expect(read_weights(run) == expected, f"run {number}, from step {steps[-1]}")
    tried.measured = f"from steps {', '.join(map(str, sorted(steps)))} of 200"
    return [tried]


def read_checkpoint(run: Path) -> dict[str, Any]:
    import torch

    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last", weights_only=True)
    return checkpoint


def read_weights(run: Path) -> dict[str, bytes]:
    model = read_checkpoint(run)["model"]
    return {name: value.numpy().tobytes() for name, value in model.items()}


# All -------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Path, int], list[Tried]], int]] = {
    "kills": (try_kills, 50),
    "interrupts": (try_interrupts, 20),
    "calls": (try_failing_calls, 100),
    "failures": (try_failures, 20),
    "flips": (try_flips, 50),
    "breaks": (try_breaks, 50),
    "opening": (try_opening, 1),
    "damaged": (try_damaged, 1),
    "training": (try_training, 20),
}


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", choices=tuple(PARTS), help="one part instead of all")
    parser.add_argument(
        "--tries", type=positive, metavar="N", help="of each part, instead of its own"
    )
    arguments = parser.parse_args(argv)
    done: list[Tried] = []
    for name in [arguments.only] if arguments.only else list(PARTS):
        part, tries = PARTS[name]
        console.print(f"{name} ...")
        with tempfile.TemporaryDirectory() as folder:
            found = part(Path(folder), arguments.tries or tries)
        done += found
        for tried in found:
            for words in tried.failures[:5]:
                console.print(f"  NOT KEPT: {words}")
    rows = [(t.promise, str(t.tries), str(len(t.failures)), t.measured, t.ffcv) for t in done]
    show_table("promises", ("promise", "tries", "failures", "measured", "stock FFCV"), rows)
    failed = sum(len(tried.failures) for tried in done)
    return {"whole": failed == 0, "promises": [asdict(tried) for tried in done], **describe_run()}


if __name__ == "__main__":
    commandline.run_command(main)
