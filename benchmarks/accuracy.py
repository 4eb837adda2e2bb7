"""Runs of train.py as a table and a picture: what was reached, against the paper.

    python -m benchmarks.accuracy runs/rn20-0 runs/rn20-1 --table table.md --picture curves.png

Runs whose recipes differ in the seed alone are one row, with mean and standard deviation. It is the
final epoch that is reported, never the best one: that would choose by the test images. --keep
copies what the table is made of, and small networks' weights; copies make the same table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_ffcv import commandline, jobs
from resnet_ffcv.commandline import show_table
from resnet_ffcv.config import ModelConfig, TrainConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole
from resnet_ffcv.models import build_model

# He et al. 2015: top-1 error, percent, by network, shortcut and protocol. Tables 2 to 4 (ImageNet)
# and 6 (CIFAR-10); 110 layers: best of 5 runs, 6.61 +- 0.16 over all. Of the very images alone: of
# folders of these names, as recipes have them, with so many images, and of no sample or copy.
PAPER_CIFAR10 = {
    ("resnet20", "A", "center"): 8.75,
    ("resnet32", "A", "center"): 7.51,
    ("resnet44", "A", "center"): 7.17,
    ("resnet56", "A", "center"): 6.97,
    ("resnet110", "A", "center"): 6.43,
}
PAPER_IMAGENET = {
    ("resnet18", "A", "ten_crop"): 27.88,
    ("resnet34", "A", "ten_crop"): 25.03,
    ("resnet34", "B", "ten_crop"): 24.52,
    ("resnet34", "C", "ten_crop"): 24.19,
    ("resnet50", "B", "ten_crop"): 22.85,
    ("resnet101", "B", "ten_crop"): 21.75,
    ("resnet152", "B", "ten_crop"): 21.43,
    ("resnet34", "B", "multiscale"): 21.84,
    ("resnet34", "C", "multiscale"): 21.53,
    ("resnet50", "B", "multiscale"): 20.74,
    ("resnet101", "B", "multiscale"): 19.87,
    ("resnet152", "B", "multiscale"): 19.38,
}
PAPER = {"cifar10": PAPER_CIFAR10, "imagenet": PAPER_IMAGENET}
# At least so many images to learn from, some of which may be held out, and just as many to test on.
WHOLE = {"cifar10": (45_000, 10_000), "imagenet": (1_200_000, 50_000)}

# What does not make a run another recipe's.
NOT_THE_RECIPE = {
    "training": {"seed", "device"},
    "run": {"folder", "resume", "checkpoint_every", "checkpoint_steps"},
    "data": {"num_workers"},
}

KEPT = ("config.yaml", "environment.json", "log.jsonl", "result.json", "curves.png")
WEIGHTS = "weights.safetensors"  # of networks of few parameters
MOST_PARAMETERS_KEPT = 500_000  # 2 MB


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of a run says of it."""

    folder: Path
    config: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def recipe(self) -> str:
        """The configuration, without what may differ between runs of a recipe."""
        kept = {
            section: {k: v for k, v in keys.items() if k not in NOT_THE_RECIPE.get(section, set())}
            for section, keys in self.config.items()
        }
        return json.dumps(kept, sort_keys=True)

    @property
    def shortcut(self) -> str | None:
        """A, B or C; None of networks that are not ours."""
        model = self.config["model"]
        with torch.device("meta"):
            spec: Any = build_model(model["name"], 10, shortcut=model["shortcut"]).spec
        found: str | None = spec["shortcut"]
        return found

    @property
    def data(self) -> str:
        return Path(self.config["data"]["train"]).parent.name

    @property
    def papers_error(self) -> float | None:
        """The paper's, where these are its network, images and test."""
        least, tested = WHOLE.get(self.data, (0, 0))
        if self.records[0]["images"] < least or self.result["images"] != tested:
            return None
        key = self.config["model"]["name"], self.shortcut or "", self.result["protocol"]
        return PAPER[self.data].get(key)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Where it began, and where it was gone on with."""
        return [self.environment, *self.environment.get("resumed", [])]


def read_run(folder: Path) -> FinishedRun:
    """A finished run's folder.

    Raises:
        FailureError: it is none, or it is not finished.
    """
    if not (folder / "config.yaml").exists():
        raise FailureError(f"{folder} is no run's folder: it has no config.yaml")
    if not (folder / "result.json").exists():
        raise FailureError(f"{folder} is not finished; go on with --run.resume={folder}")
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
        run = FinishedRun(
            folder,
            yaml.safe_load((folder / "config.yaml").read_text()),
            json.loads((folder / "environment.json").read_text()),
            json.loads((folder / "result.json").read_text()),
            [json.loads(line) for line in lines],
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FailureError(f"{folder} is damaged: {error}") from error
    if not run.records:
        raise FailureError(f"{folder} is damaged: log.jsonl is empty")
    return run


def keep_run(run: FinishedRun, folder: Path) -> None:
    """Copies what says what was reached into a folder of the run's name, without the checkpoints.

    The last weights of a small network become a file that train.py reads.

    Raises:
        FailureError: the folder cannot be written, or a file of the run cannot be read.
    """
    kept, weights = folder / run.folder.name, run.folder / WEIGHTS
    names = [*KEPT, WEIGHTS] if weights.exists() else KEPT  # it is a copy itself
    try:
        contents = {name: (run.folder / name).read_bytes() for name in names}
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(kept / name, lambda file, content=content: file.write(content))
    except OSError as error:
        raise FailureError(f"{run.folder} cannot be kept: {error}") from error
    if run.result["parameters"] <= MOST_PARAMETERS_KEPT and not weights.exists():
        last = str(run.folder / "checkpoints" / "last")
        asked = TrainConfig(model=ModelConfig(weights=last))
        jobs.export(asked, {"model.weights": last}, str(kept / WEIGHTS))


def group_runs(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs by recipe, named by what their folders' names have in common before the last hyphen.

    Raises:
        FailureError: two folders have one name.
    """
    names = [run.folder.name for run in runs]
    for run in runs:
        if names.count(run.folder.name) > 1:
            raise FailureError(
                f"{run.folder}: another run's folder is called {run.folder.name}, too; rename one"
            )
    ordered = sorted(runs, key=lambda run: (run.recipe, run.folder.name))
    groups = [list(group) for _, group in groupby(ordered, lambda run: run.recipe)]
    named = {
        group[0].folder.name.rpartition("-")[0] or group[0].folder.name: group for group in groups
    }
    if len(named) < len(groups):  # two recipes of one name
        named = {group[0].folder.name: group for group in groups}
    return dict(sorted(named.items()))


