"""Each change against torchvision's v2 kernel on the same bytes, and what is drawn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import assert_one_distribution
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from resnet_ffcv import augment
from resnet_ffcv.kernels import changes
from resnet_ffcv.kernels.random import absorb

SIZES = [(224, 224), (32, 32), (17, 33), (33, 18), (3, 3), (2, 9), (1, 1)]


def make_image(kind: str, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): noise, gray noise, few close colours, one colour, ramps."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (*size, 3), np.uint8)
    if kind == "gray":
        return np.repeat(rng.integers(0, 256, (*size, 1), np.uint8), 3, 2)
    if kind == "close":
        return rng.integers(90, 130, (*size, 3), np.uint8)
    if kind == "one":
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*size, 3)).copy()
    ramp = np.linspace(0, 255, size[1]).astype(np.uint8)
    return np.stack([np.tile(ramp, (size[0], 1))] * 2 + [np.tile(ramp[::-1], (size[0], 1))], 2)


KINDS = ["noise", "gray", "close", "one", "ramp"]


def do(image: np.ndarray, what: int, *numbers: float, fill: Any = (0, 0, 0)) -> np.ndarray:
    """One change of one image."""
    images = image[None].copy()
    given = np.zeros((1, 1, changes.NUMBERS))
    given[0, 0, : len(numbers)] = numbers
    changes.change_images(images, np.full((1, 1), what, np.int32), given, fill)
    return images[0]


def torchvision(image: np.ndarray, function: Callable[[Tensor], Tensor]) -> np.ndarray:
    return function(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()


FACTORS = [float(factor) for factor in np.linspace(0, 2, 17)] + [0.1, 1.9, 3.7]
COLOURS: list[tuple[str, int, list[Any], Any]] = [
    ("brightness", changes.BRIGHTNESS, FACTORS, functional.adjust_brightness),
    ("saturation", changes.SATURATION, FACTORS, functional.adjust_saturation),
    ("sharpness", changes.SHARPNESS, FACTORS, functional.adjust_sharpness),
    ("hue", changes.HUE, [-0.5, -0.31, -0.1, 0.0, 0.02, 1 / 6, 0.5], functional.adjust_hue),
    ("posterize", changes.POSTERIZE, list(range(9)), functional.posterize),
    (
        "solarize",
        changes.SOLARIZE,
        [255.0 * float(share) for share in torch.linspace(1, 0, 31)],
        functional.solarize,
    ),
    ("invert", changes.INVERT, [None], functional.invert),
    ("autocontrast", changes.AUTOCONTRAST, [None], functional.autocontrast),
    ("equalize", changes.EQUALIZE, [None], functional.equalize),
    ("grayscale", changes.GRAYSCALE, [None], lambda i: functional.rgb_to_grayscale(i, 3)),
]


@pytest.mark.parametrize(("what", "numbers", "reference"), [c[1:] for c in COLOURS],
                         ids=[c[0] for c in COLOURS])  # fmt: skip
def test_colours_are_torchvisions(what: int, numbers: list[Any], reference: Any) -> None:
    for size in SIZES:
        for kind in KINDS:
            image = make_image(kind, size)
            for number in numbers:
                given = () if number is None else (number,)
                expected = torchvision(image, lambda i, g=given: reference(i, *g))
                assert np.array_equal(do(image, what, *given), expected), (size, kind, number)


def test_contrast_is_torchvisions_or_within_one_level_for_large_images() -> None:
    """torch's float32 mean is of another order of additions, which many pixels show."""
    for size in [*SIZES, (257, 256), (1300, 1700)]:
        for kind in KINDS:
            image = make_image(kind, size)
            for factor in FACTORS if size[0] < 1000 else FACTORS[::5]:
                expected = torchvision(image, lambda i, f=factor: functional.adjust_contrast(i, f))
                off = np.abs(do(image, changes.CONTRAST, factor).astype(int) - expected)
                assert off.max() <= (size[0] > 1000), (size, kind, factor)


def half_way(matrix: Any, size: tuple[int, int]) -> np.ndarray:
    """bool (height, width): where a map leads so close to between two pixels, or to the border,
    that float32 may take either; in float64."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y - height / 2, x - width / 2
    places = (
        matrix[0] * x + matrix[1] * y + matrix[2] + width / 2 - 0.5,
        matrix[3] * x + matrix[4] * y + matrix[5] + height / 2 - 0.5,
    )
    return np.any([np.abs(np.mod(place, 1) - 0.5) < 1e-4 for place in places], axis=0)


def compare_maps(what: int, number: float, size: tuple[int, int], reference: Any, fill: Any) -> int:
    """Compares a map with torchvision's, but for places half-way; returns how many it did."""
    image = make_image("noise", size)
    found = do(image, what, number, fill=fill)
    differs = (found != torchvision(image, reference)).any(axis=2)
    close = half_way(changes.affine_of(what, number, *size), size)
    assert not (differs & ~close).any(), (what, number, size)
    return int((~close).sum())


