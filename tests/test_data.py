"""From a recipe to inputs: normalisation, splits, and what does not fit a file."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_ffcv import augment, beton, data
from resnet_ffcv.config import (
    AugmentConfig,
    DataConfig,
    ImageConfig,
    OutputConfig,
    SourceConfig,
    TestConfig,
    WriteConfig,
)
from resnet_ffcv.data import (
    Normalize,
    check_same_classes,
    load_data,
    load_test_data,
    read_picture,
    split_indices,
)
from resnet_ffcv.decoders import CenterCrop, ResizedCenterCrop
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import open_source
from resnet_ffcv.verify import verify
from resnet_ffcv.writer import write_dataset

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
    assert normalize.kind == kind
    found = normalize.mean.permute(1, 2, 0).squeeze().numpy()
    np.testing.assert_allclose(found, mean, atol=1e-6)
    np.testing.assert_allclose(normalize.std.flatten().numpy(), std, atol=1e-6)


def test_test_images_come_whole_and_in_order(sample_folder: Path) -> None:
    config = recipe(sample_folder, split=10)
    loaded = load_data(config, TestConfig(batch_size=7), 0, CPU)
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
        ({"train": "nowhere.beton"}, FailureError, "`python write_datasets.py` writes the sample"),
        ({"train": "data/cifar10/train.beton"}, FailureError, "--source.name=cifar10` writes it"),
        ({"val": "x/imagenet/val.beton"}, FailureError, "=imagenet --source.path=ILSVRC2012 "),
        ({"normalize": "pixel_mean", "crop": "center", "resolution": 24}, UsageError, "32 x 32"),
        ({"split": 64}, UsageError, "leaves none of the 64"),
        ({"crop": "scale", "least_side": 31}, UsageError, "least_side=31, data.most_side=480: wa"),
        ({"crop": "scale", "most_side": 99}, UsageError, "least_side=256, data.most_side=99: wan"),
    ],
)
def test_what_does_not_fit_the_file_is_named(
    sample_folder: Path, options: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        load_data(recipe(sample_folder, **options), TestConfig(batch_size=8), 0, CPU)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, []),
        ({"policy": "autoaugment_cifar10"}, [augment.AutoAugment]),
        ({"policy": "autoaugment_imagenet", "pca": 0.1}, [augment.AutoAugment, augment.PCAColour]),
        ({"policy": "randaugment", "operations": 3}, [augment.RandAugment]),
        ({"policy": "trivialaugment", "cutout": 8}, [augment.TrivialAugmentWide, augment.Cutout]),
        (
            {"policy": "autoaugment_cifar10", "policy_first": True, "pca": 0.1},
            [augment.AutoAugment, augment.RandomCrop, augment.PCAColour],
        ),
        (
            {"hue": 0.1, "grayscale": 0.2, "erasing": 0.3},
            [augment.ColorJitter, augment.RandomGrayscale, augment.RandomErasing],
        ),
    ],
)
def test_training_images_are_changed_and_no_others(
    sample_folder: Path, options: dict[str, Any], kinds: list[type]
) -> None:
    changes, config = AugmentConfig(**options), recipe(sample_folder, split=14)
    manifest = data.open_file(config.train, "data.train").manifest
    made = data.build_augmentations(changes, config, manifest)
    assert [type(operation) for operation in made] == kinds
    for operation in made:
        if isinstance(operation, augment.RandomErasing | augment.Cutout):
            np.testing.assert_allclose(operation.fill, 255 * np.array(manifest.mean), atol=0.5)
    plain, changed = (
        load_data(config, TestConfig(batch_size=8), 0, CPU, c) for c in (None, changes)
    )
    for name in ("train", "val", "test"):
        one, other = ([i.clone() for i, _ in getattr(d, name)] for d in (plain, changed))
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same == (name != "train" or not kinds), name


def test_a_policy_may_come_before_the_window(sample_folder: Path) -> None:
    """It sees whole images; what is added to them has the mean colour, however it changes them."""
    config = recipe(sample_folder, padding=20, padding_fill="mean", flip=False)
    manifest = data.open_file(config.train, "data.train").manifest
    mean = np.rint(255 * np.array(manifest.mean))
    shares = {}
    for first in (False, True):
        changes = AugmentConfig(policy="autoaugment_cifar10", policy_first=first)
        loaded = load_data(config, TestConfig(batch_size=8), 0, CPU, changes)
        images = np.concatenate([images.numpy().copy() for images, _ in loaded.train])
        edges = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # a window has a border on two sides
        shares[first] = (edges == mean).all(axis=2).any(axis=1).mean()
    assert shares[False] < 0.9 < shares[True]


def test_the_border_is_black_or_of_the_mean_colour(sample_folder: Path) -> None:
    for colour, expected in (("black", (0, 0, 0)), ("mean", None)):
        config = recipe(sample_folder, padding_fill=colour)
        loaded = load_data(config, TestConfig(batch_size=8), 0, CPU)
        manifest = data.open_file(config.train, "data.train").manifest
        mean = tuple(round(255 * channel) for channel in manifest.mean)
        assert loaded.window.fill == (expected or mean)


def test_the_papers_scale_augmentation(sample_folder: Path) -> None:
    config = recipe(sample_folder, crop="scale", least_side=40, most_side=64, resolution=32)
    images = torch.cat(
        [i.clone() for i, _ in load_data(config, TestConfig(batch_size=8), 0, CPU).train]
    )
    assert images.shape == (64, 32, 32, 3)
    assert len({i.numpy().tobytes() for i in images}) == 64


def test_a_window_may_be_smaller_than_a_pixel(sample_folder: Path) -> None:
    config = recipe(sample_folder, center_ratio=0.03)
    loader, _ = load_test_data(config, TestConfig(batch_size=64), CPU)
    ((images, _),) = [(images.numpy().copy(), labels) for images, labels in loader]
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        chosen = np.sort(np.random.default_rng(0).permutation(500)[:64])
        middle = arrays["images"][3500:][chosen, 15:17, 15:17]
    assert (images >= middle.min((1, 2), keepdims=True)).all()
    assert (images <= middle.max((1, 2), keepdims=True)).all()


def copy_files(sample_folder: Path, folder: Path) -> None:
    for name in ("train", "val"):
        for file in sample_folder.glob(f"{name}.*"):
            (folder / file.name).write_bytes(file.read_bytes())


def change_manifest(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_files_of_different_classes_are_refused(sample_folder: Path, tmp_path: Path) -> None:
    copy_files(sample_folder, tmp_path)
    change_manifest(tmp_path / "val.beton.json", classes=[str(number) for number in range(10)])
    with pytest.raises(FailureError, match="classes, 10 and 10; number 0 is airplane and 0"):
        load_data(recipe(tmp_path), TestConfig(batch_size=8), 0, CPU)
    with pytest.raises(FailureError, match="classes, 2 and 1; number 1 is y and none"):
        check_same_classes("a", ["x", "y"], "b", ["x"])


def test_a_file_whose_tables_are_damaged_is_refused(sample_folder: Path, tmp_path: Path) -> None:
    copy_files(sample_folder, tmp_path)
    path = tmp_path / "train.beton"
    content = bytearray(path.read_bytes())
    rows = beton.HEADER.itemsize + 2 * beton.FIELD.itemsize
    row = rows + 5 * beton.ROW_BYTES
    content[row + beton.RGB_ROW.fields["data_ptr"][1]] ^= 1  # it begins a byte later, or earlier
    path.write_bytes(content)
    with pytest.raises(FailureError, match=r"train\.beton is damaged: a sample without its region"):
        load_data(recipe(tmp_path), TestConfig(batch_size=8), 0, CPU)


LABELS = 24 + 2 * 1041 + 16  # of the first sample, in the file; rows have 24 bytes


@pytest.mark.parametrize(("label", "words"), [(-100, "-100 to 9"), (10, "0 to 10"), (2**62, "")])
def test_labels_beyond_the_classes_are_refused_wherever_a_file_is_opened(
    sample_folder: Path, tmp_path: Path, label: int, words: str
) -> None:
    for name in ("train", "val"):
        copy_files(sample_folder, tmp_path)
        with (tmp_path / f"{name}.beton").open("r+b") as file:
            file.seek(LABELS + 5 * beton.ROW_BYTES)
            file.write(label.to_bytes(8, "little", signed=True))
        found = rf"{name}\.beton: its labels go from {words}.*, its manifest has 10 classes"
        for config in (recipe(tmp_path), recipe(tmp_path, split=10)):
            with pytest.raises(FailureError, match=found):
                load_data(config, TestConfig(batch_size=8), 0, CPU)
        if name == "val":
            with pytest.raises(FailureError, match=found):
                load_test_data(recipe(tmp_path), TestConfig(batch_size=8), CPU)
            with pytest.raises(FailureError, match=found):
                data.open_file(str(tmp_path / "val.beton"), "data.val")
        assert any(
            re.search(found, p) for p in verify(tmp_path / f"{name}.beton", Report()).problems
        )


def test_a_manifest_that_contradicts_its_file_is_refused(
    sample_folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, object]] = {
        "its labels go from 0 to 9, its manifest has 9 classes": {"classes": list("abcdefghi")},
        r"its widths .* are \[32, 32, 32\], its manifest says \[1, 2, 3\]": {"width": [1, 2, 3]},
        "its images are of the form rgb, its manifest says mode='dct'": {
            "options": {"mode": "dct"}
        },
    }
    for words, change in changes.items():
        copy_files(sample_folder, tmp_path)
        change_manifest(tmp_path / "val.beton.json", **change)
        with pytest.raises(FailureError, match=words) as error:
            data.open_file(str(tmp_path / "val.beton"), "data.val")
        assert str(error.value).startswith(f"{tmp_path}/val.beton: ")


def test_what_is_no_file_is_not_waited_for(sample_folder: Path, tmp_path: Path) -> None:
    copy_files(sample_folder, tmp_path)
    (tmp_path / "train.beton").unlink()
    os.mkfifo(tmp_path / "train.beton")
    with pytest.raises(FailureError, match=r"train\.beton"):
        load_data(recipe(tmp_path), TestConfig(batch_size=8), 0, CPU)


def test_a_constant_channel_is_not_divided_by_nothing(sample_folder: Path, tmp_path: Path) -> None:
    copy_files(sample_folder, tmp_path)
    change_manifest(tmp_path / "train.beton.json", mean=[0.5, 0.5, 1.0], std=[0.2, 0.001, 0.0])
    normalize = data.build_normalize(recipe(tmp_path))
    np.testing.assert_allclose(normalize.std.flatten().numpy(), [0.2, 1 / 255, 1 / 255])
    white = normalize(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    np.testing.assert_allclose(white[0, :, 0, 0].numpy(), [2.5, 127.5, 0.0], rtol=1e-6)


def test_a_mean_image_that_is_gone_is_named(sample_folder: Path, tmp_path: Path) -> None:
    copy_files(sample_folder, tmp_path)
    (mean,) = tmp_path.glob("*.npy")
    for content in (None, b"", b"no array"):
        if content is None:
            mean.unlink()
        else:
            mean.write_bytes(content)
        with pytest.raises(FailureError, match=f"{mean.name}, the mean of .* cannot be read"):
            data.build_normalize(recipe(tmp_path, normalize="pixel_mean"))


def epochs_of(config: DataConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(training images (count * 64, ...) as they come, the stored image of each)."""
    loader = load_data(config, TestConfig(batch_size=8), 0, CPU).train
    found = [images.numpy().copy() for _ in range(count) for images, _ in loader]
    orders = [np.random.default_rng((0, epoch)).permutation(64) for epoch in range(count)]
    return np.concatenate(found), sample_pixels()[np.concatenate(orders)]


