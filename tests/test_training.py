"""The loop: it learns, resumes to the same weights, and stops when it should."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from betons import spoil, write_noise
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from resnet_ffcv import config as configuration
from resnet_ffcv import generators, jobs, training
from resnet_ffcv.config import AugmentConfig, TrainConfig, TrainingConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model
from resnet_ffcv.orders import random_order
from resnet_ffcv.runs import Run
from resnet_ffcv.testing import Counts

ROOT = Path(__file__).parent.parent


def recipe(sample_folder: Path, run: Path, **options: Any) -> dict[str, Any]:
    """A short run on the 64 images, without augmentation; keys as "section.key"."""
    return {
        "data.train": str(sample_folder / "train.beton"),
        "data.val": str(sample_folder / "val.beton"),
        "data.batch_size": 32,
        "data.num_workers": 1,
        "data.crop": "center",
        "data.flip": False,
        "model.name": "resnet8",
        "training.epochs": 2,
        "training.precision": "fp32",
        "run.folder": str(run),
        **options,
    }


def train(values: dict[str, Any]) -> dict[str, Any]:
    return jobs.train(configuration.build(TrainConfig, [("test", values)]))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = torch.load(run / "checkpoints" / "last", weights_only=True)["model"]
    assert isinstance(found, dict)
    return found


def test_it_learns_64_images_by_heart_and_leaves_a_whole_folder(
    sample_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {
        "data.val": str(sample_folder / "train.beton"),
        "data.batch_size": 16,
        "training.epochs": 40,
        "lr.base": 0.05,
    }
    result = train(recipe(sample_folder, run, **options))
    log = records(run)
    assert [record["epoch"] for record in log] == list(range(1, 41))
    assert log[-1]["val_top1"] == 100.0
    assert log[-1]["val_loss"] < 0.2
    assert result["top1"] == log[-1]["val_top1"]  # of the final epoch
    assert result["images"] == 64
    assert result["epochs"] == 40
    assert json.loads((run / "result.json").read_text()) == result
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "environment.json", "curves.png", "batch.png", "tensorboard"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last", "best"}
    best = torch.load(run / "checkpoints" / "best", weights_only=True)["records"][-1]
    assert best["val_top1"] == max(record["val_top1"] for record in log)
    with pytest.raises(UsageError, match="holds a run already"):
        train(recipe(sample_folder, run))


def test_a_run_killed_and_resumed_has_the_weights_of_one_that_was_not(
    sample_folder: Path, tmp_path: Path
) -> None:
    options = {
        "training.epochs": 6,
        "training.nesterov": True,
        "training.label_smoothing": 0.1,
        "lr.schedule": "plateau",
        "lr.patience": 0,
        "lr.base": 0.05,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    values = recipe(sample_folder, killed, **options)
    arguments = [f"--{name}={str(value).replace('None', 'null')}" for name, value in values.items()]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], stderr=subprocess.DEVNULL
    )
    while not (killed / "log.jsonl").exists() or len(records(killed)) < 2:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = jobs.resume(str(killed), {"run.resume": str(killed)})

    expected = train(recipe(sample_folder, whole, **options))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name]), name
    for ours, theirs in zip(records(killed), records(whole), strict=True):
        for name in ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1"):
            assert ours[name] == theirs[name], name
    assert (resumed["top1"], resumed["loss"]) == (expected["top1"], expected["loss"])


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_model_that_draws_goes_on_as_if_it_had_not_been_killed(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any, **options: Any) -> torch.nn.Module:
        model = build_model(*arguments, **options)
        model.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), model.fc)
        return model

    class KilledError(Exception):
        pass

    def kill(_: Any, record: dict[str, Any]) -> None:
        if record["epoch"] == 4:  # it is in the log, not in a checkpoint
            raise KilledError

    monkeypatch.setattr(jobs, "build_model", build)
    options = {"training.epochs": 5, "run.checkpoint_every": 2, "lr.base": 0.05}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe(sample_folder, whole, **options))
    with monkeypatch.context() as patch:
        patch.setattr(jobs._Bar, "end", kill)
        with pytest.raises(KilledError):
            train(recipe(sample_folder, killed, **options))
    time.sleep(1)  # TensorBoard reads files in the order of their names: second, process, number
    jobs.resume(str(killed), {"run.resume": str(killed)})
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name]), name
    for run in (whole, killed):
        for name in ("lr", "train_loss", "val_top1", "images"):
            logged = [(record["step"], pytest.approx(record[name])) for record in records(run)]
            assert scalars(run, name) == logged
    best = [torch.load(run / "checkpoints" / "best", weights_only=True) for run in (whole, killed)]
    assert best[0]["step"] == best[1]["step"]


EVERYTHING = {
    "augment.policy": "trivialaugment", "augment.mixup": 0.2, "augment.cutmix": 1.0,
    "data.start_resolution": 16, "data.growth": (0.2, 0.9), "training.ema": 0.9,
    "training.optimizer": "nadam", "training.label_smoothing": 0.1, "lr.schedule": "restarts",
    "lr.base": 0.005, "test.flip": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "more"), [(1, {}), (3, {}), (4, {}), (6, {}), (9, {}), (6, EVERYTHING)]
)  # of 12 steps, four in an epoch
def test_a_run_killed_inside_an_epoch_goes_on_there(
    sample_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    more: dict[str, Any],
) -> None:
    class KilledError(Exception):
        pass

    save = Run.save_checkpoint

    def save_and_be_killed(self: Run, name: str, checkpoint: dict[str, Any]) -> None:
        save(self, name, checkpoint)
        if checkpoint["step"] == step:
            raise KilledError

    options = {
        "training.epochs": 3, "run.checkpoint_steps": 1, "lr.base": 0.05, "data.batch_size": 17,
        "data.crop": "random_resized", "data.flip": True, "data.num_workers": 1, **more,
    }  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = train(recipe(sample_folder, whole, **{**options, "run.checkpoint_steps": None}))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_and_be_killed)
        with pytest.raises(KilledError):
            train(recipe(sample_folder, killed, **options))
    steps: list[int] = []
    with monkeypatch.context() as patch:
        train_step = training.Trainer._train_step
        patch.setattr(
            training.Trainer, "_train_step",
            lambda self, *batch: steps.append(self.step) or train_step(self, *batch),
        )  # fmt: skip
        resumed = jobs.resume(str(killed), {"run.resume": str(killed), "data.num_workers": "2"})
    assert steps == list(range(step, 12))  # none of what was done is done again
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name]), name
    for ours, theirs in zip(records(killed), records(whole), strict=True):
        for name in ("epoch", "step", "lr", "train_loss", "train_top1", "images", "val_loss"):
            assert ours[name] == theirs[name], name
    assert (resumed["top1"], resumed["loss"]) == (expected["top1"], expected["loss"])


def test_damaged_images_end_a_run_or_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(write_noise(tmp_path, "jpg", (40, 32, 32), classes=2), 7)
    with pytest.raises(FailureError, match=r"train\.beton: sample 7 is damaged: its JPEG"):
        train(recipe(tmp_path, tmp_path / "one"))
    train(recipe(tmp_path, tmp_path / "two", **{"data.on_error": "skip"}))
    assert [(r["images"], r["damaged"]) for r in records(tmp_path / "two")] == [(39, 1)] * 2
    assert "damaged, left out" in capsys.readouterr().err
    run = str(tmp_path / "two")
    assert jobs.resume(run, {"run.resume": run})["damaged"] == 1  # of the process before
    options = {"data.on_error": "skip", "data.val": str(tmp_path / "train.beton")}
    with pytest.raises(FailureError, match="sample 7 is damaged"):  # tests are exact
        train(recipe(tmp_path, tmp_path / "three", **options))


@pytest.mark.parametrize("step", [1, 3, 4, 8])  # of 10, five in an epoch
def test_a_batch_that_is_damaged_as_a_whole_is_a_step_that_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The second and the last of the first epoch; and a run that was killed goes on behind it."""
    order = random_order(np.arange(38), 0, 0)
    spoil(write_noise(tmp_path, "jpg", (38, 32, 32), classes=2), *order[8:16], *order[32:])
    options = {"data.on_error": "skip", "data.batch_size": 8, "run.checkpoint_steps": 1}
    steps: list[tuple[int, int]] = []

    def note(self: training.Trainer, images: Any, labels: Any, meter: Any) -> None:
        steps.append((self.step, len(labels)))
        train_step(self, images, labels, meter)

    train_step = training.Trainer._train_step
    monkeypatch.setattr(training.Trainer, "_train_step", note)
    train(recipe(tmp_path, tmp_path / "whole", **options))
    assert steps[:3] == [(0, 8), (2, 8), (3, 8)]
    assert [number for number, _ in steps[3:]] == list(range(5, 10))
    assert sum(labels for _, labels in steps[3:]) == 38 - 14
    assert [(r["images"], r["damaged"]) for r in records(tmp_path / "whole")] == [(24, 14)] * 2

    save, killed = Run.save_checkpoint, tmp_path / "killed"

    def save_and_be_killed(self: Run, name: str, checkpoint: dict[str, Any]) -> None:
        save(self, name, checkpoint)
        if checkpoint["step"] == step:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_and_be_killed)
        with pytest.raises(InterruptedError):
            train(recipe(tmp_path, killed, **options))
    steps.clear()
    jobs.resume(str(killed), {"run.resume": str(killed)})
    assert [number for number, _ in steps] == [n for n in (2, 3, 5, 6, 7, 8, 9) if n >= step]
    assert all(torch.equal(v, weights(killed)[n]) for n, v in weights(tmp_path / "whole").items())


