"""Counts against a plain loop; scores of many views against torchvision and a plain sum."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from betons import spoil, write_noise
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

import write_datasets
from benchmarks import wrong_tests
from resnet_ffcv import testing
from resnet_ffcv.beton import read_image_tables
from resnet_ffcv.config import DataConfig, TestConfig, TrainConfig
from resnet_ffcv.data import Normalize, load_data, load_test_data, short_sides
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.loader import Loader
from resnet_ffcv.models import as_fully_convolutional, build_model
from resnet_ffcv.resized import ResizedImages
from resnet_ffcv.testing import Clock, Meter, Setting, evaluate, mean_score

CPU = torch.device("cpu")
IDENTITY = Normalize(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
PLAIN = Setting(IDENTITY, CPU, "fp32")


class Constant(nn.Module):
    """Says the same of every image."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(inputs), 2)


@pytest.mark.parametrize("classes", [3, 10])
def test_a_meter_counts_as_numpy_does(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    meter, all_logits, all_labels = Meter(CPU), [], []
    for count in (7, 20, 1):
        logits = torch.randn(count, classes, generator=generator)
        labels = torch.randint(classes, (count,), generator=generator)
        meter.add(logits, labels, nn.functional.cross_entropy(logits, labels))
        all_logits.append(logits)
        all_labels.append(labels)
    logits = torch.cat(all_logits).double().numpy()
    labels = torch.cat(all_labels).numpy()
    ranks = (logits > logits[np.arange(28), labels][:, None]).sum(1)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    counts = meter.counts()
    assert counts.seen == 28
    assert counts.correct1 == (ranks < 1).sum()
    assert counts.correct5 == ((ranks < 5).sum() if classes > 5 else None)
    assert counts.loss == pytest.approx(-log_softmax[np.arange(28), labels].mean(), rel=1e-5)
    assert counts.top1 == pytest.approx(100 * (ranks < 1).mean())


def test_a_meter_names_the_first_step_that_is_not_finite() -> None:
    meter = Meter(CPU)
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 1.0]):
        before = meter.first_bad_step()
        assert before == (None if step < 2 else 1)
        meter.add(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), torch.tensor(loss), step)


def test_evaluation_sees_every_image_once(sample_folder: Path) -> None:
    config = DataConfig(
        train=str(sample_folder / "train.beton"),
        val=str(sample_folder / "val.beton"),
        num_workers=1,
    )
    data = load_data(config, TestConfig(batch_size=15), 0, CPU)
    seen = []

    class Recorder(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            assert not self.training
            seen.append(data.normalize.pixels(inputs))
            return torch.ones(len(inputs), 10)

    advanced: list[float] = []
    counts = evaluate(Recorder(), data.val, Setting(data.normalize, CPU, "fp32", advanced.append))
    assert advanced == [15, 15, 15, 15, 4]
    assert counts.seen == 64
    assert counts.loss == pytest.approx(np.log(10))
    chosen = np.sort(np.random.default_rng(0).permutation(500)[:64])
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        expected = arrays["images"][3500:][chosen] / 255
    np.testing.assert_allclose(torch.cat(seen).numpy(), expected, atol=1e-6)


def test_a_loader_that_loses_images_is_an_error() -> None:
    class Short:
        indices, fname = range(9), "x.beton"

        def __iter__(self):
            yield torch.zeros(8, 4, 4, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)

    with pytest.raises(FailureError, match="8 images were tested, it holds 9"):
        evaluate(Constant(), Short(), PLAIN)


def test_a_clock_leaves_out_the_first_wait_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(testing.time, "perf_counter", lambda: now[0])

    class Slow:
        indices, fname = range(12), "x.beton"

        def __iter__(self):
            for wait in (100.0, 1.0, 3.0):  # the first compiles FFCV's pipeline
                now[0] += wait
                yield torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)

    class Model(Constant):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            now[0] += 10
            return super().forward(inputs)

    clock = Clock()
    evaluate(Model(), Slow(), PLAIN, clock=clock)
    assert (clock.seconds, clock.waiting) == (34.0, 4.0)
    evaluate(Model(), Slow(), PLAIN, clock=clock)  # compiled by now
    assert (clock.seconds, clock.waiting) == (134.0, 104.0)


LABELS = torch.arange(5).repeat_interleave(5)[:24]  # of `photos`


