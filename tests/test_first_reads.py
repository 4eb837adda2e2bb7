"""Loader(verify="once"): any byte that differs from what was written is noticed when it is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from betons import write_noise

from resnet_ffcv import Loader
from resnet_ffcv.beton import read_tables
from resnet_ffcv.decoders import WholeImage
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.first_reads import FirstReads
from resnet_ffcv.kernels import status
from resnet_ffcv.stock import IntDecoder, OrderOption

SAMPLES = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw images of 480,000 bytes in three pages: more than one image in a page, and padding."""
    return write_noise(tmp_path_factory.mktemp("whole"), "raw", (SAMPLES, 400, 400))


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    for name in (whole.name, f"{whole.name}.json"):
        shutil.copy(whole.with_name(name), tmp_path)
    return tmp_path / whole.name


def load(path: Path, **options: Any) -> Loader:
    options = {"order": OrderOption.RANDOM, "verify": "once", "drop_last": False, **options}
    return Loader(path, 8, 2, pipelines={"image": [WholeImage((8, 8))], "label": [IntDecoder()]},
                  **options)  # fmt: skip


def flip(path: Path, place: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1 << bit]))


def test_a_whole_file_is_read_and_each_page_compared_once(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[tuple[int, int]] = []
    real = FirstReads._sum

    def count(self: FirstReads, begin: int, end: int) -> str:
        summed.append((begin, end))
        return real(self, begin, end)

    monkeypatch.setattr(FirstReads, "_sum", count)
    loader, plain = load(whole, seed=1), load(whole, seed=1, verify=None)
    for _ in range(3):
        for ours, theirs in zip(loader, plain, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    edges = [0, *(begin for begin, _ in sorted(summed[2:])), read_tables(whole).data_end]
    assert sorted(summed) == list(zip(edges, [*edges[1:], whole.stat().st_size], strict=True))
    assert len(summed) == 2 + 3


def test_pages_that_no_batch_reads_from_are_not_compared(path: Path) -> None:
    tables = read_tables(path)
    flip(path, int(tables.starts[-1]) + 5)
    loader = load(path, indices=range(5))
    assert sum(len(labels) for _, labels in loader) == 5
    assert loader.first_reads is not None
    assert loader.first_reads.compared.tolist() == [True, False, False]


def test_any_flipped_bit_of_a_page_is_noticed(path: Path) -> None:
    tables, rng = read_tables(path), np.random.default_rng(0)
    pages = ((tables.starts - np.uint64(tables.data_start)) // tables.page_size).astype(int)
    last_of_page = tables.starts[pages == 0][-1] + tables.sizes[0]
    places = [*rng.integers(tables.data_start, tables.data_end, 6), tables.data_start,
              last_of_page + 9, tables.data_end - 1]  # fmt: skip  # the last two are padding
    for place in map(int, places):
        bit = int(rng.integers(8))
        flip(path, place, bit)
        hurt = tables.samples[pages == (place - tables.data_start) // tables.page_size].tolist()
        with pytest.raises(FailureError, match=r"is damaged.*its page differs from its checksum"):
            list(load(path))
        skipping = load(path, on_error="skip")
        for _ in range(2):
            shown = [int(label) for _, labels in skipping for label in labels[:, 0]]
            assert sorted(shown) == sorted(set(range(SAMPLES)) - set(hurt))
        assert skipping.damaged == dict.fromkeys(hurt, status.MEANING[status.CHECKSUM])
        flip(path, place, bit)
    assert sum(len(labels) for _, labels in load(path)) == SAMPLES


def test_any_flipped_bit_of_the_tables_is_noticed(path: Path) -> None:
    tables, rng = read_tables(path), np.random.default_rng(1)
    size, metadata = path.stat().st_size, 24 + 2 * 1041
    places = [*rng.integers(0, metadata + 24 * SAMPLES, 40), *rng.integers(metadata, 8_000, 20),
              *rng.integers(tables.data_end, size, 20)]  # fmt: skip
    for place in map(int, places):
        bit = int(rng.integers(8))
        flip(path, place, bit)
        with pytest.raises((FailureError, UsageError)):
            load(path)
        flip(path, place, bit)
    load(path)


def test_verify_needs_the_manifest_of_the_file(path: Path) -> None:
    manifest = path.with_name(f"{path.name}.json")
    content = json.loads(manifest.read_text())
    content["pages"]["crc32"].append(content["pages"]["crc32"].pop(0))
    manifest.write_text(json.dumps(content))
    with pytest.raises(FailureError, match="its page differs"):
        list(load(path))
    content["pages"]["first"] //= 2
    content["pages"]["size"] //= 2
    content["pages"]["crc32"] *= 2
    manifest.write_text(json.dumps(content))
    with pytest.raises(FailureError, match="manifest"):
        load(path)
    manifest.unlink()
    with pytest.raises(UsageError, match=r"verify='once' needs the checksums in train\.beton"):
        load(path)
    load(path, verify=None)
    with pytest.raises(UsageError, match="verify='always'"):
        load(path, verify="always")