def test_maps_are_torchvisions() -> None:
    """But for places half-way between two pixels, of which there are few."""
    compared = places = 0
    for size in [size for size in SIZES if min(size) > 2]:
        for fill in ((0, 0, 0), (10, 200, 99)):
            options: Any = {"fill": list(map(float, fill))}
            for degrees in (0, 1, 3.3, 30, 45, 85.5, 90, 135, 180, -7, -90, -135.0):
                compared += compare_maps(
                    changes.ROTATE, degrees, size,
                    lambda i, d=degrees, o=options: functional.rotate(i, d, **o), fill,
                )  # fmt: skip
            for slope in (0.0, 0.01, 0.1, 0.29, 0.3, 0.99, -0.13, -0.99):
                angle = math.degrees(math.atan(slope))
                for what, shear in (
                    (changes.SHEAR_X, [angle, 0.0]),
                    (changes.SHEAR_Y, [0.0, angle]),
                ):
                    compared += compare_maps(
                        what, math.atan(slope), size,
                        lambda i, s=shear, o=options: functional.affine(
                            i, 0.0, [0, 0], 1.0, s, center=[0, 0], **o
                        ), fill,
                    )  # fmt: skip
            for pixels in (0, 1, 2.9, 16.5, 101, -1, -2.9, -100.0):
                for what, shift in (
                    (changes.TRANSLATE_X, [int(pixels), 0]),
                    (changes.TRANSLATE_Y, [0, int(pixels)]),
                ):
                    compared += compare_maps(
                        what, pixels, size,
                        lambda i, t=shift, o=options: functional.affine(
                            i, 0.0, t, 1.0, [0.0, 0.0], **o
                        ), fill,
                    )  # fmt: skip
            places += (12 + 16 + 16) * size[0] * size[1]
    assert compared > 0.97 * places


SPACES = {
    "AutoAugment": (v2.AutoAugment, 10),
    "RandAugment": (v2.RandAugment, 31),
    "TrivialAugmentWide": (v2.TrivialAugmentWide, 31),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("side", "shears", "rotations"),
    [(32, 0.0, 0.0), (160, 0.011, 3e-4), (176, 0.015, 3e-4), (224, 0.012, 3e-4)],
)
def test_every_magnitude_of_a_policy_does_what_torchvision_does(
    space: str, side: int, shears: float, rotations: float
) -> None:
    """All to the byte, but for maps of larger images: see kernels.neighbours.map_nearest."""
    kind, bins = SPACES[space]
    image = make_image("noise", (side, side))
    for name, (magnitudes, signed) in kind._AUGMENTATION_SPACE.items():
        what, base, convert = augment.KINDS[name]
        found = magnitudes(bins, side, side)
        sizes = [0.0] if found is None else found.double().tolist()
        for size in sizes[:: 1 if side == 32 else 3]:
            for magnitude in (size, -size) if signed else (size,):
                number = base + float(convert(np.array(magnitude)))
                expected = torchvision(
                    image,
                    lambda i, n=name, m=magnitude: kind()._apply_image_or_video_transform(
                        i, n, m, "nearest", {Tensor: [1, 2, 3]}
                    ),
                )
                differs = (do(image, what, number, fill=(1, 2, 3)) != expected).any(axis=2).mean()
                bounds = {"ShearX": shears, "ShearY": shears, "Rotate": rotations}
                assert differs <= bounds.get(name, 0.0), (name, magnitude, differs)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1),
    what=st.sampled_from([changes.ROTATE, changes.SHEAR_X, changes.SHEAR_Y, changes.TRANSLATE_X]),
    number=st.floats(-1.5, 1.5) | st.floats(-400, 400),
)  # fmt: skip
def test_a_map_moves_pixels_or_shows_the_fill(
    height: int, width: int, seed: int, what: int, number: float
) -> None:
    image = make_image("noise", (height, width), seed)
    found = do(image, what, number, fill=(1, 2, 3))
    known = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()} | {(1, 2, 3)}
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} <= known


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_the_formula(kind: str) -> None:
    image = make_image(kind, (40, 41))
    for offsets in ((0.0, 0.0, 0.0), (0.5, -0.5, 0.49), (-12.3, 300.0, -300.0)):
        expected = np.clip(np.rint(image + np.array(offsets)), 0, 255)
        assert np.array_equal(do(image, changes.OFFSETS, *offsets), expected)


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 21, 30, 3), np.uint8)
    kinds = rng.integers(0, changes.ERASE + 1, (40, 3)).astype(np.int32)
    numbers = np.zeros((40, 3, changes.NUMBERS))
    numbers[..., 0] = rng.random((40, 3))
    results = []
    for threads in (1, 2, 5):
        results.append(images.copy())
        changes.change_images(results[-1], kinds, numbers, threads=threads)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], images)


