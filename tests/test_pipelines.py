"""FFCV's own fields, decoders and transforms in our Loader, beside its own Loader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnet_ffcv import Loader, augment
from resnet_ffcv.beton import read_tables
from resnet_ffcv.decoders import RandomResizedCrop, WholeImage
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.pipelines import build_steps, read_specs
from resnet_ffcv.stock import OrderOption, PipelineSpec

from ffcv import fields, transforms  # isort: skip  # after ours, which keeps torch's threads
from ffcv.fields import decoders  # isort: skip
from ffcv.loader import Loader as StockLoader  # isort: skip
from ffcv.writer import DatasetWriter  # isort: skip

MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([50.0, 60.0, 70.0])


class Samples:
    """Images, and something of each other field of FFCV's."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        text = np.frombuffer(f"sample {index}".encode().ljust(20), np.uint8)
        return (
            image,
            index,
            index / 3,
            text,
            rng.normal(size=(3, 4)),
            {"n": int(index)},
            torch.ones(2),
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path, threads = tmp_path_factory.mktemp("stock") / "all.beton", torch.get_num_threads()
    DatasetWriter(
        str(path),
        {
            "image": fields.RGBImageField("proportion", compress_probability=0.5),
            "label": fields.IntField(), "score": fields.FloatField(), "text": fields.BytesField(),
            "array": fields.NDArrayField(np.dtype("f8"), (3, 4)), "json": fields.JSONField(),
            "tensor": fields.TorchTensorField(torch.float32, (2,)),
        },
        num_workers=1,
    ).from_indexed_dataset(Samples())  # fmt: skip
    yield path
    torch.set_num_threads(threads)


def epoch(loader: Any) -> list[list[np.ndarray]]:
    return [[np.asarray(part).copy() for part in batch] for batch in loader]


def both(path: Path, make: Callable[[], dict[str, Any]], **options: Any) -> tuple[Any, Any]:
    """(an epoch of ours, one of FFCV's) with the same arguments."""
    options = {"num_workers": 2, "drop_last": False, "batch_size": 8, **options}
    return epoch(Loader(path, pipelines=make(), **options)), epoch(
        StockLoader(str(path), pipelines=make(), **options)
    )


def same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.array_equal(x, y)


def test_default_pipelines_of_every_field(path: Path) -> None:
    same(*both(path, lambda: {"json": None}))


def test_nothing_follows_a_short_sample(path: Path) -> None:
    others = dict.fromkeys(("image", "label", "score", "text", "array", "tensor"))
    for _ in range(2):
        found = epoch(Loader(path, 30, num_workers=1, pipelines=others))[0][0]
        texts = [bytes(row).rstrip(b"\0").decode() for row in found]
        assert texts == [f'{{"n": {index}}}' for index in range(30)]


DETERMINISTIC: dict[str, Callable[[], list[Any]]] = {
    "center": lambda: [decoders.CenterCropRGBImageDecoder((24, 20), 0.8)],
    "torch image": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.ToTensor(), transforms.ToTorchImage(),
        transforms.Convert(torch.float32),
    ],
    "normalize": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.NormalizeImage(MEAN, STD, np.float32),
        transforms.ToTensor(), transforms.ToTorchImage(),
    ],
    "module": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.ToTensor(), transforms.ToTorchImage(),
        transforms.Convert(torch.float32), nn.AvgPool2d(4),
    ],
    "device": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.ToTensor(),
        transforms.ToDevice(torch.device("cpu"), non_blocking=False),
    ],
    "flip all": lambda: [decoders.SimpleRGBImageDecoder(), transforms.RandomHorizontalFlip(1.0)],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a pytorch transform")
@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("workers", [1, 2])
def test_stock_operations_do_the_same(path: Path, name: str, workers: int) -> None:
    others = dict.fromkeys(("score", "text", "array", "json", "tensor"))
    label = [decoders.IntDecoder, transforms.ToTensor, transforms.Squeeze]
    same(
        *both(
            path,
            lambda: {
                "image": DETERMINISTIC[name](),
                "label": [operation() for operation in label],
                **others,
            },
            num_workers=workers,
        )
    )