@pytest.mark.parametrize(
    ("model", "images", "learned_from"),
    [("resnet18", 24, 22), ("resnet8", 25, 24)],  # batches of 2; a 13th of 1, which resnet8 takes
)
def test_an_image_that_damage_leaves_alone_in_its_batch(
    tmp_path: Path, model: str, images: int, learned_from: int
) -> None:
    """A ResNet-18 has one place at the end of 32 pixels: BatchNorm wants two images."""
    spoil(write_noise(tmp_path, "jpg", (images, 32, 32), classes=2), 5)
    options = {"data.on_error": "skip", "data.batch_size": 2, "model.name": model}
    train(recipe(tmp_path, tmp_path / "run", **options))
    assert [r["images"] for r in records(tmp_path / "run")] == [learned_from] * 2


def test_an_epoch_without_a_whole_image_is_an_error(tmp_path: Path) -> None:
    spoil(write_noise(tmp_path, "jpg", (12, 32, 32), classes=2), *range(12))
    with pytest.raises(FailureError, match="no image to learn from in steps 0 to 0"):
        train(recipe(tmp_path, tmp_path / "run", **{"data.on_error": "skip"}))


def test_checkpoints_come_when_due_at_each_best_and_at_the_end(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([20, 30, 10, 10, 10, 30, 10, 40, 10])
    saved: list[tuple[int, str]] = []
    monkeypatch.setattr(
        training, "evaluate", lambda *_, **__: Counts(100.0, next(accuracies), None, 100)
    )
    monkeypatch.setattr(
        Run, "save_checkpoint", lambda self, name, _: saved.append((len(self.records), name))
    )
    options = {"training.epochs": 9, "run.checkpoint_every": 4, "data.batch_size": 64}
    train(recipe(sample_folder, tmp_path / "run", **options))
    assert saved == [
        (1, "last"), (1, "best"), (2, "last"), (2, "best"), (4, "last"), (8, "last"), (8, "best"),
        (9, "last"),
    ]  # fmt: skip


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(recipe(sample_folder, run))
    expected = weights(run)
    for name in ("checkpoints/last", "checkpoints/best", "result.json"):
        (run / name).unlink()
    jobs.resume(str(run), {"run.resume": str(run)})
    assert "has no checkpoint: the run begins anew" in capsys.readouterr().err
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert len(records(run)) == 2
    (run / "checkpoints" / "last").unlink()
    for name in ("checkpoints/best", "result.json"):  # with either it had one
        with pytest.raises(FailureError, match="last, the run's checkpoint, is missing; put"):
            jobs.resume(str(run), {"run.resume": str(run)})
        (run / name).unlink()


def test_a_run_may_go_on_in_another_precision_and_says_from_where(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = tmp_path / "run", Run.save_checkpoint

    def save_and_be_killed(self: Run, name: str, checkpoint: dict[str, Any]) -> None:
        save(self, name, checkpoint)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_and_be_killed)
        with pytest.raises(InterruptedError):
            train(recipe(sample_folder, run))
    used: list[str] = []
    autocast = training.autocast
    monkeypatch.setattr(
        training, "autocast", lambda device, kind: used.append(kind) or autocast(device, kind)
    )
    jobs.resume(str(run), {"run.resume": str(run), "training.precision": "bf16"})
    assert used == ["bf16"] * 2  # the second epoch's steps
    assert len(records(run)) == 2
    environment = json.loads((run / "environment.json").read_text())
    assert environment["precision"] == "fp32"
    assert [(e["step"], e["precision"]) for e in environment["resumed"]] == [(2, "bf16")]


def test_resuming_refuses_another_recipe_another_file_and_no_run(
    sample_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(recipe(sample_folder, run, **{"training.epochs": 1}))
    with pytest.raises(UsageError, match=r"lr\.base cannot change"):
        jobs.resume(str(run), {"run.resume": str(run), "lr.base": "1"})
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("normalize: mean_std", "normalize: imagenet"))
    other = {"run.resume": str(run), "data.train": str(sample_folder / "val.beton")}
    with pytest.raises(FailureError, match="not the file this run began with"):
        jobs.resume(str(run), other)
    other = {"run.resume": str(run), "data.val": str(sample_folder / "train.beton")}
    with pytest.raises(FailureError, match=r"train\.beton is not the file this run began with"):
        jobs.resume(str(run), other)
    with pytest.raises(UsageError, match="no run there"):
        jobs.resume(str(tmp_path), {"run.resume": str(tmp_path)})
    (run / "checkpoints" / "last").write_bytes(b"half a checkpoint")
    with pytest.raises(FailureError, match="the run's checkpoint, is damaged; put a whole one"):
        jobs.resume(str(run), {"run.resume": str(run)})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    sample_folder: Path, tmp_path: Path
) -> None:
    values = recipe(sample_folder, tmp_path / "run", **{"lr.base": 1e30, "lr.schedule": "constant"})
    with pytest.raises(FailureError, match=r"not finite at step [1-9]\d* \(epoch \d+\)"):
        train(values)
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


