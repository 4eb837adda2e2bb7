"""What policies draw, and that it is what torchvision does; augmentations in both Loaders."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from betons import write_noise
from torchvision.transforms import v2

from resnet_ffcv import Loader, augment
from resnet_ffcv.decoders import CenterCrop
from resnet_ffcv.errors import UsageError
from resnet_ffcv.kernels import changes
from resnet_ffcv.stock import OrderOption, ToTensor

KEY = np.uint64(9)
NAMES = {kind: name for name, (kind, _, _) in augment.KINDS.items()}
POLICIES = {one.value: one for one in v2.AutoAugmentPolicy}


def magnitude_of(name: str, number: float) -> float:
    """torchvision's magnitude of a change, from our number."""
    if name.startswith("Shear"):
        return float(np.tan(number))
    return number / 255 if name == "Solarize" else number - augment.KINDS[name][1]


def apply_by_torchvision(
    image: np.ndarray, kind: int, number: float, fill: tuple[int, int, int]
) -> np.ndarray:
    """A change by torchvision's own code of policies, from our number back to its magnitude."""
    name = NAMES[kind]
    made = v2.AutoAugment()._apply_image_or_video_transform(
        torch.from_numpy(image).permute(2, 0, 1), name, magnitude_of(name, number), "nearest",
        {torch.Tensor: list(fill)},
    )  # fmt: skip
    return made.permute(1, 2, 0).numpy()


AUTOMATIC = {
    **{f"autoaugment {p}": lambda p=p: augment.AutoAugment(p, fill=FILL) for p in POLICIES},
    "randaugment": lambda: augment.RandAugment(3, 17, fill=FILL),
    "trivialaugment": lambda: augment.TrivialAugmentWide(fill=FILL),
}  # fmt: skip
FILL = (120, 7, 44)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_images_are_those_of_torchvision(name: str) -> None:
    operation = AUTOMATIC[name]()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 31, 40, 3), np.uint8)
    kinds, numbers = operation.choose(np.arange(300), (31, 40), KEY)
    found = images.copy()
    operation.augment(found, np.arange(300), KEY, threads=2)
    differing = 0
    for place, image in enumerate(images):
        expected = image
        for kind, number in zip(kinds[place], numbers[place, :, 0], strict=True):
            expected = apply_by_torchvision(expected, int(kind), float(number), FILL)
        # Shears lead half-way between two pixels here and there, see kernels.neighbours.
        differing += int((found[place] != expected).any(axis=2).sum())
    assert differing <= 0.002 * 300 * 31 * 40
    assert (found != images).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_drawn_with_their_probabilities(name: str) -> None:
    """How often each pair of changes comes, against what torchvision's table says."""
    count = 200_000
    kinds, numbers = augment.AutoAugment(name).choose(np.arange(count), (224, 200), KEY)
    expected: Counter[tuple[str, str]] = Counter()
    for first, second in v2.AutoAugment(POLICIES[name])._policies:
        for one, p in ((first[0], first[1]), ("Identity", 1 - first[1])):
            for two, q in ((second[0], second[1]), ("Identity", 1 - second[1])):
                expected[one, two] += p * q / 25
    found = Counter((NAMES[a], NAMES[b]) for a, b in kinds.tolist())
    assert set(found) == {pair for pair, p in expected.items() if p > 0}
    for pair, p in expected.items():
        assert abs(found[pair] / count - p) < 5 * np.sqrt(p / count) + 1e-9, pair
    signed = np.isin(kinds, [changes.ROTATE, changes.SHEAR_X, changes.TRANSLATE_Y])
    assert abs((numbers[signed, 0] < 0).mean() - 0.5) < 0.01


