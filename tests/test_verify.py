"""That every damage to a file is found and named, and none is where there is none."""

import contextlib
import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import betons
import numpy as np
import pytest
from betons import spoil, write_noise
from hypothesis import given, settings
from hypothesis import strategies as st

import write_datasets
from resnet_ffcv import beton
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.manifest import Manifest, Pages, manifest_path, read_manifest, write_manifest
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


def test_checksums_that_cannot_be_compared_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, "raw", count=3, side=16)
    for content, reason in (("{", "the manifest cannot be used"), (None, "there is no manifest")):
        if content is None:
            manifest_path(path).unlink()
        else:
            manifest_path(path).write_text(content)
        missing = write_datasets.main([f"--verify={path}"])["not_checked"]
        assert any(words.startswith(f"checksums: {reason}") for words in missing)


def test_a_limit_of_pixels_can_be_raised(tmp_path: Path) -> None:
    path = write(tmp_path, "raw", count=3, side=16)
    assert sorted(verify(path, Report(), decode=True, max_pixels=255).damaged) == [0, 1, 2]
    assert verify(path, Report(), decode=True, max_pixels=256).whole


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


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(UsageError, match=f"--verify {path}: not a regular file"):
            write_datasets.main(["--verify", str(path)])
        (problem,) = verify(path, Report()).problems
        assert problem == f"{path}: is not a regular file"


def test_a_file_of_no_samples_is_not_whole_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    fields = [(b"image", betons.RGB, b""), (b"label", betons.INT, b"")]
    path.write_bytes(betons.pack_file(fields, []))
    verdict = verify(path, Report(), decode=True)
    assert not verdict.whole
    assert "it has no samples" in verdict.problems[0]
    with pytest.raises(FailureError, match="it has no samples"):
        write_datasets.main(["--info", str(path)])


def test_a_file_that_cannot_be_read_to_its_end_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    for error in (OSError(errno.EIO, "Input/output error"), MemoryError()):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("resnet_ffcv.verify.compare", fail)
        verdict = verify(path, Report())
        assert len(verdict.problems) == 1
        assert str(path) in verdict.problems[0]


def test_pages_of_other_size_than_the_files_are_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = json.loads(manifest_path(path).read_text())
    pages = content["pages"]
    half = pages["size"] // 2
    content["pages"] = pages | {"size": half, "crc32": pages["crc32"] * 2}
    manifest_path(path).write_text(json.dumps(content))
    words = " ".join(verify(path, Report()).problems)
    assert f"its pages have {pages['size']:,} bytes from" in words
    assert f"its manifest says {half:,} from" in words


def test_another_quality_of_dct_than_the_manifests_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "dct", 3)
    assert verify(path, Report()).whole
    content = json.loads(manifest_path(path).read_text())
    content["options"]["quality"] = 91
    manifest_path(path).write_text(json.dumps(content))
    words = " ".join(verify(path, Report()).problems)
    assert "its images are of quality 90, its manifest says quality=91" in words


CHANGED: list[Any] = [None, 0, -1, 1.5, 2**63, True, "", "a", [], [0], {}, {"a": []}, [[]], 1e308]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_manifest_ends_in_anything_but_a_verdict(small: Path, data: st.DataObject) -> None:
    content = json.loads(manifest_path(small).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = content["pages"] if data.draw(st.booleans()) else content
        if not isinstance(place, dict) or not place:  # the first change may have made it so
            continue
        key = data.draw(st.sampled_from(sorted(place)))
        value = data.draw(st.sampled_from(CHANGED))
        if isinstance(place[key], list) and place[key] and data.draw(st.booleans()):
            place[key] = [*place[key][:-1], value]
        else:
            place[key] = value
    path = small.with_name("changed.beton")
    path.write_bytes(small.read_bytes())
    manifest_path(path).write_text(json.dumps(content))
    with contextlib.suppress(FailureError):
        read_manifest(path)
    for problem in verify(path, Report()).problems:
        assert "\n" not in problem
        assert "unexpected" not in problem


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples in a page of 4,096 bytes, with a manifest; it is whole."""
    path = tmp_path_factory.mktemp("small") / "small.beton"
    fields = [(b"image", betons.RGB, b""), (b"label", betons.INT, b"")]
    image = ((1, 4, 4), 48)
    content = bytes(betons.pack_file(fields, [[image, ((0,), None)], [image, ((1,), None)]]))
    path.write_bytes(content)
    (end,) = struct.unpack_from("<Q", content, 16)
    first, page = end - betons.PAGE, betons.PAGE
    manifest = Manifest(
        format_version=2, source="mine", classes=["a", "b"], samples=2, width=[4] * 3,
        height=[4] * 3, mean=None, std=None, pixel_mean=None, options={"mode": "raw"}, skipped=[],
        images_sha256="0" * 64, sha256=hashlib.sha256(content).hexdigest(),
        pages=Pages(
            page, first, [crc(content[first:end])], crc(content[:first]), crc(content[end:])
        ),
    )  # fmt: skip
    write_manifest(manifest, manifest_path(path))
    assert verify(path, Report(), decode=True).whole
    return path


def crc(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


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
