"""Where images come from: the sample, CIFAR, folders of images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_ffcv.config import SourceConfig
from resnet_ffcv.errors import FailureError, UsageError

SAMPLE = Path(__file__).parent.parent / "sample_data" / "cifar10-sample.npz"
SAMPLE_TRAINING_IMAGES = 3_500  # of 4,000; the rest validates

IMAGENET_CLASSES = 1_000


@dataclass(frozen=True)
class Split:
    """Images with labels, int64 (n,). An item is a file, or uint8 (height, width, 3)."""

    items: Sequence[Path] | np.ndarray
    labels: np.ndarray
    ignored: int = 0  # files that are no images

    def describe(self, index: int) -> str:
        """What to call an image in an error: its path, or its number."""
        item = self.items[index]
        return str(item) if isinstance(item, Path) else f"image {index}"


@dataclass(frozen=True)
class Source:
    """Splits `train` and `val`, and the classes' names; label i is classes[i]."""

    name: str
    classes: list[str]
    splits: dict[str, Split]


def open_source(config: SourceConfig) -> Source:
    """The source that the `source` section names.

    Raises:
        UsageError: no path given, or no folder there.
        FailureError: what is missing or does not match in it.
    """
    if config.name == "sample":
        return _open_sample()
    if config.name in ("cifar10", "cifar100"):
        return _open_cifar(config.name, Path(config.path or f"data/source/{config.name}"))
    if config.path is None:
        raise UsageError(
            f"source.name={config.name} needs source.path, a folder of train/ and val/"
        )
    folder = Path(config.path)
    if not folder.is_dir():
        raise UsageError(f"source.path={folder}: no such folder")
    return _open_folder(config.name, folder)


def _open_sample() -> Source:
    try:
        with np.load(SAMPLE) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
            classes = [str(name) for name in arrays["class_names"]]
    except OSError as error:
        raise FailureError(f"the sample {SAMPLE} cannot be read: {error}") from error
    cut = SAMPLE_TRAINING_IMAGES
    splits = {"train": Split(images[:cut], labels[:cut]), "val": Split(images[cut:], labels[cut:])}
    return Source("sample", classes, splits)


def _open_cifar(name: str, folder: Path) -> Source:
    # torchvision checks the archive's checksum before it unpickles what is in it.
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    if folder.name in (kind.filename, kind.base_folder):  # the archive, or what it unpacks to
        folder = folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        train, val = (kind(folder, train=part, download=True) for part in (True, False))
    except Exception as error:  # of the network, the disk, or a damaged archive
        raise FailureError(
            f"{kind.filename} could not be downloaded to {folder}, nor is a whole one there "
            f"({error}); put the archive there yourself, or name its folder by source.path"
        ) from error
    splits = {
        split: Split(dataset.data, np.array(dataset.targets, np.int64))
        for split, dataset in (("train", train), ("val", val))
    }
    return Source(name, list(train.classes), splits)


def _open_folder(name: str, folder: Path) -> Source:
    train = folder / "train"
    val = next((p for p in (folder / "val", folder / "test") if p.is_dir()), folder / "val")
    for part in (train, val):
        if not part.is_dir():
            others = "" if part == train else " and no test/"
            raise FailureError(
                f"{folder} has no {part.name}/{others}: wanted are {folder}/train/CLASS/... and "
                f"{folder}/val/CLASS/..."
            )
    classes = _class_folders(train, name)
    found = _class_folders(val, name)
    if found != classes:
        differ = [_only(train, classes, found), _only(val, found, classes)]
        differences = "; ".join(words for words in differ if words)
        raise FailureError(f"the class folders differ: {differences}; give both the same")
    if name == "imagenet" and len(classes) != IMAGENET_CLASSES:
        raise FailureError(
            f"{train} has {len(classes)} classes, ImageNet {IMAGENET_CLASSES:,}; for a part of it "
            "take source.name=imagefolder"
        )
    return Source(name, classes, {"train": _scan(train, classes), "val": _scan(val, classes)})


def _only(folder: Path, names: list[str], others: list[str]) -> str:
    only = sorted(set(names) - set(others))
    more = f" and {len(only) - 5:,} more" if len(only) > 5 else ""
    return f"only {folder} has {', '.join(only[:5])}{more}" if only else ""


def _class_folders(folder: Path, name: str) -> list[str]:
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        hint = "one folder a class, with its images, is wanted"
        if name == "imagenet" and entries:
            hint = "sort the images into folders by class (WordNet id), as those of train/ are"
        raise FailureError(f"{folder} has no class folders: {hint}")
    return classes


def _scan(folder: Path, classes: list[str]) -> Split:
    Image.init()
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    items: list[Path] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        before = len(items)
        for place, folders, files in os.walk(folder / name):
            folders.sort()
            visible = sorted(file for file in files if not file.startswith("."))
            images = [f for f in visible if os.path.splitext(f)[1].lower() in readable]
            items += [Path(place, file) for file in images]
            ignored += len(visible) - len(images)
        if len(items) == before:
            raise FailureError(f"{folder / name} holds no images; remove the folder, or fill it")
        labels += [label] * (len(items) - before)
    return Split(items, np.array(labels, np.int64), ignored)
