"""Programs that use a Loader and are interrupted at random moments, as by Ctrl-C.

A program is a process of this module; what it waits for too long, a watchdog in C ends.
"""

import faulthandler
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any

from benchmarks.reliability.trying import ROOT, Tried, make_images, write
from resnet_ffcv import Loader
from resnet_ffcv.decoders import RandomResizedCrop
from resnet_ffcv.stock import IntDecoder, OrderOption

SECONDS_HANGING = 30  # without a step: a hang; an epoch takes a few thousandths of a second
EPOCHS = 5  # of which the pixels are known


def try_signals(folder: Path, tries: int) -> list[Tried]:
    tried = Tried("SIGINT at random moments of a program: no hang, thread or pixel is lost")
    path = write(folder / "signals", make_images(24, 16))
    done, interrupts, hangs = 0, 0, 0
    while done < tries:
        begin = done
        found = run_program(path, begin, tries, folder / "done.json")
        done, interrupts = found["done"], interrupts + found["interrupts"]
        tried.tries += done - begin
        tried.failures += found["failures"]
        if done < tries:  # it ended in this try
            done, hangs = done + 1, hangs + 1
            tried.expect(False, f"try {done - 1}: {found['end']}")
    tried.measured = f"{interrupts:,} interrupts, {hangs} hangs"
    return [tried]


def run_program(path: Path, begin: int, end: int, notes: Path) -> dict[str, Any]:
    """Runs a program that makes the tries `begin` to `end`. Returns what it noted, and its end."""
    notes.write_text(json.dumps({"done": begin, "interrupts": 0, "failures": []}))
    arguments = [str(path), str(begin), str(end), str(notes)]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.reliability.signals", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=120 + 0.1 * (end - begin),
        )  # fmt: skip
        words = f"exit code {ended.returncode}: {ended.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
        words = "it took too long"
    return {**json.loads(notes.read_text()), "end": words}


# The program ----------------------------------------------------------------------------


def read_all(epochs: Callable[[], Any]) -> None:
    for batch in epochs():
        check(batch)


def read_one(epochs: Callable[[], Any]) -> None:
    for batch in epochs():
        check(batch)
        break


def close(epochs: Callable[[], Any]) -> None:
    epoch = epochs()
    check(next(epoch))
    check(next(epoch))
    epoch.close()


def let_go(epochs: Callable[[], Any]) -> None:
    epoch = epochs()
    check(next(epoch))
    del epoch


def begin_alone(epochs: Callable[[], Any]) -> None:
    epochs()


def collect(epochs: Callable[[], Any]) -> None:
    cycle = [epochs()]
    cycle.append(cycle)
    del cycle
    gc.collect(0)


def fail(epochs: Callable[[], Any]) -> None:
    try:
        for batch in epochs():
            check(batch)
            raise ValueError
    except ValueError:
        pass


def read_two(epochs: Callable[[], Any]) -> None:
    for batch, other in zip(epochs(), epochs(), strict=True):
        check(batch)
        check(other)


STYLES = [read_all, read_one, close, let_go, begin_alone, collect, fail, read_two]
EXPECTED: dict[bytes, set[int]] = {}  # by an image's pixels: the samples that look so in an epoch


def check(batch: Any) -> None:
    """Raises AssertionError for pixels that none of the known epochs has for that sample."""
    images, labels = batch
    for image, (label,) in zip(images, labels.tolist(), strict=True):
        if label not in EXPECTED.get(image.tobytes(), ()):
            raise AssertionError(f"sample {label} has wrong pixels")


class Interrupts:
    """Sends SIGINT to this process at moments that were drawn; raised are those that arrive in a
    function of STYLES, or in what it calls."""

    def __init__(self) -> None:
        self.left = self.raised = 0
        self.codes = {style.__code__ for style in STYLES}
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.signal(signal.SIGINT, self._hear)

    def _hear(self, _: int, frame: FrameType | None) -> None:
        while self.left and frame is not None:
            if frame.f_code in self.codes:
                self.left -= 1
                self.raised += 1
                if not self.left:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt
            frame = frame.f_back

    def disturb(self, run: Callable[[], None], draw: random.Random) -> None:
        """Runs it with one to three interrupts, the first one within 0.5, 1 or 3 ms."""
        self.left = draw.choice((1, 1, 2, 3))
        signal.setitimer(
            signal.ITIMER_REAL,
            draw.uniform(1e-5, draw.choice((5e-4, 1e-3, 3e-3))),
            10 ** draw.uniform(-4, -3),
        )
        try:
            run()
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def wait_for_threads(most: int, seconds: float) -> bool:
    """Waits until there are at most `most` threads. Returns whether that was in time."""
    end = time.monotonic() + seconds
    while len(sys._current_frames()) > most and time.monotonic() < end:
        time.sleep(1e-4)
    return len(sys._current_frames()) <= most


def find_failure(loader: Any, number: int, threads: int) -> str:
    """What is wrong after a try; empty: nothing."""
    if not wait_for_threads(threads, 0.5):
        gc.collect()  # an interrupt in `collect` leaves an epoch in its cycle
        if not wait_for_threads(threads, SECONDS_HANGING / 2):
            left = [f for n, f in sys._current_frames().items() if n != get_ident()]
            places = ", ".join(f"{f.f_code.co_filename}:{f.f_lineno}" for f in left)
            return f"a thread is left at {places}"
    loader.next_epoch = number % EPOCHS
    batches = list(loader)
    for batch in batches:
        check(batch)
    labels = sorted(int(n) for _, part in batches for n in part[:, 0])
    return "" if labels == list(range(24)) else f"an epoch has the samples {labels}"


def main(path: str, begin: int, end: int, notes: Path) -> None:
    loaders = [
        Loader(
            path, 4, 1, order=OrderOption.RANDOM, seed=0,
            pipelines={"image": [RandomResizedCrop((8, 8))], "label": [IntDecoder()]},
        )
        for _ in range(2)
    ]  # fmt: skip
    for images, labels in chain.from_iterable(loaders[0] for _ in range(EPOCHS)):
        for image, label in zip(images, labels[:, 0].tolist(), strict=True):
            EXPECTED.setdefault(image.tobytes(), set()).add(label)
    turns = cycle(loaders)

    def epochs() -> Any:
        loader = next(turns)
        loader.next_epoch %= EPOCHS
        return iter(loader)

    epochs().close(), epochs().close()  # both are compiled
    interrupts, failures, threads = Interrupts(), [], len(sys._current_frames())
    sys.unraisablehook = lambda _: None  # of interrupts that come while something is finalized
    for number in range(begin, end):
        faulthandler.dump_traceback_later(SECONDS_HANGING, exit=True)
        style, draw = STYLES[number % len(STYLES)], random.Random(number)
        try:
            interrupts.disturb(partial(style, epochs), draw)
            failure = find_failure(loaders[number % 2], number, threads)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:
            failures.append(f"try {number}, {style.__name__}: {failure}")
            threads = len(sys._current_frames())
        note = {"done": number + 1, "interrupts": interrupts.raised, "failures": failures}
        notes.write_text(json.dumps(note))
    sys.stdout.flush()
    os._exit(0)  # threads that were lost would not end


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
