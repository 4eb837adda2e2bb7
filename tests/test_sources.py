"""Where images come from: every source, and what can be wrong with it."""

import errno
import hashlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv import cifar as cifar_module
from resnet_ffcv.config import SourceConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.sources import SAMPLE, Source, is_utf8, open_source, printable


def test_the_sample_is_cut_in_two() -> None:
    source = open_source(SourceConfig())
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        for name, part in (("train", slice(3500)), ("val", slice(3500, 4000))):
            split = source.splits[name]
            assert np.array_equal(split.items, arrays["images"][part])
            assert np.array_equal(split.labels, arrays["labels"][part])
            assert split.labels.dtype == np.int64
        assert source.classes == arrays["class_names"].tolist()
    assert source.classes[:2] == ["airplane", "automobile"]
    assert source.splits["val"].describe(7) == "image 7"


def folder(path: Path, name: str = "imagefolder") -> Source:
    return open_source(SourceConfig(name, str(path)))


PLAIN = {f"{split}/{kind}/1.png": b"" for split in ("train", "val") for kind in ("cat", "dog")}


def without(start: str) -> dict[str, bytes]:
    return {place: content for place, content in PLAIN.items() if not place.startswith(start)}


def test_folders_are_classes_in_order_of_name(make_folder: Callable[..., Path]) -> None:
    files = dict.fromkeys(
        ["train/b/2.JPEG", "train/b/10.jpg", "train/b/deep/1.png", "train/a/z.webp",
         "train/B/x.BMP", "val/B/1.png", "val/a/1.png", "val/b/1.gif"], b"",
    )  # fmt: skip
    path = make_folder(files)
    source = folder(path)
    assert source.classes == ["B", "a", "b"]
    train = source.splits["train"]
    names = [str(item.relative_to(path / "train")) for item in train.items]
    assert names == ["B/x.BMP", "a/z.webp", "b/10.jpg", "b/2.JPEG", "b/deep/1.png"]
    assert train.labels.tolist() == [0, 1, 2, 2, 2]
    assert train.describe(2) == str(path / "train/b/10.jpg")
    again = pickle.loads(pickle.dumps(train))
    assert again.items == train.items


def test_what_is_no_image_is_ignored_and_counted(make_folder: Callable[..., Path]) -> None:
    rest = ["train/cat/README.txt", "train/cat/Thumbs.db", "train/cat/none", "train/list.csv"]
    hidden = ["train/cat/.1.png", "train/.git/x.png", "train/dog/._1.png"]
    source = folder(make_folder({**PLAIN, **dict.fromkeys(rest + hidden, b"")}))
    assert source.classes == ["cat", "dog"]
    assert [len(split.labels) for split in source.splits.values()] == [2, 2]
    assert source.splits["train"].ignored == 3  # in class folders; hidden ones are not counted
    assert source.splits["val"].ignored == 0


def test_test_is_taken_where_there_is_no_val(make_folder: Callable[..., Path]) -> None:
    tested = {place.replace("val", "test"): content for place, content in PLAIN.items()}
    path = make_folder(tested)
    assert folder(path).splits["val"].items[0] == path / "test/cat/1.png"
    both = make_folder({**PLAIN, **tested})
    assert folder(both).splits["val"].items[0] == both / "val/cat/1.png"


def test_a_class_may_be_a_link(make_folder: Callable[..., Path]) -> None:
    path = make_folder(PLAIN)
    (path / "train/cat").rename(path / "elsewhere")
    (path / "train/cat").symlink_to(path / "elsewhere")
    assert len(folder(path).splits["train"].labels) == 2


