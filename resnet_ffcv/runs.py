"""The folder of a run: configuration, environment, log, checkpoints and pictures."""

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from resnet_ffcv import config as configuration
from resnet_ffcv.config import TrainConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.files import write_whole
from resnet_ffcv.models import read_weights

Record = dict[str, Any]  # one epoch's figures, a line of log.jsonl

PACKAGES = ("resnet-ffcv", "torch", "torchvision", "ffcv", "numba", "numpy", "timm")
SECONDS_BETWEEN_CURVES = 30.0
ANOTHER = "put a whole one there, or begin anew, with another run.folder"


class Run:
    """A run's folder. `create` makes a new one, `reopen` one of a run that was stopped."""

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        self.folder = folder
        self.records = list(records)
        self.curves_drawn = time.monotonic()
        (folder / "checkpoints").mkdir(exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_whole(folder / "log.jsonl", lambda file: file.write(lines.encode()))
        self.tensorboard: SummaryWriter | None = None  # a file, so not before there is an event

    @classmethod
    def create(cls, config: TrainConfig, device: torch.device) -> "Run":
        """Makes the folder of `config` (`run.folder`, or a name of model and time).

        Raises:
            UsageError: the folder holds a run already.
            FailureError: it cannot be made.
        """
        folder = Path(config.run.folder or "runs")
        if config.run.folder and (folder / "config.yaml").exists():
            raise UsageError(
                f"{folder} holds a run already: name another run.folder, or go on with it by "
                f"--run.resume={folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not config.run.folder:
                folder = _make_fresh_folder(folder, config.model.name)
            precision = config.training.precision
            write_environment(folder, {**describe_environment(device), "precision": precision})
            write_whole(
                folder / "config.yaml",
                lambda file: file.write(configuration.to_yaml(config).encode()),
            )
            return cls(folder, [])
        except OSError as error:
            raise FailureError(f"run folder {folder}: {error.strerror}") from error

    @classmethod
    def reopen(
        cls, folder: Path, device: torch.device, precision: str
    ) -> tuple["Run", dict[str, Any] | None]:
        """(the run, its last checkpoint); log and best checkpoint become those of that epoch.

        The checkpoint is None where the run was stopped before its first: it begins anew. It may go
        on on another machine, commit or precision: environment.json says from which step on.

        Raises:
            FailureError: the checkpoint is missing, damaged or of another program.
        """
        path = folder / "checkpoints" / "last"
        behind = (path.with_name("best"), folder / "result.json")  # they are written behind a last
        if not path.exists() and any(file.exists() for file in behind):
            raise FailureError(f"{path}, the run's checkpoint, is missing; {ANOTHER}")
        checkpoint = read_checkpoint(path) if path.exists() else None
        step = checkpoint["step"] if checkpoint else 0
        add_environment(folder, {**describe_environment(device), "precision": precision}, step)
        run = cls(folder, checkpoint["records"] if checkpoint else [])
        if checkpoint and checkpoint.get("meter") is None and last_is_best(run.records):
            # It stands at the end of the best epoch, and was perhaps killed before it said so.
            run.save_checkpoint("best", checkpoint)
        return run, checkpoint

    @property
    def last_checkpoint(self) -> Path | None:
        path = self.folder / "checkpoints" / "last"
        return path if path.exists() else None

    def total(self, name: str) -> float:
        """The sum of one of the records' figures."""
        return float(sum(record[name] for record in self.records))

    def log(self, record: Record) -> None:
        """Adds an epoch to the log, TensorBoard and, at times, the curves."""
        if self.tensorboard is None:  # what a run that was stopped said of this step on is void
            events = str(self.folder / "tensorboard")
            self.tensorboard = SummaryWriter(events, purge_step=record["step"])
        self.records.append(record)
        path = self.folder / "log.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FailureError(f"{path} could not be written: {error.strerror}") from error
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "step"):
                self.tensorboard.add_scalar(name, value, record["step"])
        if time.monotonic() - self.curves_drawn > SECONDS_BETWEEN_CURVES:
            self.draw_curves()

    def save_checkpoint(self, name: str, checkpoint: dict[str, Any]) -> None:
        """Writes checkpoints/`name` (last or best)."""
        content = io.BytesIO()
        torch.save(checkpoint, content)  # to a file, a full disk would be an error without words
        path = self.folder / "checkpoints" / name
        write_whole(path, lambda file: file.write(content.getbuffer()))

    def draw_curves(self) -> None:
        """Writes curves.png: loss, accuracy and learning rate over epochs."""
        self.curves_drawn = time.monotonic()
        figure = draw_curves(self.records)
        write_whole(self.folder / "curves.png", lambda file: figure.savefig(file, format="png"))

    def draw_batch(self, pixels: Any, names: Sequence[str]) -> None:
        """Writes batch.png: up to 16 images (n, height, width, 3), 0 to 1, and their classes."""
        figure = draw_images(pixels, names)
        write_whole(self.folder / "batch.png", lambda file: figure.savefig(file, format="png"))

    def finish(self, result: dict[str, Any]) -> None:
        """Closes the log, draws the last curves and writes result.json: with it a run is whole."""
        if self.tensorboard:
            self.tensorboard.close()
        self.draw_curves()
        write_whole(
            self.folder / "result.json",
            lambda file: file.write(json.dumps(result).encode() + b"\n"),
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, tensors on the CPU; nothing in it can run code.

    Raises:
        FailureError: it cannot be read, or is none of ours.
    """
    try:
        checkpoint = read_weights(path)
    except FailureError as error:
        raise FailureError(f"{path}, the run's checkpoint, is damaged; {ANOTHER}") from error
    if "records" not in checkpoint:
        raise FailureError(f"{path} is no checkpoint of train.py")
    return checkpoint


def last_is_best(records: Sequence[Record]) -> bool:
    """Whether the last epoch has a higher validation accuracy than all before it."""
    *before, last = (record["val_top1"] for record in records)
    return bool(last > max(before, default=-1.0))


def _make_fresh_folder(parent: Path, model: str) -> Path:
    name = f"{model.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, count = parent / name, 1
    while True:
        try:
            folder.mkdir()  # not `exists` first: two runs may begin in the same second
            return folder
        except FileExistsError:
            count += 1
            folder = parent / f"{name}-{count}"


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit, for environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def write_environment(folder: Path, environment: dict[str, Any]) -> None:
    """Writes a run's environment.json."""
    content = json.dumps(environment, indent=2).encode()
    write_whole(folder / "environment.json", lambda file: file.write(content))


def add_environment(folder: Path, here: dict[str, Any], step: int) -> None:
    """Notes in environment.json, as `resumed`, where a run goes on, if that is another place.

    Places whose steps are all made again from here have made none of the run, and leave the list.

    Args:
        here: what `describe_environment` says, and the precision.
        step: the one that it goes on from.

    Raises:
        FailureError: the file is missing or damaged.
    """
    path = folder / "environment.json"
    try:
        first = json.loads(path.read_text())
        places = first.pop("resumed", [])
        resumed = [place for place in places if place["step"] < step]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise FailureError(f"{path} cannot be read: {error}") from error
    last = {**first, **(resumed[-1] if resumed else {})}
    if any(last.get(name) != value for name, value in here.items()):
        resumed.append({"step": step, **here})
    if resumed != places:
        write_environment(folder, {**first, "resumed": resumed} if resumed else first)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _commit() -> str | None:
    """The commit of the program's checkout, with -dirty where files were changed; None if none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def draw_curves(records: Sequence[Record]) -> Figure:
    """Loss, top-1 accuracy and learning rate against the epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [record["epoch"] for record in records]
    panels = (
        ("loss", ("train_loss", "val_loss")),
        ("top-1 accuracy, %", ("train_top1", "val_top1")),
        ("learning rate", ("lr",)),
    )
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            label = {"train": "training", "val": "validation"}.get(name.split("_")[0])
            axes.plot(epochs, [record[name] for record in records], label=label, marker=".")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(names) > 1 and records:
            axes.legend()
    return figure


def draw_images(pixels: Any, names: Sequence[str]) -> Figure:
    """A grid of up to 16 images (n, height, width, 3), from 0 to 1, each below its class."""
    figure = Figure(figsize=(8, 8.6), layout="constrained")
    grid = figure.subplots(4, 4).flat
    for axes in grid:
        axes.axis("off")
    for axes, image, name in zip(figure.axes, pixels[:16], names, strict=False):
        axes.imshow(image)
        axes.set_title(name, fontsize=9, parse_math=False)
    return figure
