"""A plain training loop on torchvision's DataLoader, to compare our runs with.

    python -m benchmarks.yardstick --imagenette imagenette-224 --ours runs/yardstick-ours-*

Trains the network of our runs by their schedule, with their seeds and precision, from the folder
that their files were written from, by torchvision's bilinear filter; tests the centre crop. Ours
read JPEGs encoded again as dct, by the filter area: what is compared is all of both. Says the
means, and whether they differ by more than two standard errors of the difference. The recipe is
rn_configs/imagenette.yaml. What a seed has finished is kept in --folder. An hour on two cores.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.accuracy import FinishedRun, read_run
from benchmarks.photos import open_classes
from resnet_ffcv import augment, commandline, config
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.config import TrainConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.files import write_whole
from resnet_ffcv.manifest import read_manifest
from resnet_ffcv.models import build_model
from resnet_ffcv.schedules import learning_rate
from resnet_ffcv.testing import autocast

CPU = torch.device("cpu")
RECIPE = "rn_configs/imagenette.yaml"
FREE = {  # what runs of it may have otherwise
    *("data.train", "data.val", "data.num_workers", "training.seed", "training.epochs"),
    *("training.precision", "training.device", "run.folder", "run.resume"),
    *("run.checkpoint_every", "run.checkpoint_steps"),
}


class Lighting:
    """AlexNet's colour noise on floats from 0 to 1 (3, h, w), as it is usually written."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        weights = torch.randn(3) * self.deviation * torch.tensor(augment.EIGENVALUES)
        noise = torch.tensor(augment.EIGENVECTORS) @ weights
        return image + noise.float().view(3, 1, 1)


def build_loaders(recipe: TrainConfig, images: Path, mean_colour: list[float]) -> tuple[Any, Any]:
    """(training batches, test batches), by torchvision's transforms."""
    data = recipe.data
    sides = list(range(data.least_side, data.most_side + 1))
    normalize = v2.Normalize(mean_colour, [1.0] * 3)
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    training = v2.Compose(
        [v2.RandomShortestSize(sides), v2.RandomCrop(data.resolution), v2.RandomHorizontalFlip(),
         *to_float, Lighting(recipe.augment.pca), normalize]
    )  # fmt: skip
    side = round(data.resolution / data.center_ratio)
    test = v2.Compose([v2.Resize(side), v2.CenterCrop(data.resolution), *to_float, normalize])
    return (
        DataLoader(open_classes(images / "train", training), data.batch_size, shuffle=True,
                   num_workers=2, persistent_workers=True),
        DataLoader(open_classes(images / "val", test), recipe.test.batch_size, num_workers=2),
    )  # fmt: skip


def check_recipe(recipe: TrainConfig) -> None:
    """Raises UsageError where it is not the one that the loop below trains."""
    wanted = config.to_dict(config.build(TrainConfig, config.read_yaml(RECIPE)))
    for section, keys in config.to_dict(recipe).items():
        for name, value in keys.items():
            if value != wanted[section][name] and f"{section}.{name}" not in FREE:
                raise UsageError(
                    f"--ours: runs with {section}.{name}={value}; the plain loop trains {RECIPE}, "
                    f"which has {wanted[section][name]}"
                )


def train(recipe: TrainConfig, seed: int, loaders: tuple[Any, Any]) -> float:
    """Top-1 in percent of the last epoch."""
    epochs = recipe.training.epochs or 0
    torch.manual_seed(seed)
    batches, tests = loaders
    chosen, options = recipe.model, recipe.training
    model = build_model(chosen.name, 10, shortcut=chosen.shortcut, stride_in=chosen.stride_in).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay
    )
    step, top1, began = 0, 0.0, time.monotonic()
    for epoch in range(epochs):
        model.train()
        for images, labels in batches:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    recipe.lr, step, total_steps=epochs * len(batches),
                    steps_per_epoch=len(batches), in_epochs=True, losses=[],
                )  # fmt: skip
            with autocast(CPU, options.precision):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        model.eval()
        right = seen = 0
        with torch.inference_mode(), autocast(CPU, options.precision):
            for images, labels in tests:
                right += int((model(images).argmax(1) == labels).sum())
                seen += len(labels)
        top1 = 100 * right / seen
        minutes = (time.monotonic() - began) / 60
        console.print(f"seed {seed}, epoch {epoch + 1}: {top1:.1f} %, {minutes:.1f} minutes")
    return top1


def compare(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Means, their difference, and its standard error (Welch's)."""
    error = float(np.sqrt(sum(stdev(x) ** 2 / len(x) for x in (ours, theirs))))
    difference = mean(ours) - mean(theirs)
    return {
        "ours": list(ours), "theirs": list(theirs), "difference": difference,
        "standard_error": error, "alike": abs(difference) <= 2 * error,
    }  # fmt: skip


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.yardstick", description=__doc__)
    parser.add_argument("--imagenette", required=True, help="folder of images: train/ and val/")
    parser.add_argument("--ours", required=True, nargs="+", help="folders of our runs")
    parser.add_argument("--folder", default="yardstick", help="results so far")
    arguments = parser.parse_args(argv)
    runs: list[FinishedRun] = [read_run(Path(folder)) for folder in arguments.ours]
    seeds = [run.config["training"]["seed"] for run in runs]
    if len(set(seeds)) < max(2, len(runs)):
        raise UsageError("--ours: a standard error wants two runs or more, each of another seed")
    first = runs[0]
    if any(run.recipe != first.recipe for run in runs):
        raise UsageError("--ours: these runs are of more than one recipe")
    layers = [(str(first.folder), config_values(first.config))]
    recipe = config.build(TrainConfig, layers)
    check_recipe(recipe)
    manifest = read_manifest(Path(recipe.data.train))
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs = []
    for seed in seeds:
        kept = folder / f"{seed}.json"
        if not kept.exists():
            loaders = build_loaders(recipe, Path(arguments.imagenette), manifest.mean)
            top1 = train(recipe, seed, loaders)
            content = json.dumps({"top1": top1, "recipe": first.recipe}).encode()
            write_whole(kept, lambda file, content=content: file.write(content))
        result = json.loads(kept.read_text())
        if result.get("recipe") != first.recipe:
            raise FailureError(f"{kept} is of another recipe; give another --folder, or remove it")
        theirs.append(result["top1"])
    found = compare([run.records[-1]["val_top1"] for run in runs], theirs)
    rows = [
        (name, f"{mean(found[key]):.2f} %", f"{stdev(found[key]):.2f}", str(len(found[key])))
        for name, key in (("resnet_ffcv", "ours"), ("torchvision", "theirs"))
    ]
    show_table("top-1, centre crop", ("", "mean", "deviation", "runs"), rows)
    verdict = "within" if found["alike"] else "more than"
    console.print(
        f"difference {found['difference']:+.2f}, {verdict} two standard errors "
        f"of {found['standard_error']:.2f}"
    )
    return found


def config_values(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A run's configuration by "section.key"."""
    return {f"{section}.{key}": v for section, keys in sections.items() for key, v in keys.items()}


if __name__ == "__main__":
    commandline.run_command(main)
