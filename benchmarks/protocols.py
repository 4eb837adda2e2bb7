"""The ten-crop test against torchvision's Resize and TenCrop, in every probability.

    python -m benchmarks.protocols --weights runs/imagenette-paper-0/checkpoints/last \\
        --images imagenette-224/val

Ours reads a raw .beton of the images, by the filter triangle; torchvision reads them as Pillow has
them. Says the largest difference, and how sure the weights are: on scores that are all alike
nothing could differ. Fails where it is more than 0.02, or they are not sure of half the images.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from benchmarks.photos import open_classes
from benchmarks.trainings import run_script
from benchmarks.wrong_tests import CPU, read_checkpoint, score
from resnet_ffcv import commandline, jobs
from resnet_ffcv.commandline import show_table
from resnet_ffcv.config import DataConfig, ModelConfig, TestConfig, TrainConfig
from resnet_ffcv.data import Normalize
from resnet_ffcv.errors import FailureError
from resnet_ffcv.testing import Setting, mean_score

BOUND = 0.02
SURE = 0.5  # median of the largest probability


@torch.inference_mode()
def by_torchvision(
    model: torch.nn.Module, folder: ImageFolder, side: int, short_side: int, normalize: Normalize
) -> torch.Tensor:
    """Softmax scores (n, classes) of the ten crops, averaged."""
    resize = v2.Compose([v2.ToImage(), v2.Resize(short_side)])
    model.eval()
    found = []
    with commandline.progress() as bar:
        task = bar.add_task("torchvision", total=len(folder), note="")
        for image, _ in folder:
            crops = torch.stack(functional.ten_crop(resize(image), [side, side]))
            inputs = normalize(crops.permute(0, 2, 3, 1))
            found.append(model(inputs).softmax(1).mean(0))
            bar.advance(task)
    return torch.stack(found)


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.protocols", description=__doc__)
    parser.add_argument("--weights", required=True, help="a checkpoint of train.py")
    parser.add_argument("--images", required=True, type=Path, help="folder of folders of images")
    arguments = parser.parse_args(argv)
    weights = read_checkpoint(arguments.weights)
    images = open_classes(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"  # the writer wants both splits
        source.mkdir()
        for split in ("train", "val"):
            (source / split).symlink_to(arguments.images.resolve())
        run_script(
            ["write_datasets.py", "--source.name=imagefolder", "--image.mode=raw",
             f"--source.path={source}", f"--output.folder={folder}"]
        )  # fmt: skip
        val = f"{folder}/val.beton"
        asked = TrainConfig(
            data=DataConfig(val=val, filter="triangle"),
            model=ModelConfig(weights=arguments.weights),
            test=TestConfig(protocol="ten_crop"),
        )
        given = {"data.val": val, "data.filter": "triangle", "model.weights": arguments.weights}
        config = jobs.adopt_checkpoint(asked, given, weights)
        model = jobs.build_network(config, len(weights["classes"]), CPU)
        normalize = Normalize(**weights["normalize"])
        with torch.inference_mode():
            setting = Setting(normalize, CPU, "fp32")
            logits, _ = score(model, config.data, config.test, setting)
            ours = mean_score(logits, 1).softmax(1)
    side = config.data.resolution
    short_side = round(side / config.data.center_ratio)
    theirs = by_torchvision(model, images, side, short_side, normalize)
    result = {
        "images": len(ours),
        "largest_difference": (ours - theirs).abs().max().item(),
        "mean_difference": (ours - theirs).abs().mean().item(),
        "median_of_largest_probability": ours.max(1).values.median().item(),
        "other_classes": int((ours.argmax(1) != theirs.argmax(1)).sum()),
    }
    rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in result.items()]
    show_table("ten crops, ours against torchvision's", ("", ""), rows)
    if result["largest_difference"] > BOUND:
        raise FailureError(f"a probability differs by more than {BOUND}")
    if result["median_of_largest_probability"] <= SURE:
        raise FailureError(f"the weights are too unsure to tell: their median is not above {SURE}")
    return result


if __name__ == "__main__":
    commandline.run_command(main)
