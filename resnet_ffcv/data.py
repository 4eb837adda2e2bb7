"""A recipe -> its Loaders, for training and testing, and what turns their batches into inputs."""

import os
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from resnet_ffcv import augment, decoders
from resnet_ffcv.augment import Augmentation
from resnet_ffcv.beton import read_image_tables
from resnet_ffcv.config import AugmentConfig, DataConfig, ImageConfig, TestConfig, TrainConfig
from resnet_ffcv.encode import open_image, to_rgb
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.kernels.batches import Limits
from resnet_ffcv.loader import Loader
from resnet_ffcv.manifest import Manifest, contradictions, read_manifest, read_pixel_mean
from resnet_ffcv.models import IMAGENET_MEAN, IMAGENET_STD
from resnet_ffcv.pictures import read_picture_file
from resnet_ffcv.resized import ResizedImages
from resnet_ffcv.stock import IntDecoder, OrderOption, Squeeze, ToDevice, ToTensor

PAPERS_SIDES = (224, 256, 384, 480, 640)  # He et al. 2015, section 3.4, for views of 224 pixels

# What writes the folders of data/ that recipes read.
COMMANDS = {
    "sample": "python write_datasets.py",
    "cifar10": "python write_datasets.py --source.name=cifar10",
    "cifar100": "python write_datasets.py --source.name=cifar100",
    "imagenet": "python write_datasets.py --source.name=imagenet --source.path=ILSVRC2012 "
    "--image.max_resolution=500",
}

OTHER_COMMAND = (
    "`python write_datasets.py` writes the sample; with --source.name and --source.path it writes "
    "your own images"
)


class Normalize(nn.Module):
    """uint8 images (n, height, width, 3) -> float32 inputs (n, 3, height, width), channels-last.

    Buffers `mean` and `std`, of pixels from 0 to 1: (3, 1, 1), or (3, height, width) where each
    place has a mean of its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @property
    def kind(self) -> str:
        """What data.normalize calls it."""
        if self.mean.shape[1:] != (1, 1):
            return "pixel_mean"
        if torch.equal(self.mean.flatten(), torch.tensor(IMAGENET_MEAN)):
            return "imagenet"
        return "mean" if (self.std == 1).all() else "mean_std"

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def pixels(self, inputs: Tensor) -> Tensor:
        """The images (n, height, width, 3), float from 0 to 1, that gave `inputs`."""
        return (inputs * self.std + self.mean).permute(0, 2, 3, 1).clamp(0, 1)


@dataclass
class Data:
    """What a training run reads.

    `val` is shown after every epoch, one view of each image. `test`, at the end, is None where that
    would be the same once more.
    """

    train: Loader
    window: decoders.ImageDecoder  # of the training images
    val: Loader
    test: Loader | ResizedImages | None
    normalize: Normalize
    classes: list[str]
    fingerprint: str  # sha256 of the training file: a run goes on with the files it began with
    val_fingerprint: str  # of data.val

    @property
    def smallest_batch(self) -> int:
        """Images of an epoch's last batch, or where that is a whole one of each."""
        batch_size = self.train.batch_size
        return len(self.train.indices) % batch_size or batch_size


@dataclass(frozen=True)
class File:
    """A .beton and its manifest."""

    path: str
    manifest: Manifest

    @property
    def constant_size(self) -> tuple[int, int] | None:
        """(height, width) where all images have one size."""
        height, width = self.manifest.height, self.manifest.width
        if height[0] == height[2] and width[0] == width[2]:
            return height[0], width[0]
        return None