# Many views -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """(file of 24 images of six sizes, their pixels (3, h, w)): bright blobs, five classes."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    images = []
    for number in range(24):
        height, width = [(40, 56), (56, 40), (48, 48), (40, 55), (61, 80), (100, 41)][number % 6]
        rough = generator.integers(0, 256, (5, 6, 3), np.uint8)
        image = np.array(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))
        place = folder / "source" / "train" / f"class {number % 5}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
        target = folder / "source" / "val" / place.parent.name / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
        images.append((place.parent.name, number, torch.from_numpy(image).permute(2, 0, 1)))
    write_datasets.main(
        ["--source.name=imagefolder", f"--source.path={folder / 'source'}",
         f"--output.folder={folder}", "--image.mode=raw", "--writer.workers=1"]
    )  # fmt: skip
    images.sort(key=lambda image: image[:2])  # as an image folder is
    return folder / "val.beton", [image for _, _, image in images]


@pytest.fixture(scope="module")
def network(photos: tuple[Path, list[Tensor]]) -> nn.Module:
    """A ResNet that has learned the images by heart: sure of some views, and not of others."""
    torch.manual_seed(0)
    model = build_model("resnet8", 5)
    shown = torch.stack([transforms.resize(image, [32, 32]) for image in photos[1]]).float() / 255
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(shown), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def images_of(path: Path, **options: object) -> Loader | ResizedImages:
    config = DataConfig(
        val=str(path), resolution=32, center_ratio=0.8, filter="triangle", num_workers=1
    )
    return load_test_data(config, TestConfig(**options), CPU)[0]  # type: ignore[arg-type]


def counted(probabilities: Tensor, labels: Tensor) -> tuple[float, int]:
    """(sum of losses, number of images that are right), plainly."""
    own = probabilities.double().gather(1, labels[:, None])
    return -own.log().sum().item(), int((probabilities.argmax(1) == labels).sum())


def assert_scores(found: Tensor, expected: Tensor, wrong: dict[str, Tensor]) -> None:
    """Scores of images (n, classes) are the expected ones, and those of other protocols are not."""
    assert expected.max(1).values.median() > 0.5  # of scores that are alike none could differ
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    for name, others in wrong.items():
        assert (others - expected).abs().max() > 0.05, f"{name} would pass"


@torch.inference_mode()
def test_ten_crops_scores_are_torchvisions_averaged(
    photos: tuple[Path, list[Tensor]], network: nn.Module
) -> None:
    path, images = photos
    resized = [transforms.resize(image, [40], antialias=True) for image in images]
    crops = torch.stack([torch.stack(transforms.ten_crop(image, [32, 32])) for image in resized])
    logits = network(crops.flatten(0, 1).float() / 255).unflatten(0, crops.shape[:2])
    scores = logits.softmax(2)
    wrong = {
        "logits averaged": logits.mean(1).softmax(1),
        "no mirror images": scores[:, :5].mean(1),
        "the middle alone": scores[:, 4],
        "no middle": scores[:, [0, 1, 2, 3, 5, 6, 7, 8]].mean(1),
    }
    loader = images_of(path, protocol="ten_crop", batch_size=40)
    found = torch.cat(
        [
            mean_score(network(IDENTITY(views.flatten(0, 1))).unflatten(0, views.shape[:2]), 1)
            for views, _ in loader
        ]
    )
    assert_scores(found.softmax(1), scores.mean(1), wrong)
    counts = evaluate(network, loader, PLAIN)
    loss, right = counted(found.softmax(1), LABELS)
    assert (counts.seen, counts.correct1) == (24, right)
    assert counts.loss_sum == pytest.approx(loss, rel=1e-4)


@torch.inference_mode()
def test_the_centre_is_torchvisions(photos: tuple[Path, list[Tensor]], network: nn.Module) -> None:
    path, images = photos
    resized = [transforms.resize(image, [40], antialias=True) for image in images]
    crops = torch.stack([transforms.center_crop(image, [32, 32]) for image in resized])
    expected = network(crops.float() / 255).softmax(1)
    shown = torch.cat([images.clone() for images, _ in images_of(path)])
    assert (shown.int() - crops.permute(0, 2, 3, 1).int()).abs().max() <= 2
    mirrored = network(crops.flip(3).float() / 255).softmax(1)
    assert_scores(network(IDENTITY(shown)).softmax(1), expected, {"mirrored": mirrored})


