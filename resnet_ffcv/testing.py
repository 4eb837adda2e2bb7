"""Evaluation: counts of what a model gets right, over every image once."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ffcv.data import Normalize
from resnet_ffcv.errors import FailureError
from resnet_ffcv.loader import Loader
from resnet_ffcv.models import as_fully_convolutional
from resnet_ffcv.resized import ResizedImages

SMALLEST = torch.finfo(torch.float32).tiny  # of a score whose logarithm is taken
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

    def time(self, batches: "Images") -> Generator[Any, None, None]:
        """The batches of a pass, timed from here on; ends the pass when it is closed."""
        self.began = asked = time.perf_counter()
        self.waiting = 0.0
        iterator: Any = iter(batches)
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


Images = Loader | ResizedImages
Scored = Generator[tuple[Tensor, Tensor], None, None]  # logits (n, views, classes), labels (n,)


@dataclass(frozen=True)
class Setting:
    """How a model is asked: `device`, autocast's `precision`, and what its inputs are made by.

    `on_images` is told how many more images are done (a fraction of one, where each is seen several
    times over), for a progress bar; `clock` times the test.
    """

    normalize: Normalize
    device: torch.device
    precision: str
    on_images: Callable[[float], Any] = lambda _: None

    def ask(self, model: nn.Module, images: Tensor) -> Tensor:
        """float32 logits for uint8 images (n, height, width, 3)."""
        with autocast(self.device, self.precision):
            logits: Tensor = model(self.normalize(images)).float()
        return logits


def evaluate(
    model: nn.Module,
    images: Images,
    setting: Setting,
    *,
    flip: bool = False,
    clock: Clock | None = None,
) -> Counts:
    """Tests `model`, in evaluation mode, on every image of `images` once.

    Softmax scores are averaged over the views of an image, and over their mirror images.

    Args:
        images: a Loader of views (n, height, width, 3) or (n, views, height, width, 3), and labels;
            or whole images, for the fully convolutional form (He et al. 2015, section 3.4).
        flip: also show the mirror image of each of a Loader's views.

    Raises:
        UsageError: whole images, and a model that has no fully convolutional form.
        FailureError: another number of images came than the file holds, or one is damaged.
    """
    clock = clock or Clock()
    meter = Meter(setting.device)
    if isinstance(images, ResizedImages):
        scored = score_whole_images(model, images, setting, clock)
    else:
        scored = score_views(model, images, setting, clock, flip=flip)
    with torch.inference_mode(), closing(scored):
        for views, labels in scored:
            logits = views[:, 0] if views.shape[1] == 1 else mean_score(views, 1)
            meter.add(logits, labels, F.cross_entropy(logits, labels))
    if meter.seen != len(images.indices):
        raise FailureError(
            f"{images.fname}: {meter.seen} images were tested, it holds {len(images.indices)}"
        )
    counts = meter.counts()  # waits for the device
    clock.stop()
    return counts


def mean_score(logits: Tensor, dim: int) -> Tensor:
    """The logarithm of the softmax scores' mean over `dim`; classes are the last dimension.

    Logits of views go in, logits of the image come out: their softmax is that mean.
    """
    return logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])


def score_views(
    model: nn.Module, loader: Loader, setting: Setting, clock: Clock, *, flip: bool
) -> Scored:
    """The views of each image, and behind them, if `flip`, their mirror images: in batches."""
    model.eval()
    with closing(clock.time(loader)) as batches:
        for images, labels in batches:
            views = images if images.ndim == 5 else images[:, None]
            if flip:
                views = torch.cat((views, views.flip(3)), 1)
            logits = setting.ask(model, views.flatten(0, 1))
            yield logits.view(*views.shape[:2], -1), labels
            setting.on_images(len(labels))


def score_whole_images(
    model: nn.Module, images: ResizedImages, setting: Setting, clock: Clock
) -> Scored:
    """All images at once, as one view each: the logarithm of the mean of all their scores."""
    model.eval()
    dense = as_fully_convolutional(model, images.resolution, setting.device)
    labels = torch.from_numpy(images.labels).to(setting.device)
    scores = torch.zeros(len(labels), 0)  # sums of softmax scores
    times = np.zeros(len(labels), np.int64)  # that each image was shown
    with closing(clock.time(images)) as batches:
        for places, pixels in batches:
            whole = torch.from_numpy(pixels).to(setting.device)
            found = dense_scores(dense, whole, setting) + dense_scores(
                dense, whole.flip(2), setting
            )
            if not scores.numel():
                scores = found.new_zeros(len(labels), found.shape[1])
            scores.index_add_(0, torch.from_numpy(places).to(setting.device), found)
            np.add.at(times, places, 1)
            setting.on_images(len(places) / len(images.sides))
    wrong = np.flatnonzero(times != len(images.sides))
    if len(wrong):
        raise FailureError(
            f"{images.fname}: image {wrong[0]} was tested at {times[wrong[0]]} sizes of "
            f"{len(images.sides)}"
        )
    yield (scores / (2 * len(images.sides))).clamp_min(SMALLEST).log()[:, None], labels


def dense_scores(dense: nn.Module, images: Tensor, setting: Setting) -> Tensor:
    """Softmax scores (n, classes), averaged over the places where the classifier was applied."""
    return setting.ask(dense, images).softmax(1).mean((2, 3))