def load_data(
    config: DataConfig,
    test: TestConfig,
    seed: int,
    device: torch.device,
    changes: AugmentConfig | None = None,
) -> Data:
    """Opens the files of a recipe; `changes` is what is done to training images, and to no others.

    Raises:
        UsageError: a key that does not fit the file, such as a size that crop=pad cannot give.
        FailureError: a file that is missing, or files with different classes.
    """
    train_file, test_file = open_file(config.train, "data.train"), open_file(config.val, "data.val")
    check_same_classes(
        config.train, train_file.manifest.classes, config.val, test_file.manifest.classes
    )
    learn, held_out = split_indices(train_file.manifest.samples, config.split, seed)
    val_file, shown = (train_file, held_out) if config.split else (test_file, None)
    val = _view_loader(val_file, config, test, device, indices=shown)
    is_other_test = config.split or test.name != "center"
    changes = changes or AugmentConfig()
    window = training_window(train_file, config, whole=changes.policy_first)
    augmentations = build_augmentations(changes, config, train_file.manifest)
    return Data(
        train=_loader(
            train_file, config, device, [window, *augmentations], config.batch_size,
            order=OrderOption.RANDOM, indices=learn, seed=seed, on_error=config.on_error,
        ),
        window=window,
        val=val,
        test=_test_images(test_file, config, test, device) if is_other_test else None,
        normalize=build_normalize(config).to(device),
        classes=train_file.manifest.classes,
        fingerprint=train_file.manifest.sha256,
        val_fingerprint=test_file.manifest.sha256,
    )  # fmt: skip


def load_test_data(
    config: DataConfig, test: TestConfig, device: torch.device
) -> tuple[Loader | ResizedImages, list[str]]:
    """(images of data.val by test.protocol, class names), for evaluation without training."""
    file = open_file(config.val, "data.val")
    return _test_images(file, config, test, device), file.manifest.classes


def open_file(path: str, key: str) -> File:
    """A .beton with its manifest; its tables are checked, also against the manifest.

    Raises:
        FailureError: it is missing (the message has the command that writes it), damaged, or not
            what its manifest says, such as labels that are beyond its classes.
    """
    if not os.path.exists(path):
        command = COMMANDS.get(Path(path).parent.name)
        advice = f"`{command}` writes it" if command else OTHER_COMMAND
        raise FailureError(f"no file {path} ({key}): {advice}")
    manifest = read_manifest(Path(path))
    if found := contradictions(read_image_tables(Path(path)), manifest):
        raise FailureError(f"{path}: {'; '.join(found)}; write it again")
    return File(path, manifest)


def split_indices(samples: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices to learn from, indices held out): sorted, uint64; the same for the same seed."""
    if held_out >= samples:
        raise UsageError(f"data.split={held_out} leaves none of the {samples} training images")
    order = np.random.default_rng(seed).permutation(samples).astype(np.uint64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def build_normalize(config: DataConfig) -> Normalize:
    """The normalisation that `data.normalize` names; of data.train's pixels unless constant.

    A standard deviation counts as at least 1/255, one step of a pixel: a channel may be constant.
    """
    if config.normalize == "imagenet":
        return Normalize(_per_channel(IMAGENET_MEAN), _per_channel(IMAGENET_STD))
    manifest = open_file(config.train, "data.train").manifest
    if manifest.mean is None or manifest.std is None:
        raise FailureError(f"{config.train} was written for validation: its manifest has no mean")
    mean, std = _per_channel(manifest.mean), _per_channel(manifest.std)
    if config.normalize == "pixel_mean":
        mean = _pixel_mean(config, manifest)
    std = std.clamp(min=1 / 255)
    return Normalize(mean, std if config.normalize == "mean_std" else torch.ones_like(std))


def _per_channel(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)


def _pixel_mean(config: DataConfig, manifest: Manifest) -> Tensor:
    if manifest.pixel_mean is None:
        raise UsageError("data.normalize=pixel_mean needs training images of one size")
    mean = torch.from_numpy(read_pixel_mean(Path(config.train), manifest))
    if mean.shape[:2] != (config.resolution, config.resolution):
        raise UsageError(
            f"data.normalize=pixel_mean: the training images have {mean.shape[1]} x "
            f"{mean.shape[0]} pixels, data.resolution is {config.resolution}"
        )
    return mean.permute(2, 0, 1).contiguous()


def mean_colour(manifest: Manifest) -> tuple[int, int, int]:
    """Of a training file's pixels, 0 to 255; gray where the manifest has none."""
    red, green, blue = (round(255 * channel) for channel in manifest.mean or (0.5, 0.5, 0.5))
    return red, green, blue