@pytest.mark.parametrize("epochs", [{"training.iterations": 1, "training.epochs": None}, {}])
def test_a_validation_loss_that_is_not_finite_stops_the_run_and_keeps_nothing(
    sample_folder: Path, tmp_path: Path, epochs: dict[str, Any]
) -> None:
    # The only step of the first epoch has a loss of the first weights; what it makes of them has
    # none.
    options = {"lr.base": 1e30, "lr.schedule": "constant", "data.batch_size": 64}
    run = tmp_path / "run"
    with pytest.raises(
        FailureError, match=r"validation loss is not finite after step 1; .*none yet"
    ):
        train(recipe(sample_folder, run, **options, **epochs))
    assert records(run) == []
    assert list((run / "checkpoints").iterdir()) == []


def test_a_test_loss_that_is_not_finite_names_the_last_checkpoint(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []

    def evaluate(*arguments: Any, **_: Any) -> Counts:
        tested.append(arguments)
        return Counts(math.inf if len(tested) == 2 else 1.0, 1, 1, 1)

    monkeypatch.setattr(training, "evaluate", evaluate)
    run = tmp_path / "run"
    options = {"training.iterations": 1, "training.epochs": None, "data.split": 14}
    with pytest.raises(
        FailureError, match=f"the test loss is not finite .*: {run}/checkpoints/las"
    ):
        train(recipe(sample_folder, run, **options))


def test_iterations_end_inside_an_epoch_and_a_split_is_tested_at_the_end(
    sample_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {"training.iterations": 5, "training.epochs": None, "data.split": 14}
    result = train(recipe(sample_folder, run, **options))  # 50 images: 2 steps an epoch
    assert [(r["epoch"], r["step"], r["images"]) for r in records(run)] == [
        (1, 2, 50),
        (2, 4, 50),
        (3, 5, 32),
    ]
    assert result["epochs"] == 2.5
    assert result["images"] == 64  # of data.val, not the 14 held out


def test_early_stopping_waits_for_its_patience(sample_folder: Path, tmp_path: Path) -> None:
    # A rate so high that the validation loss does not go on falling.
    options = {"training.epochs": 20, "training.early_stop": 2, "lr.base": 2.0}
    run = tmp_path / "run"
    train(recipe(sample_folder, run, **options))
    losses = [record["val_loss"] for record in records(run)]
    assert len(losses) < 20
    assert len(losses) - 1 - int(np.argmin(losses)) == 2


def sgd_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: list[torch.Tensor], decay: float, step: int
) -> None:
    """Nesterov's momentum of 0.9 with an L2 penalty, at rate 0.01."""
    gradient = gradient + decay * weight
    state[0] = gradient if step == 1 else 0.9 * state[0] + gradient
    weight -= 0.01 * (gradient + 0.9 * state[0])


def adamw_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: list[torch.Tensor], decay: float, step: int
) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with betas of 0.8 and 0.999, at rate 0.01."""
    state[0] = 0.8 * state[0] + 0.2 * gradient
    state[1] = 0.999 * state[1] + 0.001 * gradient**2
    mean, square = state[0] / (1 - 0.8**step), state[1] / (1 - 0.999**step)
    weight -= 0.01 * (decay * weight + mean / (square.sqrt() + 1e-8))


def adam_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: list[torch.Tensor], decay: float, step: int
) -> None:
    """Kingma and Ba 2015, algorithm 1, with an L2 penalty."""
    adamw_step(weight, gradient + decay * weight, state, 0.0, step)


def nadam_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: list[torch.Tensor], decay: float, step: int
) -> None:
    """Dozat 2016, with its schedule of momentums (0.96, 0.004) and an L2 penalty."""
    gradient = gradient + decay * weight
    momentums = [0.8 * (1 - 0.5 * 0.96 ** (0.004 * number)) for number in range(1, step + 2)]
    before, after = math.prod(momentums[:-1]), math.prod(momentums)
    state[0] = 0.8 * state[0] + 0.2 * gradient
    state[1] = 0.999 * state[1] + 0.001 * gradient**2
    mean = (1 - momentums[-2]) / (1 - before) * gradient + momentums[-1] / (1 - after) * state[0]
    weight -= 0.01 * mean / ((state[1] / (1 - 0.999**step)).sqrt() + 1e-8)


@pytest.mark.parametrize(
    ("options", "update"),
    [
        ({"training.momentum": 0.9, "training.nesterov": True}, sgd_step),
        ({"training.optimizer": "adamw", "training.momentum": 0.8}, adamw_step),
        ({"training.optimizer": "adam", "training.momentum": 0.8}, adam_step),
        ({"training.optimizer": "nadam", "training.momentum": 0.8}, nadam_step),
    ],
)
def test_two_steps_are_those_of_a_loop_by_hand(
    sample_folder: Path, tmp_path: Path, options: dict[str, Any], update: Callable[..., None]
) -> None:
    common = {
        "training.iterations": 2,
        "training.epochs": None,
        "training.label_smoothing": 0.2,
        "training.weight_decay": 0.5,
        "training.decay_all": False,
        "training.seed": 3,
        "data.normalize": "imagenet",
        "lr.schedule": "constant",
        "lr.base": 0.01,
    }
    run = tmp_path / "run"
    train(recipe(sample_folder, run, **common, **options))

    with np.load(ROOT / "sample_data/cifar10-sample.npz") as arrays:
        chosen = np.sort(np.random.default_rng(0).permutation(3500)[:64])
        images, labels = arrays["images"][chosen], torch.from_numpy(arrays["labels"][chosen]).long()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inputs = torch.from_numpy((images / 255 - mean) / std).float().permute(0, 3, 1, 2).contiguous()
    torch.manual_seed(3)
    model, losses = build_model("resnet8", 10), []
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    states = {name: [torch.zeros_like(p)] * 2 for name, p in model.named_parameters()}
    order = torch.from_numpy(np.random.default_rng(3).permutation(64))
    for step, batch in enumerate(order.split(32), 1):
        log_probabilities = model(inputs[batch]).log_softmax(1)
        right = log_probabilities[torch.arange(32), labels[batch]]
        loss = -(0.8 * right + 0.2 * log_probabilities.mean(1)).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.item())
        for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
            decay = 0.0 if "bn" in name or "bias" in name else 0.5
            update(weight.data, gradient, states[name], decay, step)
    assert records(run)[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    found = weights(run)
    for name, weight in model.named_parameters():
        # Not one by one: AdamW's first step is 0.01 for the least gradient, rounding's too.
        assert (found[name] - weight).norm() < 0.02 * (weight - first[name]).norm(), name


def test_what_is_kept_and_tested_is_the_moving_average(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, torch.Tensor]] = []
    train_step = training.Trainer._train_step

    def step_and_look(self: training.Trainer, *batch: Any) -> None:
        train_step(self, *batch)
        trained.append({name: x.clone() for name, x in self.model.state_dict().items()})

    monkeypatch.setattr(training.Trainer, "_train_step", step_and_look)
    run = tmp_path / "run"
    options = {"training.ema": 0.7, "training.epochs": 4, "lr.base": 0.05}
    result = train(recipe(sample_folder, run, **options))
    expected = trained[0]
    for step, state in enumerate(trained[1:], 1):
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3))
        expected = {n: decay * x + (1 - decay) * state[n] for n, x in expected.items()}
    found = weights(run)
    for name, value in expected.items():
        if found[name].is_floating_point():  # else a count of batches
            torch.testing.assert_close(found[name], value, msg=name)
    checkpoint = run / "checkpoints" / "last"
    assert torch.load(checkpoint, weights_only=True)["trained"].keys() == found.keys()
    given = {"model.weights": str(checkpoint), "data.val": str(sample_folder / "val.beton")}
    config = configuration.build(TrainConfig, [("test", {**given, "training.precision": "fp32"})])
    assert jobs.evaluate(config, given)["loss"] == pytest.approx(result["loss"], rel=1e-6)


@pytest.mark.parametrize("count", [1, 6, 7])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_blends_images_with_the_batch_backwards(kind: str, count: int) -> None:
    mix = training.build_mixing(AugmentConfig(**{kind: 0.7}), smoothing=0.1, classes=5)
    assert mix is not None
    images = torch.arange(count * 3 * 8 * 9).reshape(count, 3, 8, 9).float()
    labels = torch.arange(count) % 5
    mixed, targets = mix(images.clone(), labels)
    even = count // 2 * 2
    others = torch.cat((images[:even].flip(0), images[even:]))
    one_hot = nn.functional.one_hot(labels, 5) * 0.9 + 0.1 / 5
    other_targets = torch.cat((one_hot[:even].flip(0), one_hot[even:]))
    if kind == "cutmix":
        assert ((mixed == images) | (mixed == others)).all()
        share = (mixed[0, 0] == images[0, 0]).float().mean()
    else:
        share = ((mixed[0] - others[0]) / (images[0] - others[0])).mean() if even else 1.0
        torch.testing.assert_close(mixed, share * images + (1 - share) * others, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        targets, (share * one_hot + (1 - share) * other_targets).float(), atol=1e-4, rtol=0
    )


def test_images_grow_when_the_recipe_says(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []

    def build(*arguments: Any, **options: Any) -> torch.nn.Module:
        model = build_model(*arguments, **options)
        model.register_forward_hook(lambda m, x, _: seen.append((m.training, x[0].shape[-1])))
        return model

    monkeypatch.setattr(jobs, "build_model", build)
    monkeypatch.setattr(jobs, "_check_fit", lambda *_, **__: None)
    options = {
        "training.epochs": 5, "data.start_resolution": 16, "data.resolution": 40,
        "data.growth": (0.2, 0.8), "test.resolution": 24,
    }  # fmt: skip
    train(recipe(sample_folder, tmp_path / "run", **options))
    assert [side for training, side in seen if training][::2] == [16, 16, 32, 32, 40]
    assert {side for training, side in seen if not training} == {24}


@pytest.mark.parametrize("protocol", ["ten_crop", "multiscale"])
def test_the_last_test_is_by_the_protocol_that_is_asked_for(
    sample_folder: Path, tmp_path: Path, protocol: str
) -> None:
    run = tmp_path / "run"
    options = {
        "test.protocol": protocol, "test.sides": (24, 40), "data.resolution": 24,
        "data.center_ratio": 0.75, "test.batch_size": 50,
    }  # fmt: skip
    result = train(recipe(sample_folder, run, **options))
    assert (result["protocol"], result["images"]) == (protocol, 64)
    assert result["loss"] != records(run)[-1]["val_loss"]  # of the centre
    given = {
        "model.weights": str(run / "checkpoints" / "last"), "test.protocol": protocol,
        "data.val": str(sample_folder / "val.beton"), "training.precision": "fp32",
        "test.sides": (24, 40),
    }  # fmt: skip
    found = jobs.evaluate(configuration.build(TrainConfig, [("test", given)]), given)
    assert found["protocol"] == protocol
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_the_model_sees_the_autocast_type_channels_last_and_is_compiled(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, compiled = [], []

    def look(model: Any, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        tensors = (inputs[0], model.layer1[0].conv1.weight)
        last = all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors)
        seen.append((model.training, len(inputs[0]), logits.dtype, last))

    def build(*arguments: Any, **options: Any) -> torch.nn.Module:
        model = build_model(*arguments, **options)
        model.register_forward_hook(look)
        return model

    class Compiled(torch.nn.Module):  # a real compile takes a minute
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            compiled.append(len(inputs))
            return self.model(inputs)

    monkeypatch.setattr(jobs, "build_model", build)
    monkeypatch.setattr(jobs, "_check_fit", lambda *_, **__: None)
    monkeypatch.setattr(torch, "compile", Compiled)
    options = {"training.precision": "bf16", "training.compile": True, "training.epochs": 1}
    train(recipe(sample_folder, tmp_path / "run", **options))
    assert seen == [
        (True, 32, torch.bfloat16, True),
        (True, 32, torch.bfloat16, True),
        (False, 64, torch.bfloat16, True),
    ]
    assert compiled == [32, 32]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam"])
def test_decay_leaves_out_norms_and_biases_where_asked(name: str) -> None:
    model = build_model("resnet8", 10)
    config = TrainingConfig(optimizer=name, weight_decay=0.1)
    (group,) = training.build_optimizer(model, config).param_groups
    assert group["weight_decay"] == 0.1
    decayed, free = training.build_optimizer(model, replace(config, decay_all=False)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    expected = sum("bn" in n or n.endswith("bias") for n, _ in model.named_parameters())
    assert len(free["params"]) == expected
    assert len(free["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def draw_from_all() -> list[float]:
    """What torch, NumPy and Python draw next."""
    numpy = [np.random.rand(), np.random.normal()]  # noqa: NPY002
    return [float(torch.rand(())), random.random(), *numpy]


def test_generators_go_on_from_where_they_were() -> None:
    generators.seed_generators(5)
    np.random.normal()  # noqa: NPY002  # which keeps a second draw back
    states = generators.generator_states()
    drawn = draw_from_all()
    generators.restore_generators(states)
    assert draw_from_all() == drawn


def test_ctrl_c_says_where_the_last_checkpoint_is(sample_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = recipe(sample_folder, run, **{"training.epochs": 1000})
    arguments = [f"--{name}={value}" for name, value in values.items()]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    while not (run / "checkpoints" / "last").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        f"stopped. Last checkpoint: {run}/checkpoints/last; go on with --run.resume={run}"
    )


@pytest.mark.parametrize("more", [{}, {"training.ema": 0.9}])
def test_a_checkpoint_of_another_place_is_refused_by_the_key(
    sample_folder: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    train(recipe(sample_folder, run, **{"training.epochs": 1, **more}))  # two steps
    last = run / "checkpoints" / "last"
    saved = torch.load(last, weights_only=True)
    (epoch,) = saved["records"]
    meter = {
        "sums": torch.zeros(3, dtype=torch.float64), "bad_step": torch.tensor(-1), "seen": 0,
        "classes": 10,
    }  # fmt: skip
    lies: list[tuple[dict[str, Any], str]] = [
        ({"step": 3}, "step: must be at most 2, got 3"),
        ({"records": []}, "records: 0 epochs at step 2"),
        ({"records": [epoch] * 2}, "records: 2 epochs at step 2"),
        ({"classes": saved["classes"][::-1]}, "classes: not those of the training file"),
        ({"meter": {**meter, "seen": 65}}, "meter: of more than 64 images"),
        ({"meter": {**meter, "classes": 9}}, "meter: of more than 64 images or other classes"),
        ({"damaged": {64: "x"}}, "damaged: samples that the training file does not have"),
        ({"dataset": "f" * 64}, "train.beton is not the file this run began with"),
        ({"model": {**saved["model"], "fc.bias": torch.zeros(9)}}, "model does not fit"),
        ({"trained": {}}, "trained does not fit" if more else ""),
    ]
    for change, expected in lies:
        torch.save({**saved, **change}, last)
        if expected:
            with pytest.raises(FailureError, match=re.escape(expected)) as caught:
                jobs.resume(str(run), {"run.resume": str(run)})
            assert "\n" not in str(caught.value)
    silent = {**epoch, **dict.fromkeys(("train_seconds", "wait_seconds", "seconds"), 0)}
    torch.save({**saved, "records": [silent]}, last)  # nothing is divided by these
    assert jobs.resume(str(run), {"run.resume": str(run)})["images"] == 64