def drawn_by_torchvision(
    transform: Any, count: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> Counter[tuple[str, float]]:
    """How often a policy of torchvision asks for each change by its magnitude."""
    asked: Counter[tuple[str, float]] = Counter()

    def note(image: Any, name: str, magnitude: float, *_: Any, **__: Any) -> Any:
        asked[name, round(float(magnitude or 0), 4)] += 1
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", note)
    torch.manual_seed(0)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for _ in range(count):
        transform(image)
    return asked


DRAWN: dict[str, tuple[augment.Augmentation, Any]] = {
    **{p: (augment.AutoAugment(p), v2.AutoAugment(one)) for p, one in POLICIES.items()},
    "randaugment": (augment.RandAugment(2, 20), v2.RandAugment(2, 20)),
    "trivialaugment": (augment.TrivialAugmentWide(), v2.TrivialAugmentWide()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_magnitudes_are_drawn_as_by_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often each change comes by each magnitude, against what torchvision itself asks for."""
    ours, theirs = DRAWN[name]
    size, count = (96, 80), 20_000
    expected = drawn_by_torchvision(theirs, count, size, monkeypatch)
    kinds, numbers = ours.choose(np.arange(count), size, KEY)
    found: Counter[tuple[str, float]] = Counter()
    for kind, number in zip(kinds.ravel().tolist(), numbers[..., 0].ravel().tolist(), strict=True):
        found[NAMES[kind], round(magnitude_of(NAMES[kind], number), 4)] += 1
    # AutoAugment's own list has no Identity: ours is where it does nothing.
    absent = {("Identity", 0.0)} if name in POLICIES else set()
    assert set(found) - absent == set(expected)
    for asked, times in expected.items():
        assert abs(found[asked] - times) < 6 * np.sqrt(2 * times) + 6, asked


def test_spaces_are_drawn_evenly() -> None:
    count = 200_000
    kinds, numbers = augment.TrivialAugmentWide().choose(np.arange(count), (96, 96), KEY)
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    for name, (make, signed) in space.items():
        mine = kinds[:, 0] == augment.KINDS[name][0]
        assert abs(mine.mean() - 1 / len(space)) < 0.003, name
        if make(31, 96, 96) is None:
            continue
        _, base, convert = augment.KINDS[name]
        sizes = convert(make(31, 96, 96).double().numpy())
        allowed = np.unique(
            np.concatenate([base + sizes, base - sizes] if signed else [base + sizes])
        )
        values, times = np.unique(numbers[mine, 0, 0], return_counts=True)
        assert np.allclose(values, allowed), name
        assert times.min() > 100, name
    kinds, numbers = augment.RandAugment(2, 9).choose(np.arange(count), (96, 96), KEY)
    rotations = numbers[..., 0][kinds == changes.ROTATE]
    assert np.allclose(np.unique(np.abs(rotations)), 9.0)
    pairs = Counter(map(tuple, kinds.tolist()))
    assert len(pairs) == 14 * 14
    assert max(abs(n / count - 1 / 196) for n in pairs.values()) < 0.001


def test_a_random_crop_is_numpys_of_the_padded_image() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4000, 9, 11, 3), np.uint8)
    operation = augment.RandomCrop(2, (1, 2, 3), flip=0.3)
    found = images.copy()
    operation.augment(found, np.arange(4000), KEY, threads=2)
    fill = np.array([1, 2, 3], np.uint8)
    padded = np.broadcast_to(fill, (4000, 13, 15, 3)).copy()
    padded[:, 2:-2, 2:-2] = images
    seen: Counter[tuple[int, int, bool]] = Counter()
    crops = {
        (y, x, mirrored): padded[:, y : y + 9, x : x + 11][:, :, :: -1 if mirrored else 1]
        for y in range(5) for x in range(5) for mirrored in (False, True)
    }  # fmt: skip
    for place, crop in crops.items():
        seen[place] = int((found == crop).all(axis=(1, 2, 3)).sum())
    assert sum(seen.values()) == 4000  # each image is one of them
    for (_, _, mirrored), times in seen.items():
        expected = 4000 / 25 * (0.3 if mirrored else 0.7)
        assert abs(times - expected) < 6 * np.sqrt(expected)


def test_pca_colour_has_the_papers_scale() -> None:
    """A normalised pixel moves by a standard deviation of 0.054 to 0.057."""
    images = np.full((20_000, 1, 1, 3), 128, np.uint8)
    augment.PCAColour().augment(images, np.arange(20_000), KEY, 2)
    offsets = images[:, 0, 0].astype(float) - 128
    covariance = (
        255**2 * 0.01 * (augment.EIGENVECTORS * augment.EIGENVALUES**2) @ augment.EIGENVECTORS.T
    )
    assert np.allclose(np.cov(offsets.T), covariance + np.eye(3) / 12, rtol=0.05, atol=0.1)
    normalised = offsets.std(axis=0) / 255 / [0.229, 0.224, 0.225]
    assert np.allclose(normalised, [0.054, 0.056, 0.057], atol=0.003)


ALL = {
    "pca": augment.PCAColour,
    "jitter": lambda: augment.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "gray": lambda: augment.RandomGrayscale(0.3),
    "autoaugment": augment.AutoAugment,
    "randaugment": augment.RandAugment,
    "trivial": augment.TrivialAugmentWide,
    "erasing": lambda: augment.RandomErasing(0.8, fill=(1, 2, 3)),
    "cutout": lambda: augment.Cutout(8),
    "crop": lambda: augment.RandomCrop(4, (1, 2, 3)),
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("noise"), "raw", (70, 24, 24))


def load(path: Path, operations: list[Any], batch_size: int = 16, **options: Any) -> dict[int, Any]:
    """{sample: image} of one epoch."""
    loader = Loader(
        path, batch_size, **{"num_workers": 1, "drop_last": False, "seed": 4, **options},
        pipelines={"image": [CenterCrop((24, 24), 1.0), *operations, ToTensor()]},
    )  # fmt: skip
    return {
        int(label): image for images, labels in loader
        for image, label in zip(images.numpy().copy(), labels[:, 0], strict=True)
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_pixels_are_functions_of_seed_epoch_and_sample(noise: Path, name: str) -> None:
    plain, first = load(noise, []), load(noise, [ALL[name]()])
    others = [
        load(noise, [ALL[name]()], 7, num_workers=3, order=OrderOption.RANDOM),
        load(noise, [ALL[name]()], 5, rank=0, world_size=2)
        | load(noise, [ALL[name]()], 5, rank=1, world_size=2),
    ]
    for other in others:
        assert all(np.array_equal(first[sample], other[sample]) for sample in range(70))
    assert sum(not np.array_equal(first[sample], plain[sample]) for sample in range(70)) > 10
    reseeded = load(noise, [ALL[name]()], seed=5)
    assert any(not np.array_equal(first[sample], reseeded[sample]) for sample in range(70))


def test_two_of_a_kind_draw_by_themselves(noise: Path) -> None:
    one = load(noise, [augment.Cutout(2, fill=(9, 9, 9))])
    two = load(noise, [augment.Cutout(2, fill=(9, 9, 9)), augment.Cutout(2, fill=(9, 9, 9))])
    assert sum(not np.array_equal(one[sample], two[sample]) for sample in range(70)) > 60


def test_they_work_in_a_stock_loader(noise: Path) -> None:
    threads = torch.get_num_threads()
    from ffcv.loader import Loader as StockLoader

    loader = StockLoader(
        str(noise), 16, num_workers=1, drop_last=False,
        pipelines={
            "image": [CenterCrop((24, 24), 1.0), augment.Cutout(8, fill=(1, 2, 3)), ToTensor()],
            "label": None,
        },
    )  # fmt: skip
    images = np.concatenate([batch.numpy().copy() for (batch,) in loader])
    torch.set_num_threads(threads)
    covered = (images == [1, 2, 3]).all(axis=3).sum(axis=(1, 2))
    assert len(images) == 70
    assert 16 <= covered.min() <= covered.max() <= 64


def test_it_belongs_before_to_tensor(noise: Path) -> None:
    loader = Loader(
        noise, 16, pipelines={"image": [CenterCrop((24, 24)), ToTensor(), augment.Cutout(8)]}
    )
    with pytest.raises(UsageError, match="Cutout wants uint8 images"):
        iter(loader)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: augment.PCAColour(-1), "deviation=-1: wanted is a number"),
        (lambda: augment.ColorJitter(brightness=-1), "brightness=-1"),
        (lambda: augment.ColorJitter(hue=0.6), "hue=0.6: wanted are turns"),
        (lambda: augment.ColorJitter(contrast=(2, 1)), "contrast="),
        (lambda: augment.RandomGrayscale(1.5), "p=1.5: wanted is a probability"),
        (lambda: augment.AutoAugment("mnist"), "policy='mnist': wanted is one of imagenet"),
        (lambda: augment.RandAugment(magnitude=31), "magnitude=31: wanted is a number below"),
        (lambda: augment.TrivialAugmentWide(1), "num_magnitude_bins=1"),
        (lambda: augment.RandomErasing(scale=(0, 0.3)), "scale="),
        (lambda: augment.RandomErasing(fill=(0, 0, 256)), "fill="),
        (lambda: augment.Cutout(0), "side=0: wanted is whole pixels"),
        (lambda: augment.RandomCrop(-1), "padding=-1: wanted is whole pixels"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
