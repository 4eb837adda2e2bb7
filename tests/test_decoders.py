"""Fields and decoders in a stock FFCV Loader, with files that FFCV's own writer wrote."""

import faulthandler
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ffcv.loader
import ffcv.reader
import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image
from torchvision.transforms.v2 import functional as F

from resnet_ffcv import decoders
from resnet_ffcv.beton import FORM_ROW
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.fields import DCTImageField, YUV420ImageField
from resnet_ffcv.kernels import status

SHAPES = [(40, 60), (64, 64), (33, 90), (128, 50), (1, 1), (7, 300), (90, 91), (256, 200)]
FIELDS: dict[str, Any] = {
    "dct": DCTImageField(quality=95),
    "yuv420": YUV420ImageField(),
    "raw": RGBImageField("raw"),
    "jpg": RGBImageField("jpg", jpeg_quality=95),
    "mixed": RGBImageField("proportion", jpeg_quality=95),
}
CLASSES = {"dct": DCTImageField, "yuv420": YUV420ImageField}


class Images:
    """Smooth pictures, each fourth of them gray; the label is the index."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = []
        for place, (height, width) in enumerate(SHAPES * 3):
            small = rng.uniform(20, 235, (height // 12 + 2, width // 12 + 2, 3)).astype(np.uint8)
            if place % 4 == 3:
                small[:] = small[..., :1]
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            self.images.append(np.array(image))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], index


@pytest.fixture(autouse=True, scope="module")
def end_after_minutes() -> Iterator[None]:
    """A stock Loader waits for ever where its thread failed: then the tests end, and say where."""
    faulthandler.dump_traceback_later(900, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return Images().images


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, threads = tmp_path_factory.mktemp("fields"), torch.get_num_threads()
    for form, field in FIELDS.items():
        writer = DatasetWriter(
            str(folder / form), {"image": field, "label": IntField()}, num_workers=1
        )
        writer.from_indexed_dataset(Images(), chunksize=8)
    torch.set_num_threads(threads)
    return lambda form: folder / form


def load(path: Path, decoder: Any, threads: int = 1, **options: Any) -> ffcv.loader.Loader:
    before = torch.get_num_threads()
    fields = {"image": CLASSES[path.name]} if path.name in CLASSES else {}
    loader = ffcv.loader.Loader(
        str(path), batch_size=10, num_workers=threads, drop_last=False, custom_fields=fields,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
        **options,
    )  # fmt: skip
    torch.set_num_threads(before)
    return loader


def epoch(loader: ffcv.loader.Loader) -> tuple[np.ndarray, np.ndarray]:
    before = torch.get_num_threads()
    batches = [(image.numpy().copy(), label.numpy().copy()) for image, label in loader]
    torch.set_num_threads(before)
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


@pytest.mark.parametrize("form", FIELDS)
def test_a_stock_loader_shows_the_images(
    form: str, write: Callable[[str], Path], images: list[np.ndarray]
) -> None:
    decoder = decoders.WholeImage((32, 48), filter="triangle")
    loader = load(write(form), decoder)
    found, labels = epoch(loader)
    assert labels.ravel().tolist() == list(range(len(images)))
    for image, ours in zip(images, found, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        theirs = F.resize(tensor, [32, 48], antialias=True).permute(1, 2, 0).numpy()
        error = np.abs(ours.astype(int) - theirs)
        assert error.mean() < {"raw": 0.5, "yuv420": 3, "dct": 4, "jpg": 4, "mixed": 4}[form]
    # Another size between epochs, without a new Loader.
    decoder.output_size = (20, 20)
    assert epoch(loader)[0].shape == (len(images), 20, 20, 3)


def test_threads_and_memory_managers_give_the_same_bits(write: Callable[[str], Path]) -> None:
    decoder = decoders.CenterCrop((24, 24))
    expected = epoch(load(write("dct"), decoder))[0]
    for threads, cached in ((2, True), (1, False)):
        loader = load(write("dct"), decoders.CenterCrop((24, 24)), threads, os_cache=cached)
        assert np.array_equal(epoch(loader)[0], expected)


def test_random_windows_vary(write: Callable[[str], Path]) -> None:
    loader = load(write("yuv420"), decoders.RandomResizedCrop((16, 16), flip=0.5))
    first, second = epoch(loader)[0], epoch(loader)[0]
    assert first.shape == second.shape == (24, 16, 16, 3)
    assert not np.array_equal(first, second)


def test_ten_crops_are_torchvisions(write: Callable[[str], Path], images: list[np.ndarray]) -> None:
    found = epoch(load(write("raw"), decoders.TenCrop((24, 20), 32, filter="triangle")))[0]
    assert found.shape == (24, 10, 24, 20, 3)
    for image, ours in zip(images, found, strict=True):
        if min(image.shape[:2]) < 32:
            continue  # torchvision rounds the sides of an enlarged image; small differences there
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        crops = F.ten_crop(F.resize(tensor, [32], antialias=True), [24, 20])
        theirs = torch.stack(crops).permute(0, 2, 3, 1).numpy()
        assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("form", FIELDS)
def test_padded_crops_are_numpys(
    form: str, write: Callable[[str], Path], images: list[np.ndarray]
) -> None:
    custom = {"image": CLASSES[form]} if form in CLASSES else {}
    reader = ffcv.reader.Reader(str(write(form)), custom)
    metadata, memory = reader.metadata["f0"], np.fromfile(write(form), np.uint8)
    table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"])]
    state, field = (memory, table["ptr"], table["size"]), reader.handlers["image"]
    rng = np.random.default_rng(3)
    for place, image in enumerate(images):
        height, width = image.shape[:2]
        row = decoders.read_rows(field, metadata, np.array([place]))
        whole = np.empty((1, height, width, 3), np.uint8)
        window = np.array([[0, 0, height, width, 0, 0]], float)
        assert decoders.decode_batch(field, row, state, window, whole) == status.WHOLE
        if form == "raw":
            assert np.array_equal(whole[0], image)
        tall, wide = rng.integers(1, (height + 20, width + 20))
        y, x = rng.integers(-tall - 2, height + 3), rng.integers(-wide - 2, width + 3)
        fill, mirrored = (int(rng.integers(256)), 7, 200), place % 2
        out = np.full((3, tall, wide, 3), 99, np.uint8)
        window = np.array([[y, x, tall, wide, 0, mirrored]], float)
        found = decoders.decode_batch(field, row, state, window, out[1:2], fill=fill)
        assert found == status.WHOLE
        border = max(tall, wide) + 3
        expected = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
        expected[:] = fill
        expected[border : border + height, border : border + width] = whole[0]
        expected = expected[y + border :, x + border :][:tall, :wide]
        assert np.array_equal(out[1], expected[:, ::-1] if mirrored else expected)
        assert (out[[0, 2]] == 99).all()
        for wrong in ([y + 0.5, x, tall, wide], [y, x, tall + 1, wide], [np.nan, x, tall, wide]):
            window = np.array([[*wrong, 0, 0]], float)
            found = decoders.decode_batch(field, row, state, window, out[1:2], fill=fill)
            assert found == status.BAD_WINDOW
            assert not out[1].any()


def test_rows_that_are_not_there(write: Callable[[str], Path]) -> None:
    reader = ffcv.reader.Reader(str(write("raw")), {})
    field, metadata = reader.handlers["image"], reader.metadata["f0"]
    rows = decoders.read_rows(field, metadata, np.array([3, 0]))
    assert rows.numbers.tolist() == [[*SHAPES[3], 1, 0], [*SHAPES[0], 1, 0]]
    assert rows.pointers.tolist() == metadata["data_ptr"][[3, 0]].tolist()
    for wrong in (-1, len(metadata)):
        with pytest.raises(IndexError, match="none of the 24"):
            decoders.read_rows(field, metadata, np.array([0, wrong]))


def test_pad_crops_in_a_stock_loader(write: Callable[[str], Path]) -> None:
    found = epoch(load(write("raw"), decoders.PadCrop((9, 8), padding=4, fill=(1, 2, 3))))[0]
    assert found.shape == (24, 9, 8, 3)
    one = found[SHAPES.index((1, 1))]  # a border around one pixel, which is in or out
    assert (one == (1, 2, 3)).all(axis=-1).sum() >= 9 * 8 - 1
    with pytest.raises(UsageError, match="no crop fits"):
        load(write("raw"), decoders.PadCrop((32, 8)))
    with pytest.raises(UsageError, match="fill=256"):
        decoders.PadCrop((32, 8), fill=256)


def test_scale_crops_fit(write: Callable[[str], Path]) -> None:
    found = epoch(load(write("raw"), decoders.ScaleCrop((20, 20), (20, 40), flip=0.5)))[0]
    assert found.shape == (24, 20, 20, 3)
    assert found.any(axis=(1, 2, 3)).all()  # none is black, as where a window lies outside
    with pytest.raises(UsageError, match="no crop fits"):
        load(write("raw"), decoders.ScaleCrop((224, 224), (200, 300)))
    with pytest.raises(FailureError, match="different sizes"):
        load(write("raw"), decoders.WholeImage())
    with pytest.raises(UsageError, match="area, triangle, cubic"):
        decoders.CenterCrop((224, 224), filter="lanczos")


def test_a_damaged_sample_is_black_and_told(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "dct"
    path.write_bytes(write("dct").read_bytes())
    reader = ffcv.reader.Reader(str(path), {"image": DCTImageField})
    row = reader.metadata["f0"]
    content = bytearray(path.read_bytes())
    start = int(row["data_ptr"][5])
    content[start : start + 2] = b"\xff\xff"  # a group's size
    path.write_bytes(content)
    loader = load(path, decoders.WholeImage((16, 16)))
    found = epoch(loader)[0]
    assert (found[5] == 0).all()
    assert all(image.any() for place, image in enumerate(found) if place != 5)

    decoder = decoders.WholeImage((16, 16))
    field, metadata = loader.reader.handlers["image"], loader.reader.metadata["f0"].copy()
    metadata["data_ptr"][7] += 1
    memory = np.fromfile(path, np.uint8)
    manager = loader.memory_manager
    out = np.empty((24, 16, 16, 3), np.uint8)
    state, key = (memory, manager.ptrs, manager.sizes), np.uint64(0)
    told = decoder.decode(field, metadata, np.arange(24), out, state, key, 1)
    wanted = np.zeros(24, int)
    wanted[[5, 7]] = status.WRONG_SIZE, status.OUTSIDE_FILE
    assert told.tolist() == wanted.tolist()
    short = memory[: int(metadata["data_ptr"][20]) + 10], manager.ptrs, manager.sizes
    told = decoder.decode(field, metadata, np.arange(24), out, short, key, 1)
    assert (told[20:] == status.OUTSIDE_FILE).all()


def test_arguments_say_what_a_field_is() -> None:
    field = DCTImageField(37, 500)
    binary = np.frombuffer(field.to_binary().tobytes(), np.uint8)
    assert len(binary) == 1024
    again = DCTImageField.from_binary(binary)
    assert (again.quality, again.max_resolution) == (37, 500)
    assert again.metadata_type == FORM_ROW
    with pytest.raises(FailureError, match="holds dct images: take DCTImageField, not YUV420"):
        YUV420ImageField.from_binary(binary)
    with pytest.raises(FailureError, match="FFCV's own needs no custom_fields"):
        DCTImageField.from_binary(np.zeros(1024, np.uint8))
    later = binary.copy()
    later[8] = 2
    with pytest.raises(FailureError, match="has version 2"):
        DCTImageField.from_binary(later)
    with pytest.raises(UsageError, match="1 to 100"):
        DCTImageField(0)


def test_sizes_that_cannot_be() -> None:
    for size in ((0, 224), (224, -1), (224,)):
        with pytest.raises(UsageError, match="output_size="):
            decoders.CenterCrop(size)
    decoder = decoders.CenterCrop((8, 9))
    with pytest.raises(UsageError, match="output_size="):
        decoder.output_size = (0, 0)
    assert decoder.output_size == (8, 9)
    for longest in (0, 65_536):
        with pytest.raises(UsageError, match="max_resolution="):
            YUV420ImageField(longest)
    for field in (DCTImageField(90, 500), YUV420ImageField()):
        with pytest.raises(ValueError, match=r"empty image|a side has 1 to"):
            field.encode(np.zeros(1, FORM_ROW), np.zeros((0, 600, 3), np.uint8), lambda _: None)


def test_a_picture_is_shown_without_a_file(images: list[np.ndarray]) -> None:
    decoder = decoders.CenterCrop((20, 20), 1.0)
    decoder.field = DCTImageField()
    shown = decoder.show(images[1])
    assert shown.shape == (20, 20, 3)
    assert isinstance(decoder.field, DCTImageField)
    means = images[1][2:62, 2:62].reshape(20, 3, 20, 3, 3).mean((1, 3))
    assert np.abs(decoders.CenterCrop((20, 20), 60 / 64).show(images[1]) - means).max() <= 0.51


def test_memory_to_fill_is_contiguous() -> None:
    rows = decoders.Rows(np.zeros((1, 4), np.int32), np.zeros(1, np.int64))
    for out in (np.zeros((1, 8, 16, 3), np.uint8)[:, :, :8], np.zeros((1, 8, 8, 3))):
        with pytest.raises(ValueError, match="contiguous uint8"):
            decoders.decode_batch(None, rows, (), np.zeros((1, 6)), out)


def test_what_is_no_image_is_refused() -> None:
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(ValueError, match="not uint8"):
            DCTImageField().encode(np.zeros(1, FORM_ROW), wrong, lambda size: (0, np.empty(size)))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("CenterCrop", {"ratio": 1.5}, "ratio=1.5"), ("CenterCrop", {"ratio": 0}, "ratio=0"),
    ("CenterCrop", {"ratio": float("nan")}, "ratio=nan"),
    ("CenterCrop", {"flip": 50}, "flip=50: wanted is a probability"),
    ("RandomResizedCrop", {"scale": (2, 3)}, r"scale=\(2, 3\): wanted is \(low, high\)"),
    ("RandomResizedCrop", {"scale": (0, 0)}, "scale"),
    ("RandomResizedCrop", {"ratio": (0, 1)}, "ratio"),
    ("RandomResizedCrop", {"ratio": (2, 1)}, "ratio"), ("PadCrop", {"padding": -1}, "padding=-1"),
    ("ScaleCrop", {"short_side": (480, 256)}, "short_side"),
    *(("WholeImage", {"output_size": size}, "output_size") for size in (5, (5,), (0, 5), (1.5, 2))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "words"), WRONG)
def test_arguments_that_cannot_be(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        getattr(decoders, name)(**{"output_size": (20, 20), **options})


@pytest.mark.parametrize("array", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8),
                                   np.zeros((5, 5, 3))])  # fmt: skip
def test_show_takes_images(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        decoders.WholeImage().show(array)


def test_a_batch_is_of_one_length() -> None:
    rows = decoders.Rows(np.zeros((4, 4), np.int32), np.zeros(4, np.int64))
    state = np.zeros(9, np.uint8), np.zeros(1, np.uint64), np.ones(1, np.uint64)
    for windows, images in (((4, 6), 2), ((2, 6), 4), ((4, 3, 6), 4)):
        out = np.zeros((images, 5, 5, 3), np.uint8)
        with pytest.raises(ValueError, match="do not match"):
            decoders.decode_batch(None, rows, state, np.zeros(windows), out)
