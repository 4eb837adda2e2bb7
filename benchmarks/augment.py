"""Augmentations against torchvision's v2 on the same images, and against FFCV's decoding.

    python -m benchmarks.augment --photos FOLDER

CPU time of one thread, competitors in turn. Ours change a batch in place, torchvision's one image
after the other, as a tensor and as a picture of Pillow's, which is mostly faster: the ratio is to
the faster of both. The decoding that they are compared with is FFCV's random-resized crop from
JPEGs, the least that a pipeline of stock FFCV does.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks import photos, stock
from benchmarks.timing import Ratio, describe_run, interleave
from resnet_ffcv import augment, commandline
from resnet_ffcv.commandline import show_table
from resnet_ffcv.decoders import CenterCrop

DECODING = "FFCV decodes jpg"
# Each of ours with torchvision's; PCA colour and cutout it does not have.
OPERATIONS: dict[str, tuple[augment.Augmentation, Any]] = {
    "AutoAugment, ImageNet's": (augment.AutoAugment("imagenet"), v2.AutoAugment()),
    "AutoAugment, CIFAR-10's": (
        augment.AutoAugment("cifar10"), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    ),
    "RandAugment": (augment.RandAugment(), v2.RandAugment()),
    "TrivialAugmentWide": (augment.TrivialAugmentWide(), v2.TrivialAugmentWide()),
    "ColorJitter 0.4, hue 0.1": (
        augment.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    ),
    "RandomGrayscale 1": (augment.RandomGrayscale(1.0), v2.RandomGrayscale(1.0)),
    "RandomErasing 1": (augment.RandomErasing(1.0), v2.RandomErasing(1.0)),
    "PCAColour": (augment.PCAColour(), None),
    "Cutout 56": (augment.Cutout(56), None),
}  # fmt: skip


def our_run(operation: augment.Augmentation, images: np.ndarray) -> Callable[[], None]:
    """Changes a copy of all images; another epoch's each time."""
    work, indices, epoch = np.empty_like(images), np.arange(len(images)), 0

    def run() -> None:
        nonlocal epoch
        epoch += 1
        np.copyto(work, images)
        operation.augment(work, indices, np.uint64(epoch), threads=1)

    return run


def their_run(transform: Any, images: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for image in images:
            transform(image)

    return run


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.augment", description=__doc__)
    photos.add_arguments(parser)
    parser.add_argument("--side", type=photos.positive, default=224, help="pixels (224)")
    parser.add_argument("--passes", type=photos.positive, default=5, help="runs of each (5)")
    arguments = parser.parse_args(argv)
    originals, what = photos.load_photos(arguments)
    size = (arguments.side, arguments.side)
    images = np.stack([CenterCrop(size).show(image) for image in originals])
    pictures = [Image.fromarray(image) for image in images]
    tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images]
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        path = stock.write(Path(name) / "jpg.beton", originals, "jpg", arguments.quality)
        crop = stock.RandomResizedCropRGBImageDecoder(size)
        pipeline = stock.Pipeline(path, "jpg", [crop], batch=64)
        batches = pipeline.batches(len(originals))
        runs: dict[str, Callable[[], Any]] = {
            DECODING: lambda: [pipeline.run(batch) for batch in batches]
        }
        for operation, (ours, theirs) in OPERATIONS.items():
            runs[operation] = our_run(ours, images)
            if theirs is not None:
                runs[f"{operation}, tensor"] = their_run(theirs, tensors)
            if theirs is not None and not isinstance(theirs, v2.RandomErasing):  # of tensors alone
                runs[f"{operation}, Pillow"] = their_run(theirs, pictures)
        torch.set_num_threads(1)
        times = interleave(runs, arguments.passes, what="augment")
        torch.set_num_threads(threads)
    rows, ratios = [], {}
    for operation in OPERATIONS:
        seconds = times[operation]
        others = [times.get(f"{operation}, {kind}") for kind in ("tensor", "Pillow")]
        fastest = min(filter(None, others), key=median, default=None)
        ratios[operation] = Ratio.of(fastest, seconds) if fastest else None
        rows.append((
            operation, *(_microseconds(measured, images) for measured in (seconds, *others)),
            str(ratios[operation] or "-"), f"{median(seconds) / median(times[DECODING]):.2f}",
        ))  # fmt: skip
    rows.append((DECODING, _microseconds(times[DECODING], images), "-", "-", "-", "1"))
    show_table(
        f"{what}, {arguments.side} x {arguments.side}",
        ("", "us an image", "torchvision", "on Pillow", "x (spread)", "of FFCV's decoding"), rows,
    )  # fmt: skip
    return {"images": what, "seconds": times, "ratios": ratios, **describe_run()}


def _microseconds(seconds: list[float] | None, images: np.ndarray) -> str:
    return f"{median(seconds) / len(images) * 1e6:,.0f}" if seconds else "-"


if __name__ == "__main__":
    commandline.run_command(main)