RANDOM: dict[str, Callable[[], list[Any]]] = {
    "crop": lambda: [decoders.RandomResizedCropRGBImageDecoder((20, 20))],
    "cutout": lambda: [decoders.SimpleRGBImageDecoder(), transforms.Cutout(8)],
    "translate": lambda: [decoders.SimpleRGBImageDecoder(), transforms.RandomTranslate(4)],
    "colour": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.RandomBrightness(0.5),
        transforms.RandomContrast(0.5), transforms.RandomSaturation(0.5),
    ],
    "mixup": lambda: [decoders.SimpleRGBImageDecoder(), transforms.ImageMixup(0.5, False)],
    "poison": lambda: [
        decoders.SimpleRGBImageDecoder(),
        transforms.Poison(np.ones((32, 32, 3), np.uint8), np.full((32, 32), 0.5), [1, 2]),
    ],
    # FFCV's Loader never returns from compiling this one.
    "normalize behind a tensor": lambda: [
        decoders.SimpleRGBImageDecoder(), transforms.ToTensor(), transforms.ToTorchImage(),
        transforms.Convert(torch.float32),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_stock_operations_run(path: Path, name: str) -> None:
    others = dict.fromkeys(("score", "text", "array", "json", "tensor"))
    loader = Loader(
        path, 8, num_workers=2, pipelines={"image": RANDOM[name](), **others}, drop_last=False,
        order=OrderOption.RANDOM,
    )  # fmt: skip
    for _ in range(2):
        found = epoch(loader)
        assert [len(images) for images, _ in found] == [8, 8, 8, 6]
        assert all(images.std() > 5 for images, _ in found)


STOCK_DECODERS: dict[str, Callable[[], list[Any] | None]] = {
    "default": lambda: None,
    "simple": lambda: [decoders.SimpleRGBImageDecoder()],
    "center": lambda: [decoders.CenterCropRGBImageDecoder((20, 20), 1.0)],
    "random": lambda: [decoders.RandomResizedCropRGBImageDecoder((20, 20))],
}


@pytest.mark.parametrize("name", STOCK_DECODERS)
def test_stock_decoders_are_given_no_image_of_another_size(
    path: Path, tmp_path: Path, name: str
) -> None:
    """They would show what their memory held before: another sample's pixels."""
    tables, copy = read_tables(path), tmp_path / "hurt.beton"
    rows, content = tables.metadata["image"], bytearray(path.read_bytes())
    jpegs = np.flatnonzero(rows["mode"] == 0)[:3].tolist()
    for sample, size in zip(jpegs, [(32, 31), (64, 64), (65_000, 65_000)], strict=True):
        start = int(rows["data_ptr"][sample])
        frame = content.index(b"\xff\xc0", start)
        content[frame + 5 : frame + 9] = b"".join(side.to_bytes(2, "big") for side in size)
    copy.write_bytes(content)
    others = dict.fromkeys(("score", "text", "array", "json", "tensor"))
    pipeline = {} if STOCK_DECODERS[name]() is None else {"image": STOCK_DECODERS[name]()}
    options = {"num_workers": 1, "drop_last": False}
    with pytest.raises(FailureError, match=r"sample \d+ is damaged.*JPEG is not of the size in it"):
        epoch(Loader(copy, 30, pipelines={**pipeline, **others}, **options))
    loader = Loader(copy, 7, pipelines={**pipeline, **others}, on_error="skip", **options)
    shown = [int(label) for _, labels in epoch(loader) for label in labels.ravel()]
    assert shown == sorted(set(range(30)) - set(jpegs))
    assert sorted(loader.damaged) == jpegs


def test_stock_decoders_keep_to_the_limits(path: Path) -> None:
    others = dict.fromkeys(("label", "score", "text", "array", "json", "tensor"))
    assert len(epoch(Loader(path, 30, 1, pipelines=others, max_pixels=32 * 32))) == 1
    with pytest.raises(FailureError, match=r"is too large.*max_pixels allows; raise that limit"):
        epoch(Loader(path, 30, 1, pipelines=others, max_pixels=32 * 32 - 1))


def test_an_output_may_refer_to_another(path: Path) -> None:
    decoder = decoders.SimpleRGBImageDecoder()
    others = dict.fromkeys(("label", "score", "text", "array", "json", "tensor"))
    loader = Loader(
        path, 8, num_workers=1,
        pipelines={
            "image": [decoder], **others,
            "mirrored": PipelineSpec(decoder, None, [transforms.RandomHorizontalFlip(1.0)]),
        },
    )  # fmt: skip
    for images, mirrored in loader:
        assert np.array_equal(mirrored, images[:, :, ::-1])


def test_transforms_may_ask_for_the_state(path: Path) -> None:
    class Keyed(transforms.ToTensor):  # type: ignore[misc]
        def generate_code(self) -> Any:
            def code(images: Any, _memory: Any, indices: Any, state: Any) -> Any:
                seen.append((indices.tolist(), int(state[3][0]), images.shape))
                return torch.from_numpy(images)

            code.with_indices = code.with_state = True  # type: ignore[attr-defined]
            return code

    others = dict.fromkeys(("label", "score", "text", "array", "json", "tensor"))
    seen: list[Any] = []
    keys = []
    for seed in (1, 1, 2):
        seen.clear()
        pipeline = [decoders.SimpleRGBImageDecoder(), Keyed()]
        list(Loader(path, 15, num_workers=1, seed=seed, pipelines={"image": pipeline, **others}))
        assert [indices for indices, _, _ in seen] == [list(range(15)), list(range(15, 30))]
        assert len({key for _, key, _ in seen}) == 1
        keys.append(seen[0][1])
    assert keys[0] == keys[1] != keys[2]


def test_a_decoder_of_ffcvs_on_our_field_is_refused() -> None:
    from resnet_ffcv.fields import DCTImageField

    known = {"image": DCTImageField()}
    specs = read_specs({"image": [decoders.RandomResizedCropRGBImageDecoder((9, 9))]}, known)
    with pytest.raises(UsageError, match="RandomResizedCropRGBImageDecoder does not decode this"):
        build_steps(specs, known)
    with pytest.raises(UsageError, match="refers to an operation of no pipeline"):
        build_steps({"x": PipelineSpec(transforms.ToTensor(), None, [])}, known)


def test_views_of_a_field_are_drawn_each_for_itself_those_of_two_fields_alike(
    sample_folder: Path,
) -> None:
    def load(*names: str) -> list[np.ndarray]:
        crops = {name: PipelineSpec("image", RandomResizedCrop((32, 32), flip=0.5), [])
                 for name in names[1:]}  # fmt: skip
        pipelines = {"image": [RandomResizedCrop((32, 32), flip=0.5)], "label": None, **crops}
        return epoch(Loader(sample_folder / "train.beton", 64, pipelines=pipelines, seed=1))[0]

    (alone,), (first, second, third) = load("image"), load("image", "second", "third")
    assert np.array_equal(alone, first)
    for a, b in ((first, second), (first, third), (second, third)):
        assert (a != b).any(axis=(1, 2, 3)).mean() > 0.9


def test_an_augmentation_leaves_other_outputs_as_they_are(sample_folder: Path) -> None:
    def load(pipelines: dict[str, Any]) -> list[np.ndarray]:
        loader = Loader(sample_folder / "train.beton", 64, pipelines=pipelines, seed=1)
        return [np.array(part) for part in next(iter(loader))]

    decoder, invert = WholeImage(), augment.ColorJitter(0.4, 0.4, 0.4, 0.1)
    plain, changed = load(
        {"image": [decoder], "label": None, "changed": PipelineSpec(decoder, None, [invert])}
    )
    (expected,) = load({"image": [WholeImage()], "label": None})
    assert np.array_equal(plain, expected)
    assert (changed != expected).any(axis=(1, 2, 3)).mean() > 0.9
    again, alone = load(
        {"image": [decoder], "label": None, "changed": PipelineSpec(decoder, None, [invert])}
    )
    assert np.array_equal(again, plain)
    assert np.array_equal(alone, changed)
