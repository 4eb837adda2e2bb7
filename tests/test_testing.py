"""Counts against a plain loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnet_ffcv import testing
from resnet_ffcv.config import DataConfig
from resnet_ffcv.data import Normalize, load_data
from resnet_ffcv.errors import FailureError
from resnet_ffcv.testing import Clock, Meter, evaluate

CPU = torch.device("cpu")
IDENTITY = Normalize(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("classes", [3, 10])
def test_a_meter_counts_as_numpy_does(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    meter, all_logits, all_labels = Meter(CPU), [], []
    for count in (7, 20, 1):
        logits = torch.randn(count, classes, generator=generator)
        labels = torch.randint(classes, (count,), generator=generator)
        meter.add(logits, labels, nn.functional.cross_entropy(logits, labels))
        all_logits.append(logits)
        all_labels.append(labels)
    logits = torch.cat(all_logits).double().numpy()
    labels = torch.cat(all_labels).numpy()
    ranks = (logits > logits[np.arange(28), labels][:, None]).sum(1)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    counts = meter.counts()
    assert counts.seen == 28
    assert counts.correct1 == (ranks < 1).sum()
    assert counts.correct5 == ((ranks < 5).sum() if classes > 5 else None)
    assert counts.loss == pytest.approx(-log_softmax[np.arange(28), labels].mean(), rel=1e-5)
    assert counts.top1 == pytest.approx(100 * (ranks < 1).mean())


def test_a_meter_names_the_first_step_that_is_not_finite() -> None:
    meter = Meter(CPU)
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 1.0]):
        before = meter.first_bad_step()
        assert before == (None if step < 2 else 1)
        meter.add(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), torch.tensor(loss), step)


def test_evaluation_sees_every_image_once(sample_folder: Path) -> None:
    config = DataConfig(
        train=str(sample_folder / "train.beton"),
        val=str(sample_folder / "val.beton"),
        num_workers=1,
    )
    data = load_data(config, seed=0, test_batch_size=15, device=CPU)
    seen = []

    class Recorder(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            assert not self.training
            seen.append(data.normalize.pixels(inputs))
            return torch.ones(len(inputs), 10)

    advanced: list[int] = []
    counts = evaluate(Recorder(), data.val, data.normalize, CPU, "fp32", advanced.append)
    assert advanced == [15, 15, 15, 15, 4]
    assert counts.seen == 64
    assert counts.loss == pytest.approx(np.log(10))
    chosen = np.sort(np.random.default_rng(0).permutation(500)[:64])
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        expected = arrays["images"][3500:][chosen] / 255
    np.testing.assert_allclose(torch.cat(seen).numpy(), expected, atol=1e-6)


def test_a_loader_that_loses_images_is_an_error() -> None:
    class Short:
        indices, fname = range(9), "x.beton"

        def __iter__(self):
            yield torch.zeros(8, 4, 4, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)

    with pytest.raises(FailureError, match="8 images were tested, it holds 9"):
        evaluate(lambda x: torch.zeros(len(x), 2), Short(), IDENTITY, CPU, "fp32")


def test_a_clock_leaves_out_the_first_wait_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(testing.time, "perf_counter", lambda: now[0])

    class Slow:
        indices, fname = range(12), "x.beton"

        def __iter__(self):
            for wait in (100.0, 1.0, 3.0):  # the first compiles FFCV's pipeline
                now[0] += wait
                yield torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)

    def model(inputs: torch.Tensor) -> torch.Tensor:
        now[0] += 10
        return torch.zeros(len(inputs), 2)

    clock = Clock()
    evaluate(model, Slow(), IDENTITY, CPU, "fp32", clock=clock)
    assert (clock.seconds, clock.waiting) == (34.0, 4.0)
    evaluate(model, Slow(), IDENTITY, CPU, "fp32", clock=clock)  # compiled by now
    assert (clock.seconds, clock.waiting) == (134.0, 104.0)
