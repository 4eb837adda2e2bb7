"""Windows, against torchvision's and FFCV's rules."""

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import get_center_crop
from references import assert_one_distribution
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_ffcv.kernels import windows
from resnet_ffcv.kernels.random import epoch_key

KEY = epoch_key(1, 2)
SHAPES = [(1, 1), (1, 50), (300, 7), (64, 64), (375, 500), (500, 333), (2, 3)]


def columns(shape: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = shape
    return np.arange(count), np.full(count, height), np.full(count, width)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_resized_is_torchvisions(shape: tuple[int, int]) -> None:
    count, scale, ratio = 4_000, (0.08, 1.0), (3 / 4, 4 / 3)
    rows = np.empty((count, 6))
    windows.random_resized_windows(KEY, *columns(shape, count), scale, ratio, 0.5, rows)
    y, x, tall, wide, sees_all, mirrored = rows.T
    assert (rows[:, :4] == np.rint(rows[:, :4])).all()
    assert min(y.min(), x.min()) >= 0
    assert min(tall.min(), wide.min()) >= 1
    assert (y + tall).max() <= shape[0]
    assert (x + wide).max() <= shape[1]
    assert (sees_all == 0).all()
    assert abs(mirrored.mean() - 0.5) < 0.04

    torch.manual_seed(0)
    image = torch.zeros(3, *shape)
    crop = v2.RandomResizedCrop(1, scale, ratio)
    drawn = [crop.make_params([image]) for _ in range(count)]
    names = ("top", "left", "height", "width")
    theirs = np.array([[params[name] for name in names] for params in drawn], float)
    for ours, other in zip(rows[:, :4].T, theirs.T, strict=True):
        assert_one_distribution(ours, other)


def test_a_sample_has_its_window_in_any_batch() -> None:
    count, scale, ratio = 64, (0.08, 1.0), (3 / 4, 4 / 3)
    rows = np.empty((count, 6))
    indices, heights, widths = columns((375, 500), count)
    windows.random_resized_windows(KEY, indices, heights, widths, scale, ratio, 0.5, rows)
    order = np.random.default_rng(0).permutation(count)[:20]
    some = np.empty((20, 6))
    arguments = (order, heights[:20], widths[:20], scale, ratio, 0.5)
    windows.random_resized_windows(KEY, *arguments, some)
    assert np.array_equal(some, rows[order])
    windows.random_resized_windows(epoch_key(1, 3), *arguments, some)
    assert not np.array_equal(some, rows[order])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.01, 224 / 256, 1.0])
def test_center_is_ffcvs(shape: tuple[int, int], ratio: float) -> None:
    rows = np.empty((1, 6))
    windows.center_windows(KEY, *columns(shape, 1), ratio, 0.0, rows)
    expected = get_center_crop(*shape, None, ratio)
    if expected[2] == 0:  # of which FFCV shows nothing
        expected = ((shape[0] - 1) // 2, (shape[1] - 1) // 2, 1, 1)
    assert rows[0].tolist() == [*expected, 0, 0]


@pytest.mark.parametrize("shape", [(256, 256), (375, 500), (500, 333), (40, 900), (257, 300)])
def test_ten_crops_are_torchvisions(shape: tuple[int, int]) -> None:
    """Each window of an image of coordinates shows those that torchvision's crop shows."""
    short, size = 256, (224, 192)
    rows = np.empty((1, 10, 6))
    windows.ten_crop_windows(*columns(shape, 1)[1:], short, size, rows)
    image = torch.zeros(1, *shape)
    resized = tuple(F.resize(image, [short]).shape[1:])
    coordinates = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in resized), indexing="ij")
    )
    for row, crop in zip(rows[0], F.ten_crop(coordinates, list(size)), strict=True):
        y, x, tall, wide, sees_all, mirrored = row
        scale = shape[0] / resized[0], shape[1] / resized[1]
        top, left = float(crop[0].min()), float(crop[1].min())
        assert (y, x) == pytest.approx((top * scale[0], left * scale[1]))
        assert (tall, wide) == pytest.approx((size[0] * scale[0], size[1] * scale[1]))
        assert sees_all == 1
        assert (mirrored == 1) == bool(crop[1, 0, 0] > crop[1, 0, -1])
        assert y + tall <= shape[0] + 1e-6
        assert x + wide <= shape[1] + 1e-6


def test_scale_augmentation_draws_every_side_and_place() -> None:
    count, size = 20_000, (224, 224)
    rows = np.empty((count, 6))
    windows.scale_windows(KEY, *columns((300, 400), count), (256, 480), size, 0.5, rows)
    shorts = np.rint(300 * 224 / rows[:, 2]).astype(int)
    assert (shorts.min(), shorts.max()) == (256, 480)
    counts = np.bincount(shorts - 256, minlength=225)
    assert np.abs(counts - count / 225).max() < 6 * (count / 225) ** 0.5
    assert (rows[:, 0] + rows[:, 2]).max() <= 300 + 1e-6
    assert (rows[:, 1] + rows[:, 3]).max() <= 400 + 1e-6
    assert rows[:, 0].min() == 0
    share = rows[:, 1] / (400 - rows[:, 3])
    assert abs(share.mean() - 0.5) < 0.02
    assert (rows[:, 4] == 1).all()


def test_pad_crop_reaches_every_offset() -> None:
    count = 20_000
    rows = np.empty((count, 6))
    windows.pad_crop_offsets(KEY, *columns((32, 32), count), 4, (32, 32), 0.5, rows)
    places = (rows[:, 0] + 4) * 9 + rows[:, 1] + 4
    counts = np.bincount(places.astype(int), minlength=81)
    assert len(counts) == 81
    assert np.abs(counts - count / 81).max() < 5 * (count / 81) ** 0.5
    assert (rows[:, 2:4] == 32).all()
