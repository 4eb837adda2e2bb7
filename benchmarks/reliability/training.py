"""Trainings that are killed and resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.reliability.trying import ROOT, Tried, make_images, write


def try_training(folder: Path, tries: int) -> list[Tried]:
    tried = Tried("a training killed at a random step and resumed: the same weights, bit for bit")
    path = write(folder / "data", make_images(300, 32))
    arguments = [
        sys.executable, str(ROOT / "train.py"), f"--data.train={path}",
        f"--data.val={path.with_name('val.beton')}", "--data.resolution=32",
        "--data.crop=random_resized", "--data.batch_size=5", "--model.name=resnet8",
        "--training.epochs=3", "--run.checkpoint_steps=2", "--lr.base=0.01",
        "--training.precision=fp32",  # bf16 is slow where a processor does not have it
    ]  # fmt: skip

    def begin(run: Path, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*arguments, f"--run.folder={run}", *more], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    begin(folder / "whole").wait(300)
    expected, rng, steps = read_weights(folder / "whole"), random.Random(0), []
    for number in range(tries):
        run, target = folder / f"run{number}", rng.randrange(2, 160)
        process = begin(run, f"--data.num_workers={1 + number % 2}")
        while process.poll() is None:
            if (run / "checkpoints" / "last").exists() and read_checkpoint(run)["step"] >= target:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        process.wait(30)
        steps.append(read_checkpoint(run)["step"])
        resume = [sys.executable, str(ROOT / "train.py"), f"--run.resume={run}"]
        subprocess.run(resume, capture_output=True, timeout=300)
        tried.expect(read_weights(run) == expected, f"run {number}, from step {steps[-1]}")
    tried.measured = f"from steps {', '.join(map(str, sorted(steps)))} of 180"
    return [tried]


def read_checkpoint(run: Path) -> dict[str, Any]:
    import torch

    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last", weights_only=True)
    return checkpoint


def read_weights(run: Path) -> dict[str, bytes]:
    model = read_checkpoint(run)["model"]
    return {name: value.numpy().tobytes() for name, value in model.items()}
