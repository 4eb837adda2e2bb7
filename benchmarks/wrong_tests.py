"""What errors in a test cost, on one set of weights: those of the reproduction this began with.

    python -m benchmarks.wrong_tests --weights runs/imagenette-paper-0/checkpoints/last --val FILE

Each test is done right and with one error: the ten crops are scored as ten images; they are as
large as the image, whose short side was made one pixel longer; accuracies are averaged over scales
where scores should be; colours are changed by 57 times the noise that was meant. The noise was an
error of its training; here it is shown to weights that were trained with the noise that was meant.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.photos import positive
from resnet_ffcv import augment, commandline, jobs, testing
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.config import DataConfig, ModelConfig, TestConfig, TrainConfig
from resnet_ffcv.data import Normalize, load_test_data, short_sides
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import read_weights
from resnet_ffcv.resized import ResizedImages
from resnet_ffcv.testing import Clock, Meter, Setting, mean_score

CPU = torch.device("cpu")
TOO_STRONG = 57.0  # its eigenvalues were those of pixels from 0 to 255, its pixels of deviation 1
PAPERS_NOISE = 0.1


class Noisy(nn.Module):
    """Normalises images, and adds AlexNet's colour noise of a deviation, seeded."""

    def __init__(self, normalize: Normalize, deviation: float) -> None:
        super().__init__()
        self.normalize, self.deviation = normalize, deviation
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        drawn = torch.randn(len(images), 3, generator=self.generator) * self.deviation
        along = drawn * torch.from_numpy(augment.EIGENVALUES).float()
        noise = along @ torch.from_numpy(augment.EIGENVECTORS).float().T
        inputs: Tensor = self.normalize(images) + noise[:, :, None, None] / self.normalize.std
        return inputs


def top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of rows of scores (n, classes) whose largest is the label's (n,), as train.py counts.

    In bf16 a row may have two largest.
    """
    meter = Meter(CPU)
    meter.add(scores, labels, torch.zeros(()))
    return meter.counts().top1


def score(
    model: nn.Module, data: DataConfig, test: TestConfig, setting: Setting
) -> tuple[Tensor, Tensor]:
    """(logits (n, views, classes), labels (n,)) of all images, by test.protocol."""
    images, _ = load_test_data(data, test, CPU)
    if isinstance(images, ResizedImages):
        scored = testing.score_whole_images(model, images, setting, Clock())
    else:
        scored = testing.score_views(model, images, setting, Clock(), flip=False)
    found = [(logits, labels.clone()) for logits, labels in scored]
    return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])


@torch.inference_mode()
def measure(model: nn.Module, config: TrainConfig, setting: Setting) -> dict[str, float]:
    """Top-1 in percent of each test, by its name."""
    data, test, found = config.data, config.test, {}

    def say(name: str, value: float) -> None:
        found[name] = value
        console.print(f"{name}: {value:.2f} %")

    center = replace(test, protocol="center")
    for name, noise in (("", 0.0), (", noise", 1.0), (", noise 57 times", TOO_STRONG)):
        noisy = replace(setting, normalize=Noisy(setting.normalize, noise * PAPERS_NOISE))
        logits, labels = score(model, data, center, noisy)
        say(f"centre{name}", top1(logits[:, 0], labels))
    ten = replace(test, protocol="ten_crop")
    whole = replace(data, center_ratio=data.resolution / (data.resolution + 1))
    for name, seen in (("ten crops", data), ("ten crops as large as the image", whole)):
        logits, labels = score(model, seen, ten, setting)
        say(name, top1(mean_score(logits, 1), labels))
        alone = top1(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))
        say(f"{name}, each alone", alone)
    sides = short_sides(data, test)
    each = []
    for side in sides:
        whole_images = replace(test, protocol="multiscale", sides=(side,))
        logits, labels = score(model, data, whole_images, setting)
        each.append(logits[:, 0])
        say(f"whole images at {side}", top1(logits[:, 0], labels))
    say("whole images, scores averaged", top1(mean_score(torch.stack(each), 0), labels))
    say("whole images, accuracies averaged", mean(top1(logits, labels) for logits in each))
    return found


def read_checkpoint(path: str) -> dict[str, Any]:
    """What a checkpoint of train.py holds, or its `--export` as safetensors.

    Raises:
        FailureError: it is none, and so does not say which classes and images it learned.
    """
    weights: dict[str, Any] = read_weights(path)
    if "classes" not in weights:
        raise FailureError(f"{path} is no checkpoint of train.py: it does not name its classes")
    return weights


def check_sizes(config: TrainConfig) -> None:
    """Raises UsageError where the images have no room for these tests, before the first of them."""
    side, data = config.data.resolution, config.data
    if config.test.sides and min(config.test.sides) < side:
        raise UsageError(f"--sides: the network sees {side} pixels at once, none may be less")
    if round(side / data.center_ratio) == side:
        raise UsageError(
            f"{config.model.weights} sees whole images: their ten crops are all alike; give "
            "weights that were trained with a data.center_ratio below 1"
        )


def sides(text: str) -> tuple[int, ...]:
    """An argument such as 224,256."""
    return tuple(positive(side) for side in text.split(","))


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.wrong_tests", description=__doc__)
    parser.add_argument("--weights", required=True, help="a checkpoint of train.py")
    parser.add_argument("--val", required=True, help=".beton to test on")
    parser.add_argument(
        "--sides", type=sides, metavar="N,N,...",
        help="short sides, pixels; else the paper's, in proportion",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    weights = read_checkpoint(arguments.weights)
    given = {"data.val": arguments.val, "model.weights": arguments.weights}
    asked = TrainConfig(
        data=DataConfig(val=arguments.val), model=ModelConfig(weights=arguments.weights)
    )
    config = jobs.adopt_checkpoint(asked, given, weights)
    if arguments.sides:
        config = replace(config, test=replace(config.test, sides=arguments.sides))
    check_sizes(config)
    _, classes = jobs.load_test(config, weights, CPU)
    model = jobs.build_network(config, len(classes), CPU)
    precision = jobs.pick_precision(config, CPU).training.precision
    found = measure(model, config, Setting(Normalize(**weights["normalize"]), CPU, precision))
    rows = [(name, f"{value:.2f} %") for name, value in found.items()]
    show_table(f"{arguments.weights} on {arguments.val}", ("test", "top-1"), rows)
    return found


if __name__ == "__main__":
    commandline.run_command(main)
