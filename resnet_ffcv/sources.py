"""Where images come from: the sample, CIFAR, folders of images."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_ffcv.cifar import read_cifar
from resnet_ffcv.config import SourceConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.pictures import readable_extensions

SAMPLE = Path(__file__).parent.parent / "sample_data" / "cifar10-sample.npz"
SAMPLE_TRAINING_IMAGES = 3_500  # of 4,000; the rest validates

IMAGENET_CLASSES = 1_000


@dataclass(frozen=True)
class Split:
    """Images with labels, int64 (n,). An item is a file, or uint8 (height, width, 3)."""

    items: Sequence[Path] | np.ndarray
    labels: np.ndarray
    ignored: int = 0  # files of other formats
    linked: tuple[str, ...] = ()  # links to folders inside class folders, which are not followed

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
    try:
        if not folder.is_dir():
            fault = "not a folder" if folder.exists() else "no such folder"
            raise UsageError(f"source.path={folder}: {fault}")
        return _open_folder(config.name, folder)
    except OSError as error:  # one unreadable folder would otherwise leave its images out
        raise FailureError(
            f"{error.filename or folder} cannot be read: {error.strerror}; make it readable, or "
            "move it out of the source"
        ) from error


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
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        arrays, classes = read_cifar(kind, folder)
    except Exception as error:  # of the network, the disk, or a damaged archive
        raise FailureError(
            f"{kind.filename} could not be downloaded to {folder}, nor is a whole one there "
            f"({error}); put the archive there yourself, or name its folder by source.path"
        ) from error
    return Source(name, classes, {split: Split(*part) for split, part in arrays.items()})


def _open_folder(name: str, folder: Path) -> Source:
    train = folder / "train"
    val = next((p for p in (folder / "val", folder / "test") if p.is_dir()), folder / "val")
    for part in (train, val):
        if not part.is_dir():
            others = "" if part == train else " and no test/"
            raise FailureError(
                f"{folder} has no {part.name}/{others}; it must hold train/CLASS/... and "
                "val/CLASS/..."
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
    entries = [entry for entry in _list(folder) if not entry.name.startswith(".")]
    classes = [entry.name for entry in entries if entry.is_dir()]
    for label in classes:
        if not is_utf8(label):
            raise FailureError(
                f"{folder} has a class folder whose name is not UTF-8, {printable(label)}; "
                "rename it"
            )
    if not classes:
        hint = "it must hold one folder for each class, with its images"
        if name == "imagenet" and entries:
            hint = "sort the images into folders by class (WordNet id), as those of train/ are"
        raise FailureError(f"{folder} has no class folders: {hint}")
    return classes


def _scan(folder: Path, classes: list[str]) -> Split:
    readable = readable_extensions()
    items: list[Path] = []
    labels: list[int] = []
    ignored = 0
    linked: list[str] = []
    for label, name in enumerate(classes):
        before = len(items)
        for path, is_link_to_folder in _walk(folder / name):
            if is_link_to_folder:
                linked.append(str(path))
            elif path.suffix.lower() in readable:
                items.append(path)
            else:
                ignored += 1
        if len(items) == before:
            raise FailureError(f"{folder / name} holds no images; remove the folder, or fill it")
        labels += [label] * (len(items) - before)
    return Split(items, np.array(labels, np.int64), ignored, tuple(linked))


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is a link to a folder) of all in a folder and below it, in order of name.

    Hidden files are left out. Not os.walk, which says nothing of what it cannot read.

    Raises:
        OSError: a folder cannot be read; its `filename` is that folder.
    """
    entries = _list(folder)
    folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            path = folder / entry.name
            yield path, entry.is_symlink() and path.is_dir()
    for name in folders:
        yield from _walk(folder / name)


def _list(folder: Path) -> list["os.DirEntry[str]"]:
    """What is in a folder, in order of name."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if not os.access(folder, os.X_OK):  # its names can be listed, but no file can be opened
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return found


def is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8; Python keeps other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""A file's name as text that has a UTF-8 form: other bytes as \xNN, a backslash as two."""
    return os.fsencode(name.replace("\\", "\\\\")).decode(errors="backslashreplace")
