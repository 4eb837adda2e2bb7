"""What stands beside a .beton: its keys, its bytes, and what is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.manifest import Manifest, manifest_path, read_manifest, write_manifest
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
