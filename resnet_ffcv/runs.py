"""The folder of a run: configuration, environment, log, checkpoints and pictures."""

import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from resnet_ffcv import config as configuration
from resnet_ffcv.checkpoints import ANOTHER, Checkpoint, read_checkpoint
from resnet_ffcv.config import TrainConfig
from resnet_ffcv.environment import add_environment, describe_environment, write_environment
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.files import write_whole
from resnet_ffcv.locks import lock_folder
from resnet_ffcv.opening import find_temporary, open_regular, refuse_links_out

Record = dict[str, Any]  # one epoch's figures, a line of log.jsonl

SECONDS_BETWEEN_CURVES = 30.0
FILES = (  # that write_whole writes, in a run's folder
    *("config.yaml", "environment.json", "log.jsonl", "result.json", "curves.png", "batch.png"),
    *("checkpoints/last", "checkpoints/best"),
)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run's folder.

    Raises:
        FailureError: another process holds it, or there is no such folder.
    """
    busy = (
        f"another process is training in {folder}; wait until it ends, or stop it and resume "
        "its run"
    )
    with lock_folder(folder, busy):
        yield


def make_folder(config: TrainConfig) -> Path:
    """Makes the folder of a new run: `run.folder`, or a name of model and time.

    Raises:
        FailureError: it cannot be made, or a link in it leads out of it.
    """
    folder = Path(config.run.folder or "runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not config.run.folder:
            return _make_fresh_folder(folder, config.model.name)
    except OSError as error:
        raise _failure(folder, error) from error
    refuse_links_out(folder)
    return folder


def _failure(folder: Path, error: OSError) -> FailureError:
    return FailureError(f"run folder {folder}: {error.strerror or error}")


class Run:
    """A run's folder. `create` begins a new one, `reopen` resumes one that was stopped.

    Whoever calls them has checked the folder by `make_folder` or `refuse_links_out`, and holds it
    by `hold`.
    """

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        self.folder = folder
        self.records = list(records)
        self.curves_drawn = time.monotonic()
        try:
            (folder / "checkpoints").mkdir(exist_ok=True)
            for name in FILES:  # what a killed process left half-written
                for file in find_temporary(folder / name):
                    file.unlink()
        except OSError as error:
            raise _failure(folder, error) from error
        self._write_log()
        self.tensorboard: SummaryWriter | None = None  # a file, so not before there is an event

    @classmethod
    def create(cls, folder: Path, config: TrainConfig, device: torch.device) -> "Run":
        """Begins a run in a folder from `make_folder`.

        Raises:
            UsageError: the folder holds a run already.
            FailureError: it cannot be written to.
        """
        if (folder / "config.yaml").exists():
            raise UsageError(
                f"{folder} holds a run already: name another run.folder, or go on with it by "
                f"--run.resume={folder}"
            )
        precision = config.training.precision
        write_environment(folder, {**describe_environment(device), "precision": precision})
        text = configuration.to_yaml(config).encode()
        write_whole(folder / "config.yaml", lambda file: file.write(text))
        return cls(folder, [])

    @classmethod
    def reopen(
        cls, folder: Path, device: torch.device, precision: str
    ) -> tuple["Run", Checkpoint | None]:
        """(the run, its last checkpoint); log and best checkpoint become those of that epoch.

        The checkpoint is None where the run was stopped before its first: it starts over. It may
        continue on another machine, commit or precision: environment.json says from which step on.

        Raises:
            FailureError: the checkpoint is missing, damaged or of another program.
        """
        path = folder / "checkpoints" / "last"
        after = (path.with_name("best"), folder / "result.json")  # they are written after a last
        if not path.exists() and any(file.exists() for file in after):
            raise FailureError(f"{path}, the run's checkpoint, is missing; {ANOTHER}")
        checkpoint = read_checkpoint(path) if path.exists() else None
        step = checkpoint.step if checkpoint else 0
        add_environment(folder, {**describe_environment(device), "precision": precision}, step)
        run = cls(folder, [dict(record) for record in checkpoint.records] if checkpoint else [])
        if checkpoint and checkpoint.meter is None and last_is_best(run.records):
            # It is of the end of the best epoch; a kill may have come before it was copied.
            with open_regular(path) as last:
                write_whole(path.with_name("best"), lambda file: shutil.copyfileobj(last, file))
        return run, checkpoint

    @property
    def last_checkpoint(self) -> Path | None:
        path = self.folder / "checkpoints" / "last"
        return path if path.exists() else None

    def total(self, name: str) -> float:
        """The sum of one of the records' figures."""
        return float(sum(record[name] for record in self.records))

    def _write_log(self) -> None:
        # Whole each time: appending would go through a link, or change a copy of the user's.
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_whole(self.folder / "log.jsonl", lambda file: file.write(lines.encode()))

    def log(self, record: Record) -> None:
        """Adds an epoch to the log, TensorBoard and, at times, the curves."""
        self.records.append(record)
        self._write_log()
        path = self.folder / "tensorboard"
        try:
            if self.tensorboard is None:  # purges what a stopped run said from this step on
                self.tensorboard = SummaryWriter(str(path), purge_step=record["step"])
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


def last_is_best(records: Sequence[Record]) -> bool:
    """Whether the last epoch has a higher validation accuracy than all before it."""
    accuracies = [record["val_top1"] for record in records]
    return bool(accuracies) and accuracies[-1] > max(accuracies[:-1], default=-1.0)


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
