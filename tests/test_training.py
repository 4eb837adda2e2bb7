"""The loop: it learns, resumes to the same weights, and stops when it should."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_ffcv import config as configuration
from resnet_ffcv import jobs, training
from resnet_ffcv.config import TrainConfig, TrainingConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model

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
        "training.precision": "bf16",
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


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    sample_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(recipe(sample_folder, run))
    expected = weights(run)
    for name in ("last", "best"):
        (run / "checkpoints" / name).unlink()
    jobs.resume(str(run), {"run.resume": str(run)})
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert len(records(run)) == 2


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
    with pytest.raises(UsageError, match="no run there"):
        jobs.resume(str(tmp_path), {"run.resume": str(tmp_path)})
    (run / "checkpoints" / "last").write_bytes(b"half a checkpoint")
    with pytest.raises(FailureError, match="cannot be read"):
        jobs.resume(str(run), {"run.resume": str(run)})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    sample_folder: Path, tmp_path: Path
) -> None:
    values = recipe(sample_folder, tmp_path / "run", **{"lr.base": 1e30, "lr.schedule": "constant"})
    with pytest.raises(FailureError, match=r"not finite at step [1-9]\d* \(epoch \d+\)"):
        train(values)
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
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
    training.seed_generators(5)
    np.random.normal()  # noqa: NPY002  # which keeps a second draw back
    states = training.generator_states()
    drawn = draw_from_all()
    training.restore_generators(states)
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