def test_padded_crops_are_windows_of_the_padded_image_or_its_mirror_image(
    sample_folder: Path,
) -> None:
    crops, originals = epochs_of(recipe(sample_folder, crop="pad", padding=4, flip=True), 4)
    padded = np.pad(originals, ((0, 0), (4, 4), (4, 4), (0, 0)))
    places = []
    for crop, image in zip(crops, padded, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32), (0, 1))
        windows = windows.transpose(0, 1, 3, 4, 2)  # (9, 9, 32, 32, 3)
        both = np.stack((windows, windows[:, :, :, ::-1]))
        fits = np.argwhere((both == crop).all((3, 4, 5)))
        assert len(fits) == 1
        places.append(fits[0])
    # Of 256 draws; a value that never comes has a chance of (8/9)^256, 1e-13.
    mirrored, top, left = np.array(places).T
    assert set(top) == set(left) == set(range(9))
    assert 50 < mirrored.sum() < 206
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.4


def test_padding_and_flip_are_left_out_where_asked(sample_folder: Path) -> None:
    crops, originals = epochs_of(recipe(sample_folder, crop="pad", padding=0, flip=False), 1)
    np.testing.assert_array_equal(crops, originals)


def test_random_resized_crops_are_windows_of_the_image_of_many_sizes(sample_folder: Path) -> None:
    config = recipe(sample_folder, crop="random_resized", resolution=24, min_area=0.25, flip=False)
    crops, originals = epochs_of(config, 2)
    assert crops.shape == (128, 24, 24, 3)
    first, second = crops[np.argsort(np.random.default_rng(0).permutation(64))], crops[64:]
    second = second[np.argsort(np.random.default_rng(1).permutation(64))]
    assert (first != second).any((1, 2, 3)).sum() > 48  # a chance repeat is rare
    # No darker and no brighter than the image it is of, up to the rounding of the resize.
    low, high = (getattr(originals.astype(int), name)((1, 2)) for name in ("min", "max"))
    assert (crops.min((1, 2)) >= low - 1).all()
    assert (crops.max((1, 2)) <= high + 1).all()