def border_colour(config: DataConfig, manifest: Manifest) -> tuple[int, int, int]:
    """Of what data.crop=pad adds."""
    return mean_colour(manifest) if config.padding_fill == "mean" else (0, 0, 0)


def build_augmentations(
    config: AugmentConfig, data: DataConfig, manifest: Manifest
) -> list[Augmentation]:
    """The section `augment` as Operations, in the order of its keys."""
    made: list[Augmentation] = []
    if config.policy == "randaugment":
        made.append(augment.RandAugment(config.operations, config.magnitude))
    elif config.policy == "trivialaugment":
        made.append(augment.TrivialAugmentWide())
    elif config.policy:
        made.append(augment.AutoAugment(config.policy.removeprefix("autoaugment_")))
    if config.policy_first:
        fill = border_colour(data, manifest)
        made.append(augment.RandomCrop(data.padding, fill, flip=0.5 * data.flip))
    jitter = (config.brightness, config.contrast, config.saturation, config.hue)
    if any(jitter):
        made.append(augment.ColorJitter(*jitter))
    if config.grayscale:
        made.append(augment.RandomGrayscale(config.grayscale))
    if config.pca:
        made.append(augment.PCAColour(config.pca))
    mean = mean_colour(manifest)
    if config.erasing:
        made.append(augment.RandomErasing(config.erasing, fill=mean))
    if config.cutout:
        made.append(augment.Cutout(config.cutout, fill=mean))
    return made


def training_window(
    file: File, config: DataConfig, *, whole: bool = False
) -> decoders.ImageDecoder:
    """What shows a training image, by `data.crop`; `whole`: of crop=pad only the image.

    Raises:
        UsageError: a window that the file's images, or the other keys, do not allow.
    """
    size, flip, filter_ = (config.resolution,) * 2, 0.5 * config.flip, config.filter
    if config.crop == "random_resized":
        area = (config.min_area, 1.0)
        return decoders.RandomResizedCrop(size, area, flip=flip, filter=filter_)
    if config.crop == "scale":
        sides = (config.least_side, config.most_side)
        if not config.resolution <= config.least_side <= config.most_side:
            raise UsageError(
                f"data.least_side={sides[0]}, data.most_side={sides[1]}: wanted are sides from "
                f"data.resolution={config.resolution}, the smaller one first"
            )
        return decoders.ScaleCrop(size, sides, flip=flip, filter=filter_)
    if config.crop == "center":
        return decoders.ResizedCenterCrop(size, config.center_ratio, flip=flip, filter=filter_)
    if file.constant_size != size:
        raise UsageError(
            f"data.crop=pad wants images of {size[0]} x {size[0]} pixels (data.resolution), "
            f"{file.path} has others; try data.crop=random_resized"
        )
    if whole:
        return decoders.WholeImage(size)
    return decoders.PadCrop(size, config.padding, border_colour(config, file.manifest), flip)


def view_side(config: DataConfig, test: TestConfig) -> int:
    """Pixels a side of the views that a model is tested on."""
    return test.resolution or config.resolution


def short_sides(config: DataConfig, test: TestConfig) -> tuple[int, ...]:
    """Short sides of the whole images that test.protocol=multiscale shows, pixels.

    Raises:
        UsageError: one that is less than what the network sees at once.
    """
    side = view_side(config, test)
    if test.sides is None:
        return tuple(round(side * papers / PAPERS_SIDES[0]) for papers in PAPERS_SIDES)
    if min(test.sides) < side:
        raise UsageError(
            f"test.sides: a short side of {min(test.sides)} is less than the {side} pixels of "
            "test.resolution or data.resolution, which the network sees at once"
        )
    return test.sides


def view(config: TrainConfig) -> dict[str, Any]:
    """How a model is shown an image: what a checkpoint records of it, by the names of `data`."""
    data = config.data
    return {
        "resolution": view_side(data, config.test),
        "center_ratio": data.center_ratio,
        "filter": data.filter,
    }


