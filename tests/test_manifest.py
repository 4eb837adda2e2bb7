"""What stands beside a .beton: its keys, its bytes, and what is refused."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.manifest import (
    MANIFEST_LIMIT,
    Manifest,
    manifest_path,
    read_manifest,
    read_pixel_mean,
    spread,
    write_manifest,
)
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import write_dataset


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written(folder)` writes nine images; returns the training file."""

    def write(folder: str = "one", workers: int = 1) -> Path:
        items = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
        split = Split(items, np.arange(9) % 2)
        config = WriteConfig(
            output=OutputConfig(str(tmp_path / folder)),
            image=ImageConfig(mode="jpg", quality=80),
            writer=WriterConfig(workers, 5, 3),
        )
        source = Source("mine", ["a", "b"], {"train": split, "val": split})
        return write_dataset(source, config, Report())["train"].path

    return write


def test_its_keys_are_the_contract(written: Callable[..., Path]) -> None:
    path = written()
    content = json.loads(path.with_name("train.beton.json").read_text())
    assert list(content) == [
        "format_version", "source", "classes", "samples", "width", "height", "mean", "std",
        "pixel_mean", "options", "skipped", "images_sha256", "sha256", "pages",
    ]  # fmt: skip
    assert (content["format_version"], content["source"], content["samples"]) == (2, "mine", 5)
    assert content["classes"] == ["a", "b"]
    assert content["options"] == {
        "mode": "jpg", "max_resolution": None, "quality": 80, "keep_jpeg": True,
        "compress_probability": 0.5, "smart_threshold": 2.0, "accept_damaged": False,
        "apply_orientation": False,
        "limit": 5, "seed": 3, "on_error": "raise",
    }  # fmt: skip
    assert list(content["pages"]) == ["size", "first", "crc32", "head_crc32", "table_crc32"]
    assert re.fullmatch("[0-9a-f]{64}", content["sha256"])
    assert all(re.fullmatch("[0-9a-f]{8}", crc) for crc in content["pages"]["crc32"])


def test_same_source_and_options_give_the_same_bytes(written: Callable[..., Path]) -> None:
    one, two = written("one", 1), written("another", 2)
    names = sorted(path.name for path in one.parent.iterdir())
    assert names == sorted(path.name for path in two.parent.iterdir())
    assert "train.beton.json" in names
    for name in names:
        assert (one.parent / name).read_bytes() == (two.parent / name).read_bytes()


