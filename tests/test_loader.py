"""What the Loader keeps from the user of FFCV: thread counts, hangs, threads left behind."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_ffcv import loader
from resnet_ffcv.loader import Loader


@pytest.fixture(scope="module")
def make_loader(sample_folder: Path) -> Callable[..., Loader]:
    def make(**options: Any) -> Loader:
        options = {"order": loader.OrderOption.RANDOM, "seed": 3, "drop_last": False, **options}
        return Loader(
            str(sample_folder / "train.beton"),
            20,
            num_workers=1,
            pipelines={"image": None, "label": [loader.IntDecoder(), loader.ToTensor()]},
            **options,
        )

    return make


def labels(epoch: Any) -> list[int]:
    return [int(label) for (batch,) in epoch for label in batch]


def test_every_sample_comes_once_in_an_order_of_seed_and_epoch(
    make_loader: Callable[..., Loader],
) -> None:
    first, again = make_loader(), make_loader()
    epochs = [labels(first), labels(first)]
    again.next_epoch = 1
    assert labels(again) == epochs[1] != epochs[0]
    expected = labels(make_loader(order=loader.OrderOption.SEQUENTIAL))
    assert len(expected) == 64
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(expected)
    order = np.random.default_rng(3).permutation(64)  # as FFCV documents it
    assert epochs[0] == [expected[index] for index in order]


def test_a_break_ends_the_decoding_thread(make_loader: Callable[..., Loader]) -> None:
    batches = make_loader()
    before = threading.active_count()
    for _ in range(10):
        for _batch in batches:
            break
    assert threading.active_count() == before


def test_an_error_of_the_decoding_thread_reaches_the_caller(
    make_loader: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_loader()

    def fail(*_: Any) -> None:
        raise RuntimeError("no such page")

    memory = type(batches.memory_manager.schedule_epoch([]))
    monkeypatch.setattr(memory, "start_batch", fail)
    with pytest.raises(RuntimeError, match="no such page"):
        labels(batches)


def test_torchs_threads_stay_the_users(sample_folder: Path) -> None:
    program = f"""
import torch
torch.set_num_threads(5)
from resnet_ffcv import loader
seen = {{torch.get_num_threads()}}
batches = loader.Loader({str(sample_folder / "train.beton")!r}, 16, num_workers=1, seed=0,
    pipelines={{"image": None, "label": [loader.IntDecoder(), loader.ToTensor()]}})
seen.add(torch.get_num_threads())
for _ in range(2):
    for batch in batches:
        seen.add(torch.get_num_threads())
seen.add(torch.get_num_threads())
print(seen)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "{5}\n"
