"""What the parts share: how a try is counted, what is written, how processes are ended."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import write_dataset

ROOT = Path(__file__).parent.parent.parent
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