def draw(function: Any, steps: int, *arguments: Any, count: int = 20_000) -> tuple[Any, Any]:
    keys = changes.sample_keys(np.uint64(absorb(np.uint64(7), 1)), np.arange(count))
    what = np.zeros((count, steps), np.int32)
    numbers = np.zeros((count, steps, changes.NUMBERS))
    function(keys, *arguments, what, numbers)
    return what, numbers


def test_normal_numbers_are_normal() -> None:
    vectors = np.diag([1.0, 2.0, 3.0])
    _, numbers = draw(changes.draw_offsets, 1, 0.1, vectors)
    found = numbers[:, 0, :3] / [0.1, 0.2, 0.3]
    assert np.abs(found.mean(axis=0)).max() < 0.03
    assert np.abs(found.std(axis=0) - 1).max() < 0.03
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.03
    assert np.abs((found**4).mean(axis=0) - 3).max() < 0.3
    assert np.abs((np.abs(found) < 1.96).mean() - 0.95) < 0.01


def test_jitter_takes_every_order_alike() -> None:
    kinds = np.array([1, 2, 3], np.int32)
    bounds = np.array([[0.6, 1.4], [0.0, 2.0], [-0.1, 0.1]])
    what, numbers = draw(changes.draw_jitter, 3, kinds, bounds)
    orders = {tuple(order): 0 for order in what.tolist()}
    assert len(orders) == 6
    for order in what.tolist():
        orders[tuple(order)] += 1
    assert max(abs(count / 20_000 - 1 / 6) for count in orders.values()) < 0.01
    for kind, (low, high) in zip(kinds, bounds, strict=True):
        found = numbers[..., 0][what == kind]
        assert low <= found.min() < low + 0.01
        assert high - 0.01 < found.max() <= high
        assert abs(found.mean() - (low + high) / 2) < 0.01 * (high - low) * 2


def test_erased_rectangles_lie_inside_and_have_the_shares_asked_for() -> None:
    what, numbers = draw(
        changes.draw_erasing, 1, 60, 100, 0.7, (0.02, 0.33), (0.3, 3.3), count=20_000
    )
    erased = what[:, 0] == changes.ERASE
    assert abs(erased.mean() - 0.7) < 0.01
    top, left, tall, wide = numbers[erased, 0].T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 60).all()
    assert (left + wide <= 100).all()
    # Of the shares and ratios asked for, 0.02 to 0.33 and 0.3 to 3.3, but for whole pixels.
    rounding_area, rounding_ratio = (tall + wide) / 2, 0.6 * (1 / tall + 1 / wide)
    assert (tall * wide >= 0.02 * 6000 - rounding_area).all()
    assert (tall * wide <= 0.33 * 6000 + rounding_area).all()
    assert (np.abs(np.log(tall / wide)) <= np.log(3.3) + 0.02 + rounding_ratio).all()
    drawn = v2.RandomErasing(1.0)
    torch.manual_seed(0)
    theirs = [drawn.make_params([torch.zeros(3, 60, 100)]) for _ in range(4000)]
    for values, key in ((top, "i"), (left, "j"), (tall, "h"), (wide, "w")):
        assert_one_distribution(values, np.array([params[key] for params in theirs]))


def test_grayscale_has_its_probability() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4000, 3, 3, 3), np.uint8)
    augment.RandomGrayscale(0.3).augment(images, np.arange(4000), np.uint64(5), 1)
    gray = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert abs(gray.mean() - 0.3) < 0.03


def test_a_cutout_is_a_square_cut_at_the_border() -> None:
    what, numbers = draw(changes.draw_cutout, 1, 32, 40, 16)
    assert (what == changes.ERASE).all()
    top, left, tall, wide = numbers[:, 0].T
    assert tall.max() == wide.max() == 16
    assert tall.min() == wide.min() == 8
    assert (top + tall).max() == 32
    assert (left + wide).max() == 40
    # As of a square about each pixel: sides of 8 to 16 pixels, uniformly but for the whole ones.
    assert abs((tall == 16).mean() - 17 / 32) < 0.015


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_a_cutout_has_its_side(side: int) -> None:
    _, numbers = draw(changes.draw_cutout, 1, 32, 40, side)
    _, _, tall, wide = numbers[:, 0].T
    assert tall.max() == wide.max() == side
    assert min(tall.min(), wide.min()) == (side + 1) // 2  # about a pixel of a corner