@torch.inference_mode()
def test_the_mirror_images_scores_are_averaged(
    photos: tuple[Path, list[Tensor]], network: nn.Module
) -> None:
    loader = images_of(photos[0], flip=True, batch_size=10)
    assert isinstance(loader, Loader)
    assert loader.batch_size == 5  # views, not images
    images = IDENTITY(torch.cat([images.clone() for images, _ in loader]))
    expected = (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2
    counts = evaluate(network, loader, PLAIN, flip=True)
    loss, right = counted(expected, LABELS)
    assert (counts.seen, counts.correct1) == (24, right)
    assert counts.loss_sum == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 250])
@torch.inference_mode()
def test_multiscale_averages_scores_of_whole_images(
    photos: tuple[Path, list[Tensor]], network: nn.Module, batch_size: int
) -> None:
    path, images = photos
    dense = as_fully_convolutional(network, 32, CPU)
    views = []  # of each image, by (side, mirrored)
    for image in images:
        resized = [transforms.resize(image, [side], antialias=True) for side in (32, 40, 70)]
        both = [view for one in resized for view in (one, one.flip(2))]
        views.append([dense(view[None].float() / 255).softmax(1).mean((2, 3))[0] for view in both])
    scores = torch.stack([torch.stack(each) for each in views])  # (n, 6, classes)
    wrong = {
        "one scale": scores[:, :2].mean(1),
        "no mirror images": scores[:, ::2].mean(1),
        "mirror images alone": scores[:, 1::2].mean(1),
        "logarithms averaged": scores.log().mean(1).softmax(1),
    }
    options = {"protocol": "multiscale", "sides": (32, 40, 70), "batch_size": batch_size}
    advanced: list[float] = []
    whole = images_of(path, **options)
    setting = Setting(IDENTITY, CPU, "fp32", advanced.append)
    ((logits, labels),) = testing.score_whole_images(network, whole, setting, Clock())
    assert labels.equal(LABELS)
    assert logits.shape == (24, 1, 5)
    logits = logits[:, 0]
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(24))
    assert_scores(logits.exp(), scores.mean(1), wrong)
    assert sum(advanced) == pytest.approx(24)
    counts = evaluate(network, whole, setting)
    loss, right = counted(logits.exp(), LABELS)
    assert (counts.seen, counts.correct1) == (24, right)
    assert counts.loss_sum == pytest.approx(loss, rel=1e-4)


def test_whole_images_that_are_lost_are_an_error(
    photos: tuple[Path, list[Tensor]], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(photos[0], protocol="multiscale", sides=(32, 40), batch_size=6)
    batches = list(images)
    monkeypatch.setattr(ResizedImages, "__iter__", lambda _: (yield from batches[1:]))
    lost = min(batches[0][0].tolist())
    with pytest.raises(FailureError, match=f"image {lost} was tested at 1 sizes of 2"):
        evaluate(network, images, PLAIN)


def test_short_sides_are_the_papers_in_proportion() -> None:
    for side, expected in (
        (224, (224, 256, 384, 480, 640)),
        (128, (128, 146, 219, 274, 366)),
        (256, (256, 293, 439, 549, 731)),
    ):
        assert short_sides(DataConfig(resolution=side), TestConfig()) == expected
    assert short_sides(DataConfig(), TestConfig(resolution=40, sides=(64, 50))) == (64, 50)


def test_images_of_one_shape_are_decoded_together(photos: tuple[Path, list[Tensor]]) -> None:
    images = images_of(photos[0], protocol="multiscale", sides=(32, 64), batch_size=6)
    assert isinstance(images, ResizedImages)
    seen: dict[tuple[int, ...], list[int]] = {}
    for places, pixels in images:
        seen.setdefault(pixels.shape[1:], []).extend(places.tolist())
        assert len(places) == len(pixels)
        assert len(places) == 1 or pixels.shape[1] * pixels.shape[2] * len(places) <= 6 * 32**2
    # 40 x 56 and 40 x 55 are one at 32 pixels, two at 64.
    assert sorted(len(places) for places in seen.values()) == [4] * 10 + [8]
    assert sorted(place for places in seen.values() for place in places) == sorted([*range(24)] * 2)


def test_a_damaged_image_ends_a_multiscale_test(tmp_path: Path, network: nn.Module) -> None:
    path = write_noise(tmp_path, "jpg", (6, 40, 48), classes=5)
    spoil(path, 4)
    with pytest.raises(FailureError, match=r"train.beton: sample 4 is damaged: "):
        evaluate(network, images_of(path, protocol="multiscale", sides=(32,)), PLAIN)


@pytest.mark.parametrize("protocol", ["center", "multiscale"])
def test_with_data_verify_a_changed_pixel_ends_a_test(tmp_path: Path, protocol: str) -> None:
    path = write_noise(tmp_path, "raw", (6, 40, 48), classes=5)
    start, _ = read_image_tables(path).region(4)
    with path.open("r+b") as file:
        file.seek(start)
        (level,) = file.read(1)
        file.seek(start)
        file.write(bytes([level ^ 1]))
    test = TestConfig(protocol=protocol, sides=(32,))
    config = DataConfig(val=str(path), resolution=32, center_ratio=0.8, num_workers=1)
    list(load_test_data(config, test, CPU)[0])
    checked = load_test_data(replace(config, verify="once"), test, CPU)[0]
    with pytest.raises(FailureError, match=r"train.beton: sample 0 is damaged.*checksum"):
        list(checked)


def test_a_short_side_below_the_networks_own_is_refused(photos: tuple[Path, list[Tensor]]) -> None:
    with pytest.raises(UsageError, match="a short side of 24 is less than the 32 pixels"):
        images_of(photos[0], protocol="multiscale", sides=(24, 40))


def test_ten_crops_that_are_all_the_same_are_refused(photos: tuple[Path, list[Tensor]]) -> None:
    config = DataConfig(val=str(photos[0]), resolution=32, center_ratio=1.0)
    with pytest.raises(UsageError, match="all alike, but for mirroring"):
        load_test_data(config, TestConfig(protocol="ten_crop"), CPU)


def test_mean_scores_stay_finite() -> None:
    logits = torch.tensor([[[500.0, 0.0, -500.0], [500.0, -500.0, 0.0]]])
    found = mean_score(logits, 1)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.softmax(1), torch.tensor([[1.0, 0.0, 0.0]]))


