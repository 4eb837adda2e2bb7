"""The training loop."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from resnet_ffcv import config as configuration
from resnet_ffcv.checkpoints import Checkpoint, restore_model, restore_optimizer
from resnet_ffcv.config import AugmentConfig, TrainConfig, TrainingConfig
from resnet_ffcv.data import Data, short_name, view
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.generators import generator_states, restore_generators
from resnet_ffcv.runs import Record, Run, last_is_best
from resnet_ffcv.schedules import learning_rate, resolution
from resnet_ffcv.testing import Clock, Counts, Images, Meter, Setting, autocast, evaluate

SECONDS_BETWEEN_LOOKS = 1.0  # at the loss, for people and for NaN; each look waits for the device


class Display:
    """What the loop tells of itself while it runs; this one is silent."""

    def begin(self, what: str, images: int) -> None:
        """A pass over so many images begins."""

    def advance(self, images: float) -> None:
        """So many more images are done."""

    def look(self, counts: Counts) -> None:
        """How the pass stands."""

    def end(self, record: Record) -> None:
        """An epoch is over."""


class Trainer:
    """A model, its optimiser, and how far they are: what a checkpoint holds.

    Args:
        config: the whole recipe.
        model: on `device`, channels-last, from `build_model`.
        optimizer: of the model, from `build_optimizer`.
        data: the Loaders of the recipe, from `load_data`.
        run: where the log and the checkpoints go.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Data,
        run: Run,
        device: torch.device,
        display: Display | None = None,
    ) -> None:
        self.config, self.model, self.data, self.run, self.device = config, model, data, run, device
        self.display = display or Display()
        self.optimizer = optimizer
        scaled = config.training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        # The compiled form shares its parameters with `model`.
        self.forward = torch.compile(model) if config.training.compile else model
        decay = config.training.ema
        self.average = ModelEmaV3(model, decay, use_warmup=True) if decay else None
        self.mix = build_mixing(config.augment, config.training.label_smoothing, len(data.classes))
        self.steps_per_epoch = len(data.train)
        in_epochs = (config.training.epochs or 0) * self.steps_per_epoch
        self.total_steps = config.training.iterations or in_epochs
        self.step = 0
        self.meter: Meter | None = None  # of the epoch that is under way
        self.clock = Clock()

    def train(self) -> Counts:
        """Trains to the end of the recipe or to early stopping; returns the last validation.

        Raises:
            FailureError: a loss that is not finite, in training or validation; the message names
                the step, and nothing from there on is kept. Or every image up to an epoch's end, or
                the run's, is damaged.
        """
        tested = None
        while self.step < self.total_steps and not self._stopped_early():
            began = time.monotonic()
            epoch = self.step // self.steps_per_epoch
            seen_before = self.meter.seen if self.meter else 0
            trained = self._train_epoch(epoch)
            tested = self.test(self.data.val, "validation")
            record = {
                "epoch": epoch + 1,
                "step": self.step,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": trained.loss,
                "train_top1": trained.top1,
                "val_loss": tested.loss,
                "val_top1": tested.top1,
                "val_top5": tested.top5,
                "images": trained.seen,
                "damaged": len(self.data.train.damaged),
                "images_per_s": (trained.seen - seen_before) / self.clock.seconds,
                "train_seconds": self.clock.seconds,
                "wait_seconds": self.clock.waiting,
                "seconds": time.monotonic() - began,
            }
            self.run.log(record)
            self.display.end(record)
            self._save_if_due()
        return tested or self.test(self.data.val, "validation")

    def _train_epoch(self, epoch: int) -> Counts:
        """Trains to the end of the epoch, or of the recipe; from its middle after a resume.

        A batch that is damaged as a whole, or up to one image where the network is sure of two
        only (BatchNorm), is a step that changes nothing: each batch has the step that it would have
        without the damage, and a run that is resumed has the same.
        """
        done, batch_size = self.step % self.steps_per_epoch, self.config.data.batch_size
        begin = self.step - done
        steps = min(self.steps_per_epoch - done, self.total_steps - self.step)
        end = self.step + steps
        rest = len(self.data.train.indices) - done * batch_size
        self.display.begin(f"epoch {epoch + 1}", min(steps * batch_size, rest))
        side = self._resolution(epoch)
        self.data.window.output_size = (side, side)
        order = {**self.data.train.state_dict(), "epoch": epoch, "samples": done * batch_size}
        self.data.train.load_state_dict(order)
        self.model.train()
        meter = self.meter = self.meter or Meter(self.device)
        looked = time.monotonic()
        with closing(self.clock.time(self.data.train)) as batches:
            for images, labels in batches:
                samples = self.data.train.state_dict()["samples"] or len(self.data.train.indices)
                self.step = begin + (samples - 1) // batch_size  # of this batch
                if self.step >= end:
                    break
                if len(labels) < min(2, self.data.smallest_batch):
                    continue
                self._train_step(images, labels, meter)
                self.display.advance(len(labels))
                if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                    self._look(meter)
                    looked = time.monotonic()
                self._save_inside_epoch(meter)
                if self.step >= end:
                    break
        self.step = end
        if not meter.seen:
            raise FailureError(
                f"{self.config.data.train}: damage leaves no image to learn from in steps "
                f"{begin + done} to {end - 1}"
            )
        self._look(meter)  # waits for the device, so the clock stops when the work is done
        self.clock.stop()
        self.meter = None
        return meter.counts()

    def _train_step(self, images: Tensor, labels: Tensor, meter: Meter) -> None:
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = self.data.normalize(images), labels
        if not meter.seen and self.step < self.steps_per_epoch:  # the run's first that is whole
            self._draw_batch(inputs, labels)
        smoothing = self.config.training.label_smoothing
        if self.mix is not None:
            (inputs, targets), smoothing = self.mix(inputs, labels), 0.0  # it smooths them, too
        with autocast(self.device, self.config.training.precision):
            logits = self.forward(inputs).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if targets.ndim == 2:  # mixed images count as the class that they have most of
            labels = targets.argmax(1)
        meter.add(logits.detach(), labels, loss.detach(), self.step)
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, self.step)

    @property
    def tested_model(self) -> nn.Module:
        """The one that is tested and kept: the moving average, where there is one."""
        return self.model if self.average is None else self.average.module

    def test(self, images: Images, what: str, *, flip: bool = False) -> Counts:
        """Tests the model as it is on every one of `images`."""
        self.display.begin(what, len(images.indices))
        precision, normalize = self.config.training.precision, self.data.normalize
        setting = Setting(normalize, self.device, precision, self.display.advance)
        counts = evaluate(self.tested_model, images, setting, flip=flip)
        if not math.isfinite(counts.loss):
            raise self._not_finite(f"the {what} loss is not finite after step {self.step}")
        return counts

    def _resolution(self, epoch: int) -> int:
        """Pixels a side of an epoch's images."""
        data = self.config.data
        start, share = data.start_resolution, epoch * self.steps_per_epoch / self.total_steps
        return resolution(start or data.resolution, data.resolution, data.growth, share)

    def _learning_rate(self) -> float:
        return learning_rate(
            self.config.lr,
            self.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            in_epochs=self.config.training.epochs is not None,
            losses=[record["val_loss"] for record in self.run.records],
        )

    def _look(self, meter: Meter) -> None:
        bad_step = meter.first_bad_step()
        if bad_step is not None:
            epoch = bad_step // self.steps_per_epoch + 1
            raise self._not_finite(f"the loss is not finite at step {bad_step} (epoch {epoch})")
        self.display.look(meter.counts())

    def _not_finite(self, what: str) -> FailureError:
        last = self.run.last_checkpoint or "none yet"
        return FailureError(f"{what}; try a lower lr.base, or lr.warmup; last checkpoint: {last}")

    def _draw_batch(self, inputs: Tensor, labels: Tensor) -> None:
        pixels = self.data.normalize.pixels(inputs[:16]).cpu().numpy()
        names = [self.data.classes[label] for label in labels[:16].tolist()]
        self.run.draw_batch(pixels, [short_name(name) for name in names])

    def _stopped_early(self) -> bool:
        patience = self.config.training.early_stop
        losses = [record["val_loss"] for record in self.run.records]
        return bool(patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience)

    def _save_if_due(self) -> None:
        is_best = last_is_best(self.run.records)
        is_last = self.step >= self.total_steps or self._stopped_early()
        is_due = len(self.run.records) % self.config.run.checkpoint_every == 0
        # With each best a last, and before it: else a run that is killed and resumed could keep a
        # best of an epoch it has discarded. Run.reopen writes a best that a kill left out.
        if is_best or is_last or is_due:
            self.run.save_checkpoint("last", self.state_dict())
        if is_best:
            self.run.save_checkpoint("best", self.state_dict())

    def _save_inside_epoch(self, meter: Meter) -> None:
        every = self.config.run.checkpoint_steps
        at_end = self.step % self.steps_per_epoch == 0 or self.step == self.total_steps
        if every and self.step % every == 0 and not at_end:
            self._look(meter)  # nothing of an epoch whose loss is not finite is kept
            self.run.save_checkpoint("last", self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values."""
        return {
            "model": self.tested_model.state_dict(),
            "trained": self.model.state_dict() if self.average is not None else None,
            "spec": self.model.spec,
            "classes": self.data.classes,
            "normalize": self.data.normalize.state_dict(),
            "view": view(self.config),
            "config": configuration.to_dict(self.config),
            "dataset": self.data.fingerprint,
            "val_dataset": self.data.val_fingerprint,
            "step": self.step,
            "meter": self.meter.state_dict() if self.meter else None,
            "damaged": dict(self.data.train.damaged),
            "records": self.run.records,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": vars(generator_states()),
        }

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Goes on from a checkpoint, read from `path`.

        Raises:
            FailureError: it is of another network, recipe, training or validation file.
        """
        self._check_place(checkpoint, str(path))
        restore_model(self.tested_model, checkpoint.model, str(path), "model")
        if self.average is not None:
            restore_model(self.model, checkpoint.trained or {}, str(path), "trained")
        restore_optimizer(self.optimizer, checkpoint.optimizer, str(path))
        if checkpoint.scaler:  # a run that goes on in fp16 from another precision has had none
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.step = checkpoint.step
        if checkpoint.meter:
            self.meter = Meter(self.device)
            self.meter.load_state_dict(vars(checkpoint.meter))
        self.data.train.damaged |= checkpoint.damaged
        restore_generators(checkpoint.generators)

    def _check_place(self, checkpoint: Checkpoint, where: str) -> None:
        """Raises FailureError where a checkpoint cannot be of this recipe and its files."""
        data, config = self.data, self.config.data
        for path, here, saved in (
            (config.train, data.fingerprint, checkpoint.dataset),
            (config.val, data.val_fingerprint, checkpoint.val_dataset),
        ):
            if saved not in (here, None):  # None: of a checkpoint from before it was noted
                raise FailureError(
                    f"{path} is not the file this run began with: its checksum is {here[:12]}, the "
                    f"checkpoint's {saved[:12]}"
                )
        step, meter, images = checkpoint.step, checkpoint.meter, len(data.train.indices)
        epochs = step / self.steps_per_epoch
        faults = {
            f"step: must be at most {self.total_steps:,}, got {step:,}": step > self.total_steps,
            f"records: {len(checkpoint.records):,} epochs at step {step:,}": not (
                math.floor(epochs) <= len(checkpoint.records) <= math.ceil(epochs)
            ),
            "classes: not those of the training file": checkpoint.classes != data.classes,
            f"meter: of more than {images:,} images or other classes": meter is not None
            and (meter.seen > images or meter.classes != len(data.classes)),
            "damaged: samples that the training file does not have": not (
                np.isin([*checkpoint.damaged], data.train.indices).all()
            ),
        }
        for fault, found in faults.items():
            if found:
                raise FailureError(f"{where}: {fault}")


Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_mixing(config: AugmentConfig, smoothing: float, classes: int) -> Mixing | None:
    """Mixup and CutMix by timm: (inputs, labels (n,)) -> inputs, targets (n, classes); or None.

    They blend each image with one other of its batch; of an odd number the last stays as it is.
    They draw from NumPy's generator, whose state is in the checkpoint.
    """
    if not config.mixup and not config.cutmix:
        return None
    options = {"label_smoothing": smoothing, "num_classes": classes}
    mixup = Mixup(config.mixup, config.cutmix, **options)

    def mix(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(labels) // 2 * 2
        mixed, targets = mixup(inputs[:even], labels[:even])
        if even == len(labels):
            return mixed, targets
        last = mixup_target(labels[even:], classes, lam=1.0, smoothing=smoothing)
        return torch.cat((mixed, inputs[even:])), torch.cat((targets, last))

    return mix


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser. With `decay_all` false, norms and biases (one-dimensional) are not decayed.

    Raises:
        UsageError: what torch refuses, such as Nesterov's momentum of 0.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not config.decay_all:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "sgd": torch.optim.SGD,
    }
    options: dict[str, Any] = {"betas": (config.momentum, 0.999)}
    if config.optimizer == "sgd":
        options = {"momentum": config.momentum, "nesterov": config.nesterov}
    try:  # the rate is set at every step
        kind = kinds[config.optimizer]
        return kind(groups, lr=0.0, weight_decay=config.weight_decay, **options)
    except ValueError as error:
        raise UsageError(f"training.optimizer={config.optimizer}: {error}") from error
