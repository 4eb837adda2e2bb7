"""Checkpoints as train.py saves them, made without a training."""

import functools
from typing import Any

import torch

from resnet_ffcv.config import TrainingConfig
from resnet_ffcv.generators import generator_states
from resnet_ffcv.models import build_model
from resnet_ffcv.training import build_optimizer


def record(epoch: int, accuracy: float) -> dict[str, Any]:
    """An epoch's figures; 10 steps an epoch."""
    seconds = {"train_seconds": 2.0, "wait_seconds": 0.5, "seconds": 2.5}
    losses = {"train_loss": 1 / epoch, "val_loss": 2.0}
    figures = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "val_top1": accuracy}
    return {**figures, **losses, **seconds, "train_top1": 9.0, "images_per_s": 100.0}


@functools.cache
def _trained(optimizer: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model("resnet8", 2).to(memory_format=torch.channels_last)
    made = build_optimizer(model, TrainingConfig(optimizer=optimizer))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    made.step()
    return model, made


def checkpoint(records: list[dict[str, Any]], optimizer: str = "sgd") -> dict[str, Any]:
    """Of a ResNet-8 for two classes, at the end of its last epoch."""
    model, made = _trained(optimizer)
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "trained": None,
        "spec": dict(model.spec),
        "classes": ["cat", "dog"],
        "normalize": {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)},
        "view": {"resolution": 32, "center_ratio": 1.0, "filter": "area"},
        "config": {},
        "dataset": "0" * 64,
        "val_dataset": "1" * 64,
        "step": records[-1]["step"],
        "meter": None,
        "damaged": {},
        "records": list(records),
        "optimizer": made.state_dict(),
        "scaler": {},
        "generators": dict(vars(generator_states())),
    }
