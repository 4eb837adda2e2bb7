"""That every damage to a file is found and named, and none is where there is none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from betons import spoil, write_noise
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ffcv import beton
from resnet_ffcv.manifest import manifest_path, read_manifest
from resnet_ffcv.progress import Report
from resnet_ffcv.verify import verify

ROOT = Path(beton.__file__).parent.parent


def write(folder: Path, mode: str = "jpg", count: int = 300, side: int = 24) -> Path:
    return write_noise(folder, mode, (count, side, side), classes=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three pages, 300 raw images of 160 x 160."""
    return write(tmp_path_factory.mktemp("whole"), "raw", side=160)


def test_a_whole_file_is_whole(whole: Path) -> None:
    verdict = verify(whole, Report(), decode=True)
    assert verdict.whole
    assert (verdict.samples, len(verdict.checked)) == (300, 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_found(whole: Path, data: st.DataObject) -> None:
    size, tables = whole.stat().st_size, beton.read_image_tables(whole)
    borders = [0, 24, 24 + 2 * 1041, tables.data_start, tables.data_end, size]
    part = data.draw(st.integers(0, len(borders) - 2))
    place = data.draw(st.integers(borders[part], borders[part + 1] - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    with whole.open("r+b") as file:
        file.seek(place)
        (before,) = file.read(1)
        try:
            file.seek(place)
            file.write(bytes([before ^ bit]))
            file.flush()
            verdict = verify(whole, Report())
        finally:
            file.seek(place)
            file.write(bytes([before]))
    assert not verdict.whole
    assert verdict.problems
    if tables.data_start <= place < tables.data_end:
        page = (place - tables.data_start) // tables.page_size
        pages = (tables.starts.astype(int) - tables.data_start) // tables.page_size
        assert sorted(verdict.damaged) == np.flatnonzero(pages == page).tolist()
        assert verdict.problems == [f"{whole}: page {page} differs from the checksum"]


def test_a_cut_is_found(whole: Path, tmp_path: Path) -> None:
    content, path = whole.read_bytes(), tmp_path / "train.beton"
    manifest_path(path).write_bytes(manifest_path(whole).read_bytes())
    tables = beton.read_image_tables(whole)
    borders = [0, 24, 24 + 1041, 24 + 2 * 1041, tables.data_start, tables.data_end, len(content)]
    for cut in {max(0, border + step) for border in borders for step in (-24, -1, 0, 1)}:
        if cut < len(content):
            path.write_bytes(content[:cut])
            assert not verify(path, Report()).whole


def test_damage_without_a_manifest_is_found_by_decoding(tmp_path: Path) -> None:
    path = write(tmp_path)
    spoil(path, 7)
    assert list(verify(path, Report()).damaged) == list(range(300))  # one page
    manifest_path(path).unlink()
    assert verify(path, Report()).whole
    assert verify(path, Report(), decode=True).damaged == {7: "its JPEG is damaged"}


def test_a_file_damaged_throughout_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path, count=70)
    tables = beton.read_image_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.data_start)
        file.write(bytes(int(tables.sizes.sum())))
    manifest_path(path).unlink()
    assert sorted(verify(path, Report(), decode=True).damaged) == list(range(70))


def test_a_manifest_of_another_file_is_found(whole: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "other", "raw", side=160)
    content = json.loads(manifest_path(path).read_text())
    content |= {"classes": ["a"], "width": [1, 2, 3], "samples": 300}
    manifest_path(path).write_text(json.dumps(content))
    words = " ".join(verify(path, Report()).problems)
    assert "its labels go from 0 to 2, its manifest has 1 classes" in words
    assert "its widths (least, median, most) are [160, 160, 160]" in words
    other = read_manifest(whole)
    manifest_path(path).write_text(
        json.dumps(content | {"sha256": "0" * 64, "classes": other.classes})
    )
    assert any("SHA-256 differs" in problem for problem in verify(path, Report()).problems)


def test_what_stands_beside_a_file_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path)
    good = json.loads(manifest_path(path).read_text())
    mean = path.with_name(good["pixel_mean"])
    content = mean.read_bytes()
    for changed in (b"", content[:-9], content[:200] + b"?" * (len(content) - 200)):
        mean.write_bytes(changed)
        assert any("pixel_mean" in problem for problem in verify(path, Report()).problems)
    mean.write_bytes(content)
    assert verify(path, Report()).whole
    changes: list[dict[str, Any]] = [
        {"samples": "300"}, {"classes": 3}, {"pages": {**good["pages"], "size": None}},
        {"classes": "abc"}, {"classes": ["a", "b", "a"]}, {"std": [9, 9, 9]}, {"std": None},
        {"mean": [0.5]}, {"options": {**good["options"], "mode": "dct"}},
    ]  # fmt: skip
    for change in changes:
        manifest_path(path).write_text(json.dumps(good | change))
        assert not verify(path, Report()).whole


def test_an_unfinished_write_of_ffcv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    header = np.zeros((), beton.HEADER)
    header["version"], header["num_fields"], header["page_size"] = 2, 2, 1 << 23
    header["num_samples"] = 600
    path.write_bytes(header.tobytes() + bytes(50_000))
    (problem,) = verify(path, Report()).problems
    assert "its writing was not finished" in problem


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "write_datasets.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path)
    good = run("--verify", str(path), "--decode=true")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["whole"] is True
    assert "images: whether every one decodes" in good.stderr
    with path.open("r+b") as file:
        file.seek(beton.DEFAULT_PAGE_SIZE + 99)
        file.write(b"???")
    bad = run("--verify", str(path))
    assert bad.returncode == 1
    result = json.loads(bad.stdout)
    assert (result["whole"], result["damaged"]) == (False, list(range(300)))
    assert "samples 0 to 299: in a page that differs from its checksum" in bad.stderr
    assert "DAMAGED" in bad.stderr
    for arguments in (["--verify", "/nowhere"], ["--decode=true"], ["--verify", "x", "--decode=2"]):
        wrong = run(*arguments)
        assert (wrong.returncode, wrong.stdout) == (2, "")


def test_a_file_without_fields_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path)
    manifest_path(path).unlink()  # as of FFCV's writer
    assert verify(path, Report()).whole
    with path.open("r+b") as file:
        file.seek(2)
        file.write(bytes(2))
    verdict = verify(path, Report())
    assert not verdict.whole
    assert "has no fields" in verdict.problems[0]