BROKEN = {
    "no train": (without("train"), "has no train/"),
    "no val": (without("val"), "has no val/ and no test/"),
    "empty class": (
        {**without("val/dog"), "val/dog/notes.txt": b""},
        r"val/dog holds no images",
    ),
    "class missing in val": (
        without("val/dog"),
        r"differ: only \S+/train has dog; give",
    ),
    "class spelt otherwise": (
        {**without("val/dog"), "val/Dog/1.png": b""},
        r"only \S+/train has dog; only \S+/val has Dog; give",
    ),
    "no class folders": (
        {"train/1.png": b"", "val/1.png": b""},
        "train has no class folders: it must hold",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_named(make_folder: Callable[..., Path], kind: str) -> None:
    files, words = BROKEN[kind]
    path = make_folder(files)
    with pytest.raises(FailureError, match=words) as error:
        folder(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("below", ["train", "train/cat", "val/dog", "train/dog/deep/deeper"])
@pytest.mark.parametrize("how", ["cannot be listed", "cannot be entered", "is gone"])
def test_an_unreadable_folder_is_named(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, below: str, how: str
) -> None:
    path = make_folder({**PLAIN, "train/dog/deep/deeper/2.png": b"", "train/dog/3.png": b""})
    scandir, access = os.scandir, os.access
    number = errno.ENOENT if how == "is gone" else errno.EACCES

    def fail(folder: Path) -> object:
        if Path(folder) == path / below and how != "cannot be entered":
            raise OSError(number, os.strerror(number), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", fail)  # root may read everything
    monkeypatch.setattr(os, "access", lambda folder, mode: access(folder, mode) and not (
        Path(folder) == path / below and how == "cannot be entered"))  # fmt: skip
    with pytest.raises(FailureError, match=f"{path / below} cannot be read: {os.strerror(number)}"):
        folder(path)


def test_links_to_folders_in_a_class_are_told_of(make_folder: Callable[..., Path]) -> None:
    path = make_folder({**PLAIN, "more/7.png": b""})
    (path / "train/cat/linked").symlink_to(path / "more")
    (path / "train/cat/loop").symlink_to(path)
    (path / "train/cat/2.png").symlink_to(path / "more/7.png")
    (path / "train/cat/broken.png").symlink_to(path / "nothing")
    train = folder(path).splits["train"]
    assert [item.name for item in train.items] == ["1.png", "2.png", "broken.png", "1.png"]
    assert train.linked == tuple(str(path / "train/cat" / name) for name in ("linked", "loop"))


def test_a_class_whose_name_is_not_utf_8_is_named(make_folder: Callable[..., Path]) -> None:
    path = make_folder(PLAIN)
    for part in ("train", "val"):
        (path / part / "cat").rename(path / part / os.fsdecode(b"caf\xe9"))
    with pytest.raises(FailureError, match=r"whose name is not UTF-8, caf\\xe9; rename it"):
        folder(path)


@given(st.binary(min_size=1, max_size=20))
def test_printable_names_are_utf_8_and_keep_what_they_stand_for(name: bytes) -> None:
    text = printable(os.fsdecode(name))
    assert is_utf8(text)
    back = re.sub(
        rb"\\\\|\\x([0-9a-f]{2})",
        lambda found: bytes([int(found[1], 16)]) if found[1] else b"\\",
        text.encode(),
    )
    assert back == name


def test_many_missing_classes_are_cut_short(make_folder: Callable[..., Path]) -> None:
    files = {**PLAIN, **{f"train/extra{number:02}/1.png": b"" for number in range(30)}}
    with pytest.raises(FailureError, match=r"extra00, .*extra04 and 25 more"):
        folder(make_folder(files))


def test_imagenets_flat_val_is_explained(make_folder: Callable[..., Path]) -> None:
    files = {"train/n01440764/1.JPEG": b"", "val/ILSVRC2012_val_00000001.JPEG": b""}
    with pytest.raises(FailureError, match="val has no class folders: sort the images into"):
        folder(make_folder(files), "imagenet")


def test_imagenet_has_a_thousand_classes(make_folder: Callable[..., Path]) -> None:
    path = make_folder(PLAIN)
    with pytest.raises(FailureError, match=r"2 classes, ImageNet 1,000.*source\.name=imagefolder"):
        folder(path, "imagenet")
    names = {f"{split}/n{number:08}/1.JPEG": b"" for split in ("train", "val")
             for number in range(1000)}  # fmt: skip
    assert len(folder(make_folder(names, "whole"), "imagenet").classes) == 1000


def test_a_path_must_be_given_and_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"imagefolder needs source\.path"):
        open_source(SourceConfig("imagefolder"))
    with pytest.raises(UsageError, match="no such folder"):
        folder(tmp_path / "gone")


# CIFAR ----------------------------------------------------------------------------------


def images(seed: int) -> np.ndarray:
    """uint8 (4, 32, 32, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), np.uint8)


def batch(seed: int, key: str) -> bytes:
    planes = images(seed).transpose(0, 3, 1, 2).reshape(4, 3072)  # red, green, blue, by rows
    return pickle.dumps({"data": planes, key: [seed % 10] * 4})


def cifar(name: str) -> tuple[dict[str, bytes], dict[str, object], str, str]:
    """(files of the archive, torchvision's attributes that fit it, its folder, file name)."""
    names = [f"name{number}" for number in range(10)]
    if name == "cifar10":
        training = [f"data_batch_{number}" for number in range(1, 6)]
        tests, meta, key, labels = ["test_batch"], "batches.meta", "label_names", "labels"
        base, archive = "cifar-10-batches-py", "cifar-10-python.tar.gz"
    else:
        training, tests, meta, key = ["train"], ["test"], "meta", "fine_label_names"
        labels, base, archive = "fine_labels", "cifar-100-python", "cifar-100-python.tar.gz"
    files = {name: batch(seed, labels) for seed, name in enumerate(training + tests)}
    files[meta] = pickle.dumps({key: names})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    attributes: dict[str, object] = {
        "train_list": [[name, sums[name]] for name in training],
        "test_list": [[name, sums[name]] for name in tests],
        "meta": {"filename": meta, "key": key, "md5": sums[meta]},
    }
    return files, attributes, base, archive


@pytest.fixture(params=["cifar10", "cifar100"])
def archive(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """(name, a small archive of its form); no network."""
    from torchvision import datasets
    from torchvision.datasets import utils

    files, attributes, base, file_name = cifar(request.param)
    path = tmp_path / "there" / file_name
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{base}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    kind = getattr(datasets, request.param.upper())
    attributes["tgz_md5"] = hashlib.md5(path.read_bytes()).hexdigest()
    for name, value in attributes.items():
        monkeypatch.setattr(kind, name, value)

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    return request.param, path


@pytest.mark.parametrize("named", ["folder", "archive", "unpacked"])
def test_cifar_is_found_where_it_is(archive: tuple[str, Path], named: str) -> None:
    name, path = archive
    place = path if named == "archive" else path.parent
    if named == "unpacked":
        with tarfile.open(path) as tar:
            tar.extractall(path.parent, filter="data")
        path.unlink()
        place = next(path.parent.iterdir())
    source = open_source(SourceConfig(name, str(place)))
    count = 5 if name == "cifar10" else 1
    expected = np.concatenate([images(seed) for seed in range(count)])
    assert np.array_equal(source.splits["train"].items, expected)
    assert source.splits["train"].labels.tolist() == [s for s in range(count) for _ in range(4)]
    assert np.array_equal(source.splits["val"].items, images(count))
    assert source.splits["val"].labels.tolist() == [count] * 4
    assert source.classes == [f"name{number}" for number in range(10)]


def test_a_missing_or_damaged_cifar_says_what_to_do(archive: tuple[str, Path]) -> None:
    name, path = archive
    wrong = {"gone": path.parent / "gone", "damaged": path.parent}
    path.write_bytes(path.read_bytes()[:-100])
    for place in wrong.values():
        with pytest.raises(FailureError) as error:
            open_source(SourceConfig(name, str(place)))
        words = str(error.value)
        assert path.name in words
        assert str(place) in words
        assert "put the archive there yourself" in words


def test_a_cifar_that_changes_after_its_checksum_was_compared_is_not_read(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path = archive
    md5, expected = cifar_module._md5, open_source(SourceConfig(name, str(path)))

    def swap(content: bytes) -> str:
        path.write_bytes(b"another archive")
        return md5(content)

    monkeypatch.setattr(cifar_module, "_md5", swap)
    found = open_source(SourceConfig(name, str(path)))
    assert np.array_equal(found.splits["train"].items, expected.splits["train"].items)


def test_cifars_pickles_run_nothing(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    name, path = archive
    monkeypatch.setattr(cifar_module, "_read_archive", lambda _kind, _folder, sums: dict.fromkeys(
        sums, pickle.dumps({"data": Harm(), "labels": []})))  # fmt: skip
    with pytest.raises(FailureError, match=r"it holds posix\.mkdir, which CIFAR does not"):
        open_source(SourceConfig(name, str(path)))
    assert not (tmp_path / "harm").exists()


def test_a_downloaded_cifar_is_compared_and_kept(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    name, path = archive
    content, victim = path.read_bytes(), path.with_name("victim")
    victim.write_text("mine")
    path.unlink()
    path.symlink_to(victim)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    for given_bytes in (b"something else", content):
        monkeypatch.setattr(
            utils, "_urlretrieve", lambda _, place, c=given_bytes: Path(place).write_bytes(c)
        )
        if given_bytes == content:
            assert len(open_source(SourceConfig(name, str(path))).classes) == 10
        else:
            with pytest.raises(FailureError, match="has another MD5"):
                open_source(SourceConfig(name, str(path)))
    assert path.read_bytes() == content
    assert victim.read_text() == "mine"
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "victim"])