HEADER = (
    "runs", "network", "parameters", "data", "test", "paper's error", "error", "top-1", "epochs",
    "minutes", "images/s", "device", "commit",
)  # fmt: skip


def describe(name: str, group: Sequence[FinishedRun]) -> tuple[str, ...]:
    """A row of the table, after HEADER."""
    first = group[0]
    name_of, result, shortcut = first.config["model"]["name"], first.result, first.shortcut
    paper = first.papers_error
    top1 = [run.result["top1"] for run in group]
    minutes = [sum(record["seconds"] for record in run.records) / 60 for run in group]
    # Of an epoch in the middle, since a run may have stood still in one.
    rates = [median(record["images_per_s"] for record in run.records) for run in group]
    places = [place for run in group for place in run.environments]
    commits = sorted({_short_commit(place["commit"]) for place in places})
    return (
        f"{name} ({len(group)})",
        f"{name_of} {shortcut or ''}".strip(),
        f"{result['parameters']:,}",
        first.data,
        f"{result['protocol']}, {result['images']:,}",
        "-" if paper is None else f"{paper:.2f} %",
        f"{100 - mean(top1):.2f} %",
        f"{mean(top1):.2f}" + (f" +- {stdev(top1):.2f}" if len(top1) > 1 else "") + " %",
        f"{result['epochs']:.4g}",
        f"{mean(minutes):.1f}",
        f"{mean(rates):,.0f}",
        ", ".join(sorted({place["device"] for place in places})),
        ", ".join(commits),
    )


def _short_commit(commit: str | None) -> str:
    """Of a commit as `git describe` has it, nine digits and whether files were changed."""
    digits, dirty, _ = (commit or "-").partition("-dirty")
    return digits[:9] + dirty


def draw_runs(groups: dict[str, list[FinishedRun]]) -> Figure:
    """Training and validation error over epochs, and that of the last test (of other images where
    data.split holds some out to validate on), a panel for each recipe."""
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(groups) :]:
        axes.axis("off")
    for axes, (name, group) in zip(panels.flat, groups.items(), strict=False):
        for number, run in enumerate(group):
            epochs = [record["epoch"] for record in run.records]
            for kind, color in (("train", "tab:gray"), ("val", "tab:blue")):
                errors = [100 - record[f"{kind}_top1"] for record in run.records]
                label = {"train": "training", "val": "validation"}[kind] if not number else None
                axes.plot(epochs, errors, color=color, linewidth=1, label=label)
        final = mean(100 - run.result["top1"] for run in group)
        axes.axhline(final, color="tab:red", linewidth=0.8, linestyle="--", label="last test")
        axes.set_title(f"{name} ({len(group)}): {final:.2f} %", fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("error, %")
    panels[0, 0].legend(fontsize=8)
    return figure


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--table", help="a .md to write: the table, a row for each recipe")
    parser.add_argument("--picture", help="a .png to write: curves side by side")
    parser.add_argument("--keep", help="a folder that gets the runs without their checkpoints")
    arguments = parser.parse_args(argv)
    runs = [read_run(Path(folder)) for folder in arguments.runs]
    groups = group_runs(runs)
    rows = [describe(name, group) for name, group in groups.items()]
    for name, row in zip(groups, rows, strict=True):
        show_table(name, ("", ""), list(zip(HEADER[1:], row[1:], strict=True)))
    if arguments.table:
        lines = [HEADER, ["---"] * len(HEADER), *rows]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        write_whole(Path(arguments.table), lambda file: file.write(text.encode()))
    if arguments.picture:
        figure, path = draw_runs(groups), Path(arguments.picture)
        write_whole(path, lambda file: figure.savefig(file, format="png"))
    for run in runs if arguments.keep else []:
        keep_run(run, Path(arguments.keep))
    return {"rows": [dict(zip(HEADER, row, strict=True)) for row in rows]}


if __name__ == "__main__":
    commandline.run_command(main)
