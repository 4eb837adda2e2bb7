"""The trainings behind docs/results.md, one after the other; what is stopped goes on where it was.

    python -m benchmarks.trainings --cifar cifar10-jpeg-q75 --imagenette imagenette-224

Writes the files that are missing from the two folders of images (train/ and test/ or val/, a folder
for each class), then runs what is not finished, into --folder. `benchmarks.accuracy` makes the
table. --only NAME runs those whose name begins so. All of them take a day or more of two cores.
Further options go to train.py, such as --data.num_workers=1; a run keeps those it began with.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_ffcv import commandline
from resnet_ffcv.commandline import console
from resnet_ffcv.errors import FailureError, UsageError

QUARTER = "--training.iterations=16000"
# What the images are: CIFAR-10's, but compressed again; half of Imagenette's, but squashed.
CIFAR, IMAGENETTE = "cifar10-jpeg-q75", "imagenette-224"


@dataclass(frozen=True)
class Training:
    """A run: its folder's name, the recipe, the images, what else is given, and its seed."""

    name: str
    recipe: str
    data: str  # a folder of data/
    options: tuple[str, ...] = ()
    seed: int = 0

    @property
    def run(self) -> str:
        return f"{self.name}-{self.seed}"


TRAININGS = (
    *(Training("rn20-quarter", "rn20", CIFAR, (QUARTER,), seed) for seed in (0, 1)),
    *(Training("rn32-quarter", "rn32", CIFAR, (QUARTER,), seed) for seed in (0, 1)),
    *(
        Training("rn20-45k-quarter", "rn20", CIFAR, (QUARTER, "--data.split=5000"), seed)
        for seed in (0, 1)
    ),
    Training("imagenette-fast", "imagenette_fast", IMAGENETTE),
    Training("imagenette-paper", "imagenette", IMAGENETTE),
    *(
        Training(
            "yardstick-ours",
            "imagenette",
            IMAGENETTE,
            ("--training.epochs=4",),
            seed,
        )
        for seed in (0, 1, 2)
    ),
    Training("rn20-full", "rn20", CIFAR),
)


def write_files(source: str | None, data: Path) -> None:
    """train.beton and val.beton from a folder of images, where they are not there yet."""
    if (data / "val.beton.json").exists():
        return
    if source is None:
        raise UsageError(f"{data} has no files yet: name the folder of images, see --help")
    run_script(
        ["write_datasets.py", "--source.name=imagefolder", f"--source.path={source}",
         f"--output.folder={data}"]
    )  # fmt: skip


def run_training(training: Training, data: Path, folder: Path, more: Sequence[str]) -> None:
    """Trains to the end, from the last checkpoint where there is one."""
    run = folder / training.run
    if (run / "result.json").exists():
        return
    if (run / "config.yaml").exists():
        run_script(["train.py", f"--run.resume={run}", *more])
        return
    run_script(
        ["train.py", "--config", f"rn_configs/{training.recipe}.yaml",
         f"--data.train={data / 'train.beton'}", f"--data.val={data / 'val.beton'}",
         f"--training.seed={training.seed}", f"--run.folder={run}", *training.options, *more]
    )  # fmt: skip


def run_script(command: Sequence[str]) -> None:
    """Runs one of the programs, without its last line, to its end.

    Raises:
        UsageError, FailureError: it has failed, and said why.
        KeyboardInterrupt: Ctrl-C has ended it.
    """
    console.print(f"python {' '.join(command)}", soft_wrap=True)
    code = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        kind = UsageError if code == 2 else FailureError
        raise kind(f"{command[0]} ended with exit code {code}, see above")


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.trainings", description=__doc__)
    parser.add_argument("--cifar", help="folder of CIFAR-10's images")
    parser.add_argument("--imagenette", help="folder of Imagenette's images")
    parser.add_argument("--data", default="data", help="where their files go")
    parser.add_argument("--folder", default="runs", help="where the runs go")
    parser.add_argument("--only", default="", help="runs whose names begin so")
    arguments, more = parser.parse_known_args(argv)
    chosen = [training for training in TRAININGS if training.run.startswith(arguments.only)]
    if not chosen:
        raise UsageError(
            f"--only {arguments.only}: the runs are {', '.join(t.run for t in TRAININGS)}"
        )
    data = Path(arguments.data)
    images = {CIFAR: arguments.cifar, IMAGENETTE: arguments.imagenette}
    for name in sorted({training.data for training in chosen}):
        write_files(images[name], data / name)
    for training in chosen:
        run_training(training, data / training.data, Path(arguments.folder), more)
    return {"runs": [training.run for training in chosen]}


if __name__ == "__main__":
    commandline.run_command(main)
