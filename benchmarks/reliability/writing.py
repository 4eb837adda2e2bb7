"""Writes that are killed, stopped, and whose calls, workers, images or disk fail."""

import errno
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.trying import (
    Tried,
    command,
    digests,
    kill_after,
    make_folder,
    make_images,
    run_ffcv,
    seconds_of,
    shared_memory,
    write,
)
from resnet_ffcv.errors import FailureError
from resnet_ffcv.progress import Report
from resnet_ffcv.verify import verify


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


def ffcv_killed(folder: Path) -> str:
    path = folder / "ffcv.beton"
    process = subprocess.Popen(
        [sys.executable, "-c", FFCV_WRITE, str(path)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(600):  # its first compilation takes seconds
        if path.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return run_ffcv(FFCV_READ, str(path)) if path.exists() else "it had not begun"


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
        # Before Python reads the program, SIGINT itself ends it, which shells show as 130, too.
        kept = took < 2 and not left and code in (130, -signal.SIGINT, 0)
        tried.expect(kept, f"{number}: {took:.1f} s, exit code {code}, left {left}")
    tried.measured = f"{slowest:.2f} s at most"
    return [tried]


CALLS = ("pwrite", "fsync", "replace", "preadv", "open", "write")


def try_failing_calls(folder: Path, tries: int) -> list[Tried]:
    """The n-th call of each kind fails, for every n, until a write has fewer."""
    alone = Tried("a pwrite, fsync, rename, open, preadv or write fails: an error, no parts left")
    resumed = Tried("the same with resume: an error, and the next run gives the same bytes")
    images = make_images(40, 32)
    write(folder / "expected", images)
    expected = digests(folder / "expected")
    for name in CALLS:
        for code, resume in itertools.product((errno.EIO, errno.ENOSPC), (False, True)):
            tried, error = (resumed if resume else alone), OSError(code, os.strerror(code))
            for number in range(tries):
                out = folder / f"{name}{number}-{code}-{resume}"
                ended, failed = write_with_failure(out, images, name, number, error, resume)
                if not failed:  # it has no more calls
                    break
                words = f"call {number} of {name}: {ended}"
                left = {path.name for path in out.iterdir()} if out.exists() else set()
                left -= {n for n in left if resume and ".partial" in n}
                left -= _published(out, expected)
                kept = "Error" in ended and str(error.strerror) in ended and not left
                if ended == "no error":  # the last renames, with their sync, are tried twice
                    kept = name in ("replace", "fsync", "open") and digests(out) == expected
                if resume:
                    write(out, images, resume=True)
                    kept = kept and digests(out) == expected
                tried.expect(kept, f"{words}, left {sorted(left)}")
            if code == errno.EIO:  # as many as of the other
                tried.measured += f"{', ' if tried.measured else ''}{number} {name}"
    return [alone, resumed]


def _published(out: Path, expected: Mapping[str, str]) -> set[str]:
    """Names of the files of splits that were whole before a call failed."""
    found = digests(out) if out.exists() else {}
    names: set[str] = set()
    for split in ("train", "val"):
        files = {name for name in expected if name.startswith(split)}
        if all(found.get(name) == expected[name] for name in files):
            names |= files
    return names


def write_with_failure(
    out: Path, images: np.ndarray, name: str, number: int, error: OSError, resume: bool
) -> tuple[str, bool]:
    """(how a write ended, whether the call failed) of a write in which one call fails.

    Args:
        name: of a function of os; `write` is that of files of Python's.
    """
    calls, main = 0, threading.get_ident()

    def count() -> None:
        nonlocal calls
        if threading.get_ident() == main or name == "preadv":
            calls += 1
            if calls == number + 1:
                raise error

    def fail(*arguments: Any, **options: Any) -> Any:
        if name != "open" or str(out) in str(arguments[0]):  # the workers' start is not tried
            count()
        return original(*arguments, **options)

    class FailingFile(io.FileIO):
        def write(self, content: Any) -> int:
            count()
            return super().write(content)

    def open_failing(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        place = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if str(out) not in str(place) or mode in ("r", "rb"):
            return original(path, mode, *arguments, **options)
        raw = FailingFile(path, mode.replace("b", ""))
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file)

    place, called = (io, "open") if name == "write" else (os, name)
    original = getattr(place, called)
    setattr(place, called, open_failing if name == "write" else fail)
    try:
        write(out, images, resume=resume)
    except (FailureError, OSError) as caught:
        return f"{type(caught).__name__}: {caught}", calls > number
    finally:
        setattr(place, called, original)
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
            tried.expect(kept and took < 5, f"{kind}: {took:.1f} s, {said!r}, left {left}")
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