def test_errors_of_a_test_are_told_from_the_test(
    photos: tuple[Path, list[Tensor]], network: nn.Module
) -> None:
    """benchmarks.wrong_tests, against the tests that it gets wrong, and the errors made plainly."""
    sides, setting = (32, 40, 70), Setting(IDENTITY, CPU, "fp32")
    config = TrainConfig(
        data=DataConfig(val=str(photos[0]), resolution=32, center_ratio=0.8, filter="triangle"),
        test=TestConfig(sides=sides),
    )
    found = wrong_tests.measure(network, config, setting)

    def right(**options: Any) -> float:
        return evaluate(network, images_of(photos[0], **options), setting).top1

    assert found["centre"] == right()
    assert found["ten crops"] == right(protocol="ten_crop")
    alone = [right(protocol="multiscale", sides=(side,)) for side in sides]
    assert [found[f"whole images at {side}"] for side in sides] == alone
    averaged = right(protocol="multiscale", sides=sides)
    assert found["whole images, scores averaged"] == averaged
    assert found["whole images, accuracies averaged"] == pytest.approx(np.mean(alone))
    with torch.inference_mode():
        crops = torch.stack(
            [
                torch.stack(transforms.ten_crop(transforms.resize(image, [40]), [32, 32]))
                for image in photos[1]
            ]
        )
        hits = (
            network(crops.flatten(0, 1).float() / 255).view(24, 10, 5).argmax(2) == LABELS[:, None]
        )
    assert found["ten crops, each alone"] == pytest.approx(100 * hits.float().mean().item(), abs=1)
    assert len(set(found.values())) > 6  # the images tell them apart
    assert found["centre, noise 57 times"] < found["centre"]


@pytest.mark.parametrize("shape", [(1, 33), (33, 1), (2, 65), (1, 65_535)])
def test_an_image_that_is_a_strip_is_refused_before_it_is_resized(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """A short side of 640 would make 640 x 41,942,400 pixels of the last."""
    path, options = write_noise(tmp_path, "raw", (2, *shape)), {"resolution": 32, "batch_size": 1}
    words = f"sample 0 has {shape[1]:,} x {shape[0]:,} pixels; .* up to 32 times as long"
    with pytest.raises(FailureError, match=words):
        ResizedImages(str(path), [32], num_workers=1, **options)


@pytest.mark.parametrize("shape", [(1, 32), (32, 1), (2, 64)])
def test_an_image_that_is_just_no_strip_is_tested(tmp_path: Path, shape: tuple[int, int]) -> None:
    path, options = write_noise(tmp_path, "raw", (2, *shape)), {"resolution": 8, "batch_size": 1}
    images = ResizedImages(str(path), [8], num_workers=1, **options)
    assert {max(pixels.shape[1:3]) for _, pixels in images} == {256}