@pytest.mark.parametrize("mode", ["dct", "yuv420", "jpg", "raw"])
def test_images_of_every_mode_train_and_test(tmp_path: Path, mode: str) -> None:
    y, x = np.mgrid[0:70, 0:90]
    shapes = [(70 - 3 * place, 40 + 5 * place) for place in range(10)]
    pictures = [
        np.stack([2 * x, 3 * y, 9 * place + x // 2 + y], 2).astype(np.uint8)[:tall, :wide]
        for place, (tall, wide) in enumerate(shapes)
    ]
    for split in ("train", "val"):
        for place, picture in enumerate(pictures):
            folder = tmp_path / "source" / split / f"class-{place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{place}.png")
    source = open_source(SourceConfig("imagefolder", str(tmp_path / "source")))
    image = ImageConfig(mode=mode, quality=97)
    config = WriteConfig(output=OutputConfig(str(tmp_path)), image=image)
    write_dataset(source, config, Report())
    options = {"crop": "random_resized", "resolution": 24, "center_ratio": 0.8, "batch_size": 5}
    loaded = load_data(recipe(tmp_path, **options), TestConfig(batch_size=10), 0, CPU)
    batches = [images.numpy().copy() for images, _ in loaded.train]
    assert [batch.shape for batch in batches] == [(5, 24, 24, 3)] * 2
    assert all(batch.std((1, 2)).max() > 5 for batch in batches)
    ((found, labels),) = [(images.numpy().copy(), labels.clone()) for images, labels in loaded.val]
    files = sorted((tmp_path / "source" / "val").rglob("*.png"))
    assert labels.tolist() == [0] * 5 + [1] * 5
    for image_, path in zip(found, files, strict=True):
        expected = read_picture(path, ResizedCenterCrop((24, 24), 0.8))
        error = np.abs(image_.astype(int) - expected)
        assert error.mean() <= {"raw": 0, "yuv420": 2, "dct": 2, "jpg": 2}[mode]


@pytest.mark.parametrize(("mode", "top"), [("I;16", 65_535), ("L", 255), ("LA", 255), ("1", 1)])
def test_a_picture_of_any_depth_is_read_as_the_writer_stores_it(
    tmp_path: Path, mode: str, top: int
) -> None:
    shares = np.linspace(0, 1, 64).reshape(8, 8)
    values = np.round(shares * top).astype(np.uint16)
    image = Image.fromarray(values if mode == "I;16" else (values * 255 // top).astype(np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "x.png")
    found = read_picture(tmp_path / "x.png", CenterCrop((8, 8), 1.0))
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.mode == mode
    expected = np.round(values / top * 255)[:, :, None]
    np.testing.assert_allclose(found, np.broadcast_to(expected, (8, 8, 3)), atol=0.5)


def test_a_picture_is_read_as_a_test_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "x.png", CenterCrop((10, 10), 1.0)), pixels[:, 3:13]
    )
    np.testing.assert_array_equal(
        read_picture(tmp_path / "x.png", CenterCrop((5, 5), 0.5)), pixels[2:7, 5:10]
    )
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6  # of a camera that was held upright
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    np.testing.assert_array_equal(
        read_picture(tmp_path / "turned.png", CenterCrop((10, 10), 1.0)),
        np.rot90(pixels, -1)[3:13],
    )
    (tmp_path / "x.txt").write_text("no picture")
    with pytest.raises(FailureError, match=r"missing\.png cannot be read: No such file[^/]*$"):
        read_picture(tmp_path / "missing.png", CenterCrop((10, 10), 1.0))
    Image.fromarray(np.repeat(pixels, 9, 0)).save(tmp_path / "broken.jpg")
    whole = (tmp_path / "broken.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    Image.new("1", (13_400, 13_400)).save(tmp_path / "bomb.png")  # more pixels than the limit
    for name in ("x.txt", "broken.jpg", "bomb.png"):
        with pytest.raises(FailureError, match=name):
            read_picture(tmp_path / name, CenterCrop((10, 10), 1.0))
