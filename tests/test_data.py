"""From a recipe to inputs: normalisation, splits, and what does not fit a file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_ffcv import data
from resnet_ffcv.config import DataConfig
from resnet_ffcv.data import Normalize, load_data, read_picture, split_indices
from resnet_ffcv.errors import FailureError, UsageError

CPU = torch.device("cpu")


def recipe(folder: Path, **options: object) -> DataConfig:
    files = {"train": str(folder / "train.beton"), "val": str(folder / "val.beton")}
    return DataConfig(**{**files, "num_workers": 1, "batch_size": 20, **options})


def sample_pixels() -> np.ndarray:
    """The 64 training images that the sample's files hold, by the documented draw."""
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        chosen = np.sort(np.random.default_rng(0).permutation(3500)[:64])
        return arrays["images"][chosen]


def test_normalize_is_the_formula_and_pixels_its_inverse() -> None:
    images = torch.randint(0, 256, (5, 7, 6, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    normalize = Normalize(mean.view(3, 1, 1), std.view(3, 1, 1))
    inputs = normalize(images)
    expected = (images.double().numpy() / 255 - mean.numpy()) / std.numpy()
    assert inputs.shape == (5, 3, 7, 6)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(normalize.pixels(inputs).numpy(), images.numpy() / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean_std", "mean", "pixel_mean", "imagenet"])
def test_normalisation_is_that_of_the_stored_training_pixels(
    sample_folder: Path, kind: str
) -> None:
    normalize = data.build_normalize(recipe(sample_folder, normalize=kind))
    pixels = sample_pixels() / 255
    mean = {
        "imagenet": np.array([0.485, 0.456, 0.406]),
        "pixel_mean": pixels.mean(0),
    }.get(kind, pixels.mean((0, 1, 2)))
    stds = {"imagenet": [0.229, 0.224, 0.225], "mean_std": pixels.std((0, 1, 2))}
    std = stds.get(kind, [1.0] * 3)
    found = normalize.mean.permute(1, 2, 0).squeeze().numpy()
    np.testing.assert_allclose(found, mean, atol=1e-6)
    np.testing.assert_allclose(normalize.std.flatten().numpy(), std, atol=1e-6)


def test_test_images_come_whole_and_in_order(sample_folder: Path) -> None:
    config = recipe(sample_folder, split=10)
    loaded = load_data(config, seed=0, test_batch_size=7, device=CPU)
    learn, held_out = split_indices(64, 10, 0)
    assert (len(loaded.train.indices), len(loaded.val.indices)) == (54, 10)
    assert loaded.test is not None
    found = np.concatenate([images.numpy().copy() for images, _ in loaded.val])
    np.testing.assert_array_equal(found, sample_pixels()[held_out.astype(int)])
    assert not set(learn.tolist()) & set(held_out.tolist())


@given(st.integers(1, 300), st.integers(0, 299), st.integers(0, 2**32))
def test_a_split_parts_the_images_for_good(samples: int, held_out: int, seed: int) -> None:
    if held_out >= samples:
        with pytest.raises(UsageError, match=r"data\.split"):
            split_indices(samples, held_out, seed)
        return
    learn, held = split_indices(samples, held_out, seed)
    assert sorted([*learn.tolist(), *held.tolist()]) == list(range(samples))
    assert len(held) == held_out
    np.testing.assert_array_equal(learn, split_indices(samples, held_out, seed)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resolution": 24}, UsageError, "data.crop=pad wants images of 24 x 24"),
        ({"train": "nowhere.beton"}, FailureError, "write_datasets.py"),
        ({"normalize": "pixel_mean", "crop": "center", "resolution": 24}, UsageError, "32 x 32"),
        ({"split": 64}, UsageError, "leaves none of the 64"),
    ],
)
def test_what_does_not_fit_the_file_is_named(
    sample_folder: Path, options: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        load_data(recipe(sample_folder, **options), seed=0, test_batch_size=8, device=CPU)


def test_files_of_different_classes_are_refused(sample_folder: Path, tmp_path: Path) -> None:
    for name in ("val.beton", "val.beton.json"):
        (tmp_path / name).write_bytes((sample_folder / name).read_bytes())
    manifest = json.loads((tmp_path / "val.beton.json").read_text())
    manifest["classes"][0] = "plane"
    (tmp_path / "val.beton.json").write_text(json.dumps(manifest))
    config = recipe(sample_folder, val=str(tmp_path / "val.beton"))
    with pytest.raises(FailureError, match="different classes"):
        load_data(config, seed=0, test_batch_size=8, device=CPU)


def test_more_memory_than_there_is_is_refused(
    sample_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 500)  # 250,000 bytes of memory
    with pytest.raises(FailureError, match=r"image\.max_resolution"):
        load_data(recipe(sample_folder), seed=0, test_batch_size=8, device=CPU)


def test_a_picture_is_read_as_a_test_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png", 10, 1.0), pixels[:, 3:13])
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png", 5, 0.5), pixels[2:7, 5:10])
    (tmp_path / "x.txt").write_text("no picture")
    for name in ("x.txt", "missing.png"):
        with pytest.raises(FailureError, match=name):
            read_picture(tmp_path / name, 10, 1.0)