def test_it_reads_as_it_was_written(written: Callable[..., Path]) -> None:
    path = written()
    manifest = read_manifest(path)
    assert isinstance(manifest, Manifest)
    write_manifest(manifest, manifest_path(path))
    assert read_manifest(path) == manifest
    write_manifest(replace(manifest, classes=["é", "日本"]), manifest_path(path))
    assert read_manifest(path).classes == ["é", "日本"]


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: manifest_path(p).unlink(), "has no manifest .*write_datasets.py"),
    "no JSON": (lambda p: manifest_path(p).write_text("{"), "cannot be read"),
    "no text": (lambda p: manifest_path(p).write_bytes(b"\xff\xfe"), "cannot be read"),
    "a list": (lambda p: manifest_path(p).write_text("[]"), "cannot be read"),
    "no version": (lambda p: manifest_path(p).write_text("{}"), "cannot be read"),
    "a key missing": (lambda p: change(manifest_path(p), pages={"size": 3}), "cannot be read"),
    "a later version": (lambda p: change(manifest_path(p), format_version=3), "version 3, not 2"),
    "another file's": (lambda p: change(manifest_path(p), samples=6), "not of one write"),
    "a longer file": (lambda p: p.open("ab").write(bytes(24)), "not of one write"),
    "no file": (lambda p: p.unlink(), "has 0 bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_named(written: Callable[..., Path], kind: str) -> None:
    path = written()
    damage, words = BROKEN[kind]
    damage(path)
    with pytest.raises(FailureError, match=words) as error:
        read_manifest(path)
    assert path.name in str(error.value)


# What each key may be changed to, one at a time, and the key that the error must name.
PAGES: dict[str, list[Any]] = {
    "size": [0, -1, 1.5, 2**62, 4095, 2048, "8", None, True],
    "first": [0, -8_388_608, 8_388_609, 2**63, None],
    "crc32": [[], None, 3, ["zzzzzzzz"], ["0123abc"], ["0123abcd\n"], [7]],
    "head_crc32": ["", 5, "0123ABCD"],
    "table_crc32": [None, "0" * 9],
}
KEYS: dict[str, list[Any]] = {
    "format_version": ["2", 2.5, None],
    "source": ["", 3, None, "x" * 10_001],
    "classes": [[], 3, "ab", {"a": 1}, ["a", "a"], ["a", ""], ["a", 1], None, ["x" * 10_001, "y"]],
    "samples": [0, -1, 2.5, "5", 2**63, 10**400, True],
    "width": [[8, 8], [8, 8, 8, 8], [8, 7, 8], [9, 8, 8], [0, 8, 8], [8, 8, 65_536], 8, None],
    "height": [[8.5, 8, 8], ["8", "8", "8"]],
    "mean": [[0.5], [0.5] * 5, [0.5, 0.5, 1.1], [0.5, 0.5, -0.1], ["0.5"] * 3, 0.5, None],
    "std": [None, [9, 9, 9]],
    "pixel_mean": ["", "../train.beton.pixel_mean.npy", "/dev/zero", "other.npy", 3,
                   "train.beton.pixel_mean.npy\n"],
    "options": [[], "mode", None, {"mode": []}, {"mode": {"deep": 1}}],
    "skipped": [None, "a", [3]],
    "images_sha256": ["", "0" * 63, "g" * 64, 3],
    "sha256": [None, "0" * 64 + "\n"],
    "pages": [None, [], 3, {}],
}  # fmt: skip
NAMED = {"size": "size", "std": "mean|std", "mean": "mean|std"}


def test_a_value_that_makes_no_sense_is_named_with_its_key(written: Callable[..., Path]) -> None:
    path = written()
    good = json.loads(manifest_path(path).read_text())
    assert good["pixel_mean"] is not None
    cases = [(key, {**good, key: value}) for key, values in KEYS.items() for value in values]
    for key, values in PAGES.items():
        cases += [(key, {**good, "pages": {**good["pages"], key: value}}) for value in values]
    cases += [(key, {k: v for k, v in good.items() if k != key}) for key in good]
    for key, content in cases:
        manifest_path(path).write_text(json.dumps(content))
        with pytest.raises(FailureError, match=NAMED.get(key, key)) as error:
            read_manifest(path)
        words = str(error.value)
        assert f"manifest {manifest_path(path)} cannot be read: " in words
        assert "\n" not in words
        assert len(words) < len(str(path)) + 250


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "[" * 100_000, '{"a":' * 100_000, "9" * 100_000,
     '"\\udce9"', "\x00", '"\x1b[31m"'],
)  # fmt: skip
def test_what_is_no_plain_json_is_one_line(written: Callable[..., Path], text: str) -> None:
    path = written()
    good = manifest_path(path).read_text()
    places = ('"samples": 5', '"quality": 80', '"format_version": 2')
    good = good.replace("{", '{"later": {"version": 1},', 1)
    manifest_path(path).write_text(good)
    read_manifest(path)  # keys that are not known are ignored
    for place in places:
        manifest_path(path).write_text(good.replace(place, place[: place.index(": ") + 2] + text))
        with pytest.raises(FailureError, match=r"train\.beton\.json") as error:
            read_manifest(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < len(str(path)) + 250


def test_a_manifest_that_is_no_file_or_too_large_is_refused(written: Callable[..., Path]) -> None:
    path = written()
    place = manifest_path(path)
    content = place.read_text()
    place.write_text(content.ljust(MANIFEST_LIMIT))
    read_manifest(path)
    place.write_text(content.ljust(MANIFEST_LIMIT + 1))
    with pytest.raises(FailureError, match="has more than 67,108,864 bytes"):
        read_manifest(path)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(FailureError, match="is not a regular file"):
        read_manifest(path)
    place.unlink()
    place.symlink_to("/dev/zero")
    with pytest.raises(FailureError, match="is not a regular file"):
        read_manifest(path)


@given(sides=st.lists(st.integers(1, 65_535), min_size=1, max_size=30))
def test_spread_is_numpys_least_median_and_greatest(sides: list[int]) -> None:
    expected = [min(sides), int(np.median(sides)), max(sides)]
    assert spread(np.array(sides, np.uint16)) == expected


def test_a_mean_image_must_be_that_of_the_images(written: Callable[..., Path]) -> None:
    path = written()
    manifest = read_manifest(path)
    place = path.with_name("train.beton.pixel_mean.npy")
    whole, mean = place.read_bytes(), np.load(place)
    np.testing.assert_array_equal(read_pixel_mean(path, manifest), mean)
    unlike: list[Any] = [
        mean.astype(np.float64), mean[:4], mean[:, :, :2], 1 - mean, mean * np.nan,
        mean + 2, np.asfortranarray(mean), mean.astype(">f4"), np.array(["x"]),
        np.zeros(0, [("a", "f4")]), mean.astype(object),
    ]  # fmt: skip
    for array in unlike:
        np.save(place, array, allow_pickle=True)
        with pytest.raises(FailureError, match="the mean of"):
            read_pixel_mean(path, manifest)
    for content in (
        b"",
        whole[:-1],
        whole + b"\0",
        whole.replace(b"(8, 8, 3)", b"(8589934592, 8, 3)"),
    ):
        place.write_bytes(content)
        with pytest.raises(FailureError, match="the mean of"):
            read_pixel_mean(path, manifest)
    place.write_bytes(whole)
    for other in ({"width": [7, 8, 8]}, {"width": [257] * 3}):
        with pytest.raises(FailureError, match="cannot be the mean of"):
            read_pixel_mean(path, replace(manifest, **other))
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(FailureError, match="is not a regular file"):
        read_pixel_mean(path, manifest)
