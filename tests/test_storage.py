"""A mapped file that changes; which of its parts are read ahead and dropped."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from betons import write_noise

from resnet_ffcv import Loader
from resnet_ffcv.beton import read_tables
from resnet_ffcv.decoders import WholeImage
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels import paging
from resnet_ffcv.resized import ResizedImages
from resnet_ffcv.storage import Storage

from ffcv.fields import BytesField  # isort: skip  # after ours, which keeps torch's threads
from ffcv.writer import DatasetWriter  # isort: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_noise(tmp_path / "written", "raw", (103, 20, 24))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def write_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8_500_000)
        file.write(b"other pixels")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5_000)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "grown": (grow, r"grew to [0-9,]+ of [0-9,]+ bytes since it was opened"),
    "cut": (cut, r"was cut to [0-9,]+ of [0-9,]+ bytes since it was opened"),
    "written over": (write_over, "was written to since it was opened"),
    "touched": (lambda path: os.utime(path, (1, 1)), "was written to since it was opened"),
}


def loader_of(path: Path) -> Loader:
    pipelines = {"image": [WholeImage()], "label": None}
    return Loader(path, 10, 1, drop_last=False, batches_ahead=1, pipelines=pipelines)


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_is_refused(path: Path, name: str) -> None:
    change, words = CHANGES[name]
    loader, views = loader_of(path), ResizedImages(
        str(path), [16, 20], resolution=16, batch_size=10, num_workers=1
    )  # fmt: skip
    batches, resized = iter(loader), iter(views)
    next(batches)
    next(resized)
    change(path)
    for epoch in (batches, resized):  # whose next batches may be ready from before the change
        with pytest.raises(FailureError, match=rf"train\.beton {words}.*; open it again"):
            list(epoch)
    for again in (loader, views):
        with pytest.raises(FailureError, match=words):
            next(iter(again))


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_while_it_is_opened_is_refused(path: Path, name: str) -> None:
    tables = read_tables(path)
    CHANGES[name][0](path)
    with pytest.raises(FailureError, match="changed while it was opened; open it again"):
        Storage(tables)


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("new"))
    path.with_name("new").rename(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [(replace, "was replaced by another file"), (Path.unlink, "was removed or renamed")],
)
def test_a_file_that_lost_its_name_is_read_on_with_one_warning(
    path: Path, change: Callable[[Path], None], words: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(path.parent)
    loader = loader_of(Path(path.name))
    expected = [images.copy() for (images,) in loader]
    monkeypatch.chdir("/")  # the path was meant from where it was opened
    epoch = iter(loader)
    found = [next(epoch)[0].copy()]
    change(path)
    with caplog.at_level(logging.WARNING, "resnet_ffcv"):
        found += [images.copy() for (images,) in epoch]
        assert not caplog.records
        found += [images.copy() for (images,) in loader]
        found += [images.copy() for (images,) in loader]
    assert [record.getMessage().count(words) for record in caplog.records] == [1]
    for images, right in zip(found, expected * 3, strict=True):
        assert np.array_equal(images, right)


class Texts:
    """Two fields of bytes; each third sample has an empty second one, the last an empty first."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = 300_000 * (index < 39), 9_000 * (index % 3 > 0)
        first, second = (np.full(size, index, np.uint8) for size in sizes)
        return first, second


def test_only_what_samples_have_is_read_ahead_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, threads = tmp_path / "texts.beton", torch.get_num_threads()
    writer = DatasetWriter(
        str(path), {"first": BytesField(), "second": BytesField()}, page_size=1 << 21, num_workers=1
    )
    writer.from_indexed_dataset(Texts())
    torch.set_num_threads(threads)
    tables = read_tables(path)
    table = {
        (start, size): sample
        for start, size, sample in zip(
            *(part.tolist() for part in (tables.starts, tables.sizes, tables.samples)), strict=True
        )
    }
    assert len(table) == 39 + 26
    storage = Storage(tables)
    for index in range(40):
        rows = [rows.tolist() for _, rows in storage.regions(np.array([index]))]
        found = [tables.samples[row] for field in rows for row in field]
        assert found == [index] * ((index < 39) + (index % 3 > 0))
    dropped: list[tuple[int, int]] = []

    def drop(
        _handle: int, address: int, length: int, starts: np.ndarray, sizes: np.ndarray
    ) -> None:
        assert length == path.stat().st_size
        assert address == loader.storage.address
        dropped.extend(zip(starts.tolist(), sizes.tolist(), strict=True))

    monkeypatch.setattr(paging, "drop", drop)
    loader = Loader(path, 7, 1, os_cache=False, drop_last=False)
    assert sum(len(batch[0]) for batch in loader) == 40
    assert sorted(dropped) == sorted(table)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(path: Path) -> None:
    tables = read_tables(path)
    path.unlink()
    with pytest.raises(FailureError, match="No such file"):
        Storage(tables)
    os.mkfifo(path)
    with pytest.raises(FailureError, match="is not a regular file"):
        Storage(tables)
