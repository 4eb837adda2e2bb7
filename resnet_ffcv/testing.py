"""Evaluation: counts of what a model gets right, over every image once."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ffcv.data import Normalize
from resnet_ffcv.errors import FailureError
from resnet_ffcv.loader import Loader

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Counts:
    """Sums over images; averages are taken of these alone, at the end.

    `top5` is None where there are fewer than six classes. Percentages are from 0 to 100.
    """

    loss_sum: float
    correct1: int
    correct5: int | None
    seen: int

    @property
    def loss(self) -> float:
        return self.loss_sum / self.seen

    @property
    def top1(self) -> float:
        return 100 * self.correct1 / self.seen

    @property
    def top5(self) -> float | None:
        return None if self.correct5 is None else 100 * self.correct5 / self.seen


class Meter:
    """Adds up counts on the device; only `counts` and `first_bad_step` wait for it."""

    def __init__(self, device: torch.device) -> None:
        # Loss sum and correct within 1 and 5. float64 counts exactly to 2^53.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.seen = 0
        self.classes = 0

    def add(self, logits: Tensor, labels: Tensor, mean_loss: Tensor, step: int = 0) -> None:
        """Counts a batch: logits (n, classes), labels (n,), the batch's mean loss ()."""
        count, self.classes = logits.shape
        hits = logits.topk(min(5, self.classes)).indices == labels[:, None]
        sums = torch.stack((mean_loss.double() * count, hits[:, 0].sum(), hits.sum()))
        self.sums += sums
        is_first = (self.bad_step < 0) & ~torch.isfinite(mean_loss)
        self.bad_step = torch.where(is_first, step, self.bad_step)
        self.seen += count

    def counts(self) -> Counts:
        """What was added so far; waits for the device."""
        loss_sum, correct1, correct5 = self.sums.tolist()
        top5 = int(correct5) if self.classes > 5 else None
        return Counts(loss_sum, int(correct1), top5, self.seen)

    def state_dict(self) -> dict[str, Any]:
        """What was added so far, as tensors and plain values."""
        return {**vars(self), "sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.sums.copy_(state["sums"])
        self.bad_step.copy_(state["bad_step"])
        self.seen, self.classes = state["seen"], state["classes"]

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite, or None; waits for the device."""
        step = int(self.bad_step)
        return None if step < 0 else step


class Clock:
    """Seconds of a pass over a Loader, and of these the seconds spent waiting for data.

    The wait for the first batch of a process is not counted: kernels may be compiled in it.
    """

    def __init__(self) -> None:
        self.began = self.seconds = self.waiting = 0.0
        self.compiled = False

    def time(self, batches: Loader) -> Generator[Any, None, None]:
        """The batches of a pass, timed from here on; ends the pass when it is closed."""
        self.began = asked = time.perf_counter()
        self.waiting = 0.0
        iterator = iter(batches)
        with closing(iterator):
            for batch in iterator:
                arrived = time.perf_counter()
                if self.compiled:
                    self.waiting += arrived - asked
                else:
                    self.began, self.compiled = arrived, True
                yield batch
                asked = time.perf_counter()

    def stop(self) -> None:
        """The pass ends."""
        self.seconds = time.perf_counter() - self.began


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The mixed-precision context of `precision` (bf16, fp16 or fp32)."""
    return torch.autocast(
        device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32", cache_enabled=True
    )


def evaluate(
    model: Callable[[Tensor], Tensor],
    loader: Loader,
    normalize: Normalize,
    device: torch.device,
    precision: str,
    on_images: Callable[[int], Any] = lambda _: None,
    clock: Clock | None = None,
) -> Counts:
    """Tests `model`, in evaluation mode, on every image of `loader` once; one view of each.

    Args:
        on_images: called with the number of images of each batch, for a progress bar.
        clock: times the test.

    Raises:
        FailureError: the loader gave another number of images than its file holds.
    """
    if isinstance(model, nn.Module):
        model.eval()
    meter, clock = Meter(device), clock or Clock()
    with torch.inference_mode(), closing(clock.time(loader)) as batches:
        for images, labels in batches:
            with autocast(device, precision):
                logits = model(normalize(images)).float()
            meter.add(logits, labels, F.cross_entropy(logits, labels))
            on_images(len(labels))
    if meter.seen != len(loader.indices):
        raise FailureError(
            f"{loader.fname}: {meter.seen} images were tested, it holds {len(loader.indices)}"
        )
    counts = meter.counts()  # waits for the device
    clock.stop()
    return counts
