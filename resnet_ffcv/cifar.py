"""CIFAR's archive -> arrays. What is parsed are the bytes whose checksum was compared."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv.locks import lock_folder
from resnet_ffcv.opening import find_temporary, read_file, temporary_path

MAX_BYTES = 1 << 28  # of the archive and of each file in it; the archives have 170 MB
SIDE = 32  # pixels

# What NumPy's arrays are made of in a pickle, by the old and the new names.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class Unpickler(pickle.Unpickler):
    """Reads arrays, numbers, texts and collections of them; nothing else is loaded or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which CIFAR does not")
        return super().find_class(module, name)


Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, 32, 32, 3), labels int64 (n,)


def read_cifar(kind: Any, folder: Path) -> tuple[dict[str, Arrays], list[str]]:
    """({"train": arrays, "val": arrays}, the classes' names).

    Args:
        kind: torchvision's class for the data set, for its names of files and their MD5.
        folder: of the archive or of what it unpacks to; without either, it is downloaded here.

    Raises:
        Exception: no network, no room, or a file that is not the data set's.
    """
    if folder.name in (kind.filename, kind.base_folder):  # the archive, or what it unpacks to
        folder = folder.parent
    meta = kind.meta
    sums = dict([*kind.train_list, *kind.test_list])
    sums[meta["filename"]] = meta["md5"]
    files = _read_unpacked(folder / kind.base_folder, sums) or _read_archive(kind, folder, sums)
    parts = {
        "train": [_parse(files[name]) for name, _ in kind.train_list],
        "val": [_parse(files[name]) for name, _ in kind.test_list],
    }
    classes = [str(name) for name in _parse(files[meta["filename"]])[meta["key"]]]
    return {split: _join(part, len(classes)) for split, part in parts.items()}, classes


def _read_unpacked(folder: Path, sums: dict[str, str]) -> dict[str, bytes] | None:
    """The files by name; None where one is missing or has another MD5."""
    try:
        files = {name: read_file(folder / name, MAX_BYTES) for name in sums}
    except OSError:
        return None
    return files if all(_md5(files[name]) == sums[name] for name in sums) else None


def _read_archive(kind: Any, folder: Path, sums: dict[str, str]) -> dict[str, bytes]:
    path = folder / kind.filename
    content = read_file(path, MAX_BYTES) if path.exists() else b""
    if _md5(content) != kind.tgz_md5:
        content = _download(kind, path)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for name, md5 in sums.items():
            member = archive.extractfile(f"{kind.base_folder}/{name}")
            files[name] = member.read(MAX_BYTES) if member else b""
            if _md5(files[name]) != md5:
                raise ValueError(f"{name} in it has another MD5 than {md5}")
    return files


def _download(kind: Any, path: Path) -> bytes:
    """The archive; it also gets its name, where the next run finds it."""
    from torchvision.datasets import utils

    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(path.parent, f"another process is downloading to {path.parent}"):
        for leftover in find_temporary(path):
            leftover.unlink()
        part = temporary_path(path, "part")
        try:
            utils.download_url(kind.url, str(part.parent), part.name)
            content = read_file(part, MAX_BYTES)
            if _md5(content) != kind.tgz_md5:
                raise ValueError(f"what {kind.url} gave has another MD5 than {kind.tgz_md5}")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _parse(content: bytes) -> dict[str, Any]:
    found = Unpickler(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(found, dict):
        raise ValueError(f"a file in it holds {type(found).__name__}, not a dict")
    return found


def _join(parts: list[dict[str, Any]], classes: int) -> Arrays:
    """(images, labels) of the files of a split."""
    planes = np.concatenate([part["data"] for part in parts])
    key = "labels" if "labels" in parts[0] else "fine_labels"
    labels = np.array([label for part in parts for label in part[key]])
    images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # stored as planes
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or len(images) != len(labels):
        raise ValueError("its arrays are not 8-bit images with a label each")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"it has labels {labels.min()} to {labels.max()} of {classes} classes")
    return images, labels.astype(np.int64)