def view_window(
    config: DataConfig, test: TestConfig, protocol: str = "center"
) -> decoders.ImageDecoder:
    """What shows an image to a model that is tested: one view, or ten.

    Raises:
        UsageError: ten crops that would all be alike, as of square images they are.
    """
    side = view_side(config, test)
    if protocol == "center":
        return decoders.ResizedCenterCrop((side, side), config.center_ratio, filter=config.filter)
    short_side = round(side / config.center_ratio)
    if short_side == side:
        raise UsageError(
            f"test.protocol=ten_crop: crops of {side} pixels of a short side of {short_side} are "
            "all alike, but for mirroring; give data.center_ratio, such as 0.875"
        )
    return decoders.TenCrop((side, side), short_side, filter=config.filter)


def _view_loader(
    file: File,
    config: DataConfig,
    test: TestConfig,
    device: torch.device,
    *,
    protocol: str = "center",
    indices: np.ndarray | None = None,
) -> Loader:
    window = view_window(config, test, protocol)
    views = int(np.prod(window.views, dtype=int)) * (1 + test.flips)
    return _loader(
        file, config, device, [window], max(1, test.batch_size // views),
        order=OrderOption.SEQUENTIAL, indices=indices, seed=0,
    )  # fmt: skip


def _test_images(
    file: File, config: DataConfig, test: TestConfig, device: torch.device
) -> Loader | ResizedImages:
    if test.protocol != "multiscale":
        return _view_loader(file, config, test, device, protocol=test.protocol)
    return ResizedImages(
        file.path,
        short_sides(config, test),
        resolution=view_side(config, test),
        batch_size=test.batch_size,
        num_workers=_workers(config),
        filter=config.filter,
        limits=Limits(config.max_pixels, config.max_memory),
        verify=config.verify,
    )


def _workers(config: DataConfig) -> int:
    return config.num_workers or len(os.sched_getaffinity(0))


def _loader(
    file: File,
    config: DataConfig,
    device: torch.device,
    operations: list[Any],
    batch_size: int,
    **options: Any,
) -> Loader:
    samples = file.manifest.samples if options["indices"] is None else len(options["indices"])
    move = [] if device.type == "cpu" else [ToDevice(device, non_blocking=True)]
    return Loader(
        file.path,
        min(batch_size, samples),
        num_workers=_workers(config),
        pipelines={
            "image": [*operations, ToTensor(), *move],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
        },
        drop_last=False,  # every sample once an epoch
        max_pixels=config.max_pixels,
        max_memory=config.max_memory,
        verify=config.verify,
        **options,
    )


def read_picture(path: Path, window: decoders.ImageDecoder) -> np.ndarray:
    """What `window` shows of a picture: uint8 (height, width, 3).

    Raises:
        FailureError: no such file, no picture, or a damaged one.
    """
    try:
        # Turned as people see it, though ImageNet's convention is not to: its photos are upright.
        options = ImageConfig(accept_damaged=True, apply_orientation=True)
        pixels, _, damaged = open_image(read_picture_file(path), options)
    except Exception as error:  # Pillow's plugins raise nearly anything
        reason = getattr(error, "strerror", None) or error  # without the path once more
        raise FailureError(f"picture {path} cannot be read: {reason}") from error
    if damaged:
        raise FailureError(f"picture {path} is damaged, says libjpeg; give a whole one")
    return window.show(to_rgb(pixels))


def check_same_classes(first: str, classes: list[str], second: str, others: list[str]) -> None:
    """Raises FailureError, with the first that differs, unless two files' classes are alike."""
    for number, (one, other) in enumerate(zip_longest(classes, others, fillvalue="none")):
        if one != other:
            raise FailureError(
                f"{first} and {second} have different classes, {len(classes):,} and "
                f"{len(others):,}; number {number} is {one} and {other}"
            )


def readable_name(name: str) -> str:
    """ImageNet's WordNet ids as words, such as n01440764 as tench; any other name as it is."""
    return _imagenet_words().get(name, name)


@cache
def _imagenet_words() -> dict[str, str]:
    words: dict[str, str] = ImageNetInfo().label_descriptions(as_dict=True)
    return words


def short_name(name: str) -> str:
    """The first of an ImageNet class's words, such as tench; any other name as it is."""
    words = readable_name(name)
    return name if words == name else words.split(",")[0]
