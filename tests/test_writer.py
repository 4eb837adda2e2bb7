"""Whole files, the same bytes for any number of workers, and what stock FFCV reads from them."""

import hashlib
import io
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_ffcv import beton, workers, writer
from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.journal import Journal
from resnet_ffcv.locks import lock_folder
from resnet_ffcv.manifest import read_manifest
from resnet_ffcv.pages import PageWriter
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import Job, write_dataset


def source_of(items: Any, val: Any = None) -> Source:
    """The items as training images of three classes in turn, and `val` (or two of them)."""
    splits = {
        name: Split(part, np.arange(len(part)) % 3)
        for name, part in (("train", items), ("val", items[:2] if val is None else val))
    }
    return Source("mine", ["a", "b", "c"], splits)


def pixels(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def write(
    source: Source, folder: Path, report: Report | None = None, *, workers: int = 1, limit=None,
    seed: int = 0, on_error: str = "raise", resume: bool = False, **image: Any,
) -> Path:  # fmt: skip
    """Writes a source and returns the training file."""
    config = WriteConfig(
        output=OutputConfig(str(folder)),
        image=ImageConfig(**image),
        writer=WriterConfig(workers, limit, seed, on_error, resume),
    )
    return write_dataset(source, config, report or Report())["train"].path


def stored(path: Path) -> Iterator[tuple[np.void, bytes]]:
    """(metadata row, bytes) of each sample."""
    tables, content = beton.read_image_tables(path), path.read_bytes()
    for place, row in enumerate(tables.metadata["image"]):
        start, size = tables.region(place)
        yield row, content[start : start + size]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def stock() -> Iterator[Callable[[Path], tuple[np.ndarray, np.ndarray]]]:
    """`stock(path)`: (images, labels) of a file, by FFCV's own Loader and its own fields."""
    import torch

    threads = torch.get_num_threads()
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
        loader = Loader(
            str(path), 16, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )  # fmt: skip
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return images, labels[:, 0]

    yield load
    torch.set_num_threads(threads)


def test_stock_ffcv_reads_raw_pixels_exactly(tmp_path: Path, stock: Any) -> None:
    items = pixels(70, 12)
    path = write(source_of(items), tmp_path, mode="raw", workers=2)
    images, labels = stock(path)
    assert np.array_equal(images, items)
    assert labels.tolist() == [place % 3 for place in range(70)]


@pytest.mark.parametrize("mode", beton.FORMS)
def test_stock_ffcv_opens_our_forms(
    make_folder: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    import torch

    threads = torch.get_num_threads()
    import ffcv.loader
    from ffcv.fields.decoders import IntDecoder

    from resnet_ffcv import decoders, fields

    y, x = np.mgrid[0:90, 0:120]
    picture = Image.fromarray(np.stack([2 * x, 2 * y, 99 + x - y], 2).astype(np.uint8))
    files = {}
    for place, width in enumerate((120, 100, 61, 30)):
        out = io.BytesIO()
        picture.resize((width, 90)).convert("RGB" if place % 2 else "L").save(out, "PNG")
        files[f"{place}.png"] = out.getvalue()
    items = sorted(make_folder(files).iterdir())
    path = write(source_of(items), tmp_path / "out", mode=mode, quality=95, max_resolution=80)
    tables = beton.read_image_tables(path)
    assert tables.form == mode
    rows = tables.metadata["image"]
    assert [(row["width"], row["height"], row["colour"]) for row in rows] == [
        (80, 60, 0), (80, 72, 1), (54, 80, 0), (27, 80, 1)
    ]  # fmt: skip
    field = {"dct": fields.DCTImageField, "yuv420": fields.YUV420ImageField}[mode]
    loader = ffcv.loader.Loader(
        str(path), 4, num_workers=1, drop_last=False, custom_fields={"image": field},
        pipelines={"image": [decoders.WholeImage((20, 30))], "label": [IntDecoder()]},
    )  # fmt: skip
    ((found, labels),) = [(image.copy(), label.copy()) for image, label in loader]
    torch.set_num_threads(threads)
    assert labels[:, 0].tolist() == [0, 1, 2, 0]
    for item, image in zip(items, found, strict=True):
        with Image.open(item) as opened:
            expected = opened.convert("RGB").resize((30, 20), Image.Resampling.BOX)
        assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 2
    again = loader.reader.handlers["image"]
    assert (again.quality, again.max_resolution) == (95 if mode == "dct" else 100, 80)


def test_stock_ffcv_reads_jpegs_of_all_kinds(
    make_folder: Callable[..., Path], tmp_path: Path, stock: Any
) -> None:
    y, x = np.mgrid[0:24, 0:40]
    picture = Image.fromarray(np.stack([6 * x, 10 * y, 99 + x - y], 2).astype(np.uint8))
    kinds = [
        ("RGB", "JPEG", {"quality": 85}), ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}), ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"keep_rgb": True}),
        ("RGB", "JPEG", {"restart_marker_blocks": 1}), ("L", "PNG", {}), ("RGBA", "PNG", {}),
    ]  # fmt: skip
    files = {}
    for place, (mode, kind, options) in enumerate(kinds):
        out = io.BytesIO()
        picture.convert(mode).save(out, kind, **options)
        files[f"{place}.{kind}"] = out.getvalue()
    folder = make_folder(files)
    items = sorted(folder.iterdir())
    path = write(source_of(items), tmp_path / "out", mode="jpg")
    kept = [data == item.read_bytes() for item, (_, data) in zip(items, stored(path), strict=True)]
    assert kept == [True, True, True, False, True, True, False, False]
    images, _ = stock(path)
    for place, (image, item) in enumerate(zip(images, items, strict=True)):
        with Image.open(item) as opened:
            error = np.abs(image.astype(int) - np.asarray(opened.convert("RGB")))
        # Kept JPEGs differ by FFCV's fast transform alone.
        assert error.max() <= (12 if kept[place] else 60)
        assert error.mean() < 4


def test_kept_jpegs_fill_pages_without_gaps(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    contents = [noise(seed, 30 + seed, 40, "JPEG") for seed in range(20)]
    folder = make_folder({f"{place:02}.jpg": c for place, c in enumerate(contents)})
    path = write(source_of(sorted(folder.iterdir())), tmp_path / "out", mode="jpg", workers=2)
    rows = list(stored(path))
    assert [data for _, data in rows] == contents
    assert [(r["mode"], r["width"], r["height"]) for r, _ in rows] == [
        (beton.JPG, 30 + seed, 40) for seed in range(20)
    ]
    tables = beton.read_image_tables(path)
    ends = tables.starts + tables.sizes
    assert ends[:-1].tolist() == tables.starts[1:].tolist()
    assert tables.samples.tolist() == list(range(20))
    assert path.read_bytes()[int(ends[-1]) : tables.data_end].strip(b"\0") == b""


@settings(max_examples=5, deadline=None)
@given(
    mode=st.sampled_from(["dct", "yuv420", "jpg", "raw", "smart", "proportion"]),
    count=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_bytes_do_not_depend_on_workers_or_the_folder(mode: str, count: int, seed: int) -> None:
    base = Path(os.environ.get("TMPDIR", "/tmp")) / f"resnet-ffcv-test-{os.getpid()}"
    try:
        files = base / "source"
        files.mkdir(parents=True)
        for place, image in enumerate(pixels(count, 9, seed)):
            kind = ("png", "jpg")[place % 2]
            Image.fromarray(image[: 5 + place % 4]).save(files / f"{place:03}.{kind}")
        source = source_of(sorted(files.iterdir()))
        found = []
        for workers in (1, 2, 3):
            folder = base / f"by-{workers}"
            write(source, folder, mode=mode, workers=workers, seed=seed, smart_threshold=0.4)
            found.append(digests(folder))
        assert found[0] == found[1] == found[2]
    finally:
        shutil.rmtree(base)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=60), first=st.integers(1, 3))
def test_pages(sizes: list[int], first: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages"
        with PageWriter(path, first * 64, 64) as pages:
            offsets = [pages.place(bytes([place + 1]) * size) for place, size in enumerate(sizes)]
        content = path.read_bytes()
    assert len(content) == pages.end
    filled = np.zeros(len(content), bool)
    for place, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        assert content[offset : offset + size] == bytes([place + 1]) * size
        assert offset // 64 == (offset + size - 1) // 64
        assert not filled[offset : offset + size].any()
        filled[offset : offset + size] = True
    assert not np.frombuffer(content, np.uint8)[~filled].any()
    assert pages.crc32 == [
        f"{zlib.crc32(content[start : start + 64]):08x}"
        for start in range(first * 64, len(content), 64)
    ]
    # As few pages as placing in order allows: what opens a page would not fit the one before.
    for place in range(1, len(sizes)):
        if offsets[place] % 64 == 0:
            assert offsets[place - 1] % 64 + sizes[place - 1] + sizes[place] > 64


class Notes(Report):
    """Keeps what the writer says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.counts: list[list[Any]] = []

    def begin(self, what: str, count: int, unit: str) -> None:
        self.counts.append([what, unit, count, 0])

    def advance(self, count: int) -> None:
        self.counts[-1][3] += count

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_sample_larger_than_a_page_gets_larger_pages(tmp_path: Path) -> None:
    items = np.zeros((3, 1700, 1700, 3), np.uint8)  # 8.67 MB each
    items[1] = 7
    notes = Notes()
    path = write(source_of(items, items[:1]), tmp_path, notes, mode="raw", max_resolution=1700)
    assert "an image takes 8,670,000 bytes: again with pages of 16,777,216" in notes.said
    assert beton.read_image_tables(path).page_size == 1 << 24
    assert [data for _, data in stored(path)] == [item.tobytes() for item in items]


def test_the_largest_of_several_sizes_is_found_at_once(tmp_path: Path) -> None:
    sides = (10, 1700, 10, 2500, 2000)  # 8.67, 18.75 and 12 MB: pages of 16, 32 and 16 MiB
    for place, side in enumerate(sides):
        Image.new("RGB", (side, side), (place, 2, 3)).save(tmp_path / f"{place}.png")
    notes = Notes()
    items = sorted(tmp_path.iterdir())
    path = write(source_of(items, items[:1]), tmp_path / "out", notes, mode="raw", workers=2)
    again = [text for text in notes.said if "again" in text]
    assert again == ["an image takes 18,750,000 bytes: again with pages of 33,554,432"]
    assert [len(data) for _, data in stored(path)] == [side * side * 3 for side in sides]
    assert path.stat().st_size == writer.file_size([side * side * 3 for side in sides])


def test_progress_is_told(tmp_path: Path) -> None:
    notes = Notes()
    write(source_of(pixels(1200), pixels(3)), tmp_path, notes, mode="raw")
    assert notes.counts == [
        ["write train.beton", "images", 1200, 1200], ["check train.beton", "pages", 1, 1],
        ["write val.beton", "images", 3, 3], ["check val.beton", "pages", 1, 1],
    ]  # fmt: skip


def test_the_manifest_describes_the_stored_pixels(tmp_path: Path) -> None:
    items = pixels(1100, 6)  # more than one task
    path = write(source_of(items), tmp_path, mode="raw", workers=2)
    manifest = read_manifest(path)
    values = items.reshape(-1, 3) / 255
    assert manifest.mean == pytest.approx(values.mean(0), abs=1e-12)
    assert manifest.std == pytest.approx(values.std(0), abs=1e-12)
    assert manifest.pixel_mean == "train.beton.pixel_mean.npy"
    found = np.load(tmp_path / manifest.pixel_mean, allow_pickle=False)
    assert (found.dtype, found.shape) == (np.float32, (6, 6, 3))
    assert found == pytest.approx(items.mean(0) / 255, abs=1e-6)
    assert (manifest.width, manifest.height) == ([6, 6, 6], [6, 6, 6])
    content = path.read_bytes()
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()
    pages = manifest.pages
    assert pages.crc32 == [f"{zlib.crc32(content[pages.first :][: pages.size]):08x}"]
    val = read_manifest(tmp_path / "val.beton")
    assert (val.mean, val.std, val.pixel_mean, val.samples) == (None, None, None, 2)


def test_statistics_are_those_of_what_jpeg_left(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    folder = make_folder({f"{seed}.png": noise(seed, 16, 16) for seed in range(5)})
    path = write(source_of(sorted(folder.iterdir())), tmp_path / "out", mode="jpg", quality=30)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in stored(path)])
    manifest = read_manifest(path)
    assert manifest.std == pytest.approx((decoded.reshape(-1, 3) / 255).std(0), abs=1e-12)
    means = np.load(path.parent / str(manifest.pixel_mean))
    assert means == pytest.approx(decoded.mean(0) / 255, abs=1e-6)


@pytest.mark.parametrize("mode", beton.FORMS)
def test_statistics_are_those_of_what_a_form_left(tmp_path: Path, mode: str) -> None:
    items = np.full((6, 40, 40, 3), (200, 60, 60), np.uint8)
    items[:, ::2, 1::2] = items[:, 1::2, ::2] = 60, 60, 200  # red and blue, in turn
    manifest = read_manifest(write(source_of(items), tmp_path, mode=mode, quality=40))
    assert manifest.mean == pytest.approx(items.reshape(-1, 3).mean(0) / 255, abs=0.02)
    # Colour of half the resolution leaves of each pair its mean.
    source = items.reshape(-1, 3).std(0) / 255
    assert (np.array(manifest.std)[[0, 2]] < 0.3 * source[[0, 2]]).all()


@pytest.mark.parametrize("odd", [0, 1, 17, 39])  # in the first task or a later one
def test_images_of_several_sizes_have_no_pixel_mean(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any, odd: int
) -> None:
    files = {f"{p:02}.png": noise(p, 9 - (p == odd), 8) for p in range(40)}
    items = sorted(make_folder(files).iterdir())
    folder = tmp_path / "out"
    write(source_of(items[:1]), folder, mode="raw")
    assert (folder / "train.beton.pixel_mean.npy").exists()
    manifest = read_manifest(write(source_of(items), folder, mode="raw"))
    assert manifest.pixel_mean is None
    assert manifest.width == [8, 9, 9]
    assert not (folder / "train.beton.pixel_mean.npy").exists()


def test_limit_and_proportion_are_drawn_by_the_seed(tmp_path: Path) -> None:
    items = pixels(600)
    labels = {}
    for seed in (0, 1):
        path = write(
            source_of(items), tmp_path / str(seed), mode="proportion", seed=seed, limit=400,
            compress_probability=0.25,
        )  # fmt: skip
        tables = beton.read_image_tables(path)
        assert len(tables.metadata) == 400
        assert 60 <= (tables.metadata["image"]["mode"] == beton.JPG).sum() <= 140
        raw = [data for row, data in stored(path) if row["mode"] == beton.RAW]
        places = [next(i for i in range(600) if items[i].tobytes() == data) for data in raw]
        assert places == sorted(places)  # the order is the source's
        labels[seed] = tables.metadata["label"].tolist()
    assert labels[0] != labels[1]


@pytest.mark.parametrize(("side", "limit", "mode"), [(64, None, "raw"), (65, None, "dct"),
                                                     (65, 64, "raw")])  # fmt: skip
def test_the_default_mode(
    make_folder: Callable[..., Path], noise: Any, side: int, limit: int | None, mode: str
) -> None:
    items = sorted(make_folder({"a.png": noise(0, 9, 9), "b.png": noise(1, 20, side)}).iterdir())
    for images in (items, np.zeros((2, 20, side, 3), np.uint8)):
        split = source_of(images).splits["train"]
        assert writer.default_mode(split, ImageConfig(max_resolution=limit)) == mode


def test_an_image_of_too_many_pixels_is_named(make_folder: Callable[..., Path], noise: Any) -> None:
    items = [make_folder({"a.png": noise(0, 30, 30)}) / "a.png"]
    split = source_of(items).splits["train"]
    assert writer.default_mode(split, ImageConfig(max_pixels=900)) == "raw"
    with pytest.raises(FailureError, match=r"a\.png cannot be read: .*image\.max_pixels=899"):
        writer.default_mode(split, ImageConfig(max_pixels=899))


def test_tasks_are_bounded_in_images_and_bytes(tmp_path: Path) -> None:
    for place in range(40):
        with (tmp_path / f"{place:02}").open("wb") as file:
            file.truncate(3_000_000 if place < 8 else 10)  # holes
    items = sorted(tmp_path.iterdir())
    job = Job(source_of(items), "train", np.arange(40), WriteConfig())
    tasks = list(job.tasks(job.indices))
    assert [index for task in tasks for index in task.indices] == list(range(40))
    assert [len(task.items) for task in tasks] == [2, 2, 2, 2, 16, 16]
    assert all(task.names == [str(item) for item in task.items] for task in tasks)


# Failures: what is said, and that nothing is left ---------------------------------------


def test_a_corrupt_image_is_named_and_older_files_stay(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    files = {f"{place:03}.jpg": noise(place, 20, 20, "JPEG") for place in range(450)}
    folder = make_folder(files)
    items = sorted(folder.iterdir())
    out = tmp_path / "out"
    write(source_of(items), out)
    before = digests(out)
    items[301].write_bytes(items[301].read_bytes()[:-99])  # between two probes
    with pytest.raises(FailureError, match=r"301\.jpg cannot be stored: .*damaged"):
        write(source_of(items), out, workers=2)
    assert digests(out) == before


def test_a_vanished_image_is_named(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    items = sorted(make_folder({f"{p}.png": noise(p, 5, 5) for p in range(3)}).iterdir())
    source = source_of(items)
    items[1].unlink()
    with pytest.raises(FailureError, match=r"1\.png cannot be stored: .*No such file"):
        write(source, tmp_path / "out", mode="raw")
    assert list((tmp_path / "out").iterdir()) == []


class Kill(Report):
    """Kills the workers when the writing has begun."""

    def advance(self, count: int) -> None:  # noqa: ARG002  # the interface's
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)


def test_a_killed_worker_ends_the_write(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"a worker was killed (at|before) image \d"):
        write(source_of(pixels(40_000)), tmp_path, Kill(), mode="jpg", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(FailureError, match=f"{folder} cannot be made"):
            write(source_of(pixels(3)), folder, mode="raw")
    (tmp_path / "out/train.beton").mkdir(parents=True)
    with pytest.raises(FailureError, match=r"train\.beton could not be written: Is a directory"):
        write(source_of(pixels(3)), tmp_path / "out", mode="raw")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["train.beton"]


def test_a_disk_too_small_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    notes = Notes()
    with pytest.raises(
        FailureError, match=r"will take about 0\.03 GB more, the disk has 0\.02 GB free"
    ):
        write(source_of(pixels(3)), tmp_path, notes, mode="raw")
    assert notes.counts == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "items",
    [
        pytest.param(pixels(4000, 64), id="many"),  # 49 MB, of which 200 are probed
        pytest.param(np.zeros((6, 1000, 1500, 3), np.uint8), id="large"),  # one to a page
    ],
)
def test_the_estimate_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: np.ndarray
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FailureError) as error:
        write(source_of(items, items), tmp_path, mode="raw", workers=2)
    estimate = float(str(error.value).split("about ")[1].split(" GB")[0]) * 1e9
    monkeypatch.undo()
    path = write(source_of(items, items), tmp_path, mode="raw", workers=2)
    size = path.stat().st_size + (tmp_path / "val.beton").stat().st_size
    assert size <= estimate + 1e7
    assert estimate < 1.2 * size


@pytest.mark.parametrize("megabytes", [9, 20])
def test_a_full_disk(tmp_path: Path, megabytes: int) -> None:
    # A limit on the size of files, since a full disk cannot be had without root.
    program = f"""if 1:
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_writer import *
        limit = {megabytes} * 1_000_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write(source_of(pixels(1000, 100)), Path({str(tmp_path)!r}), mode="raw")
        except FailureError as error:
            print(error)
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    assert "train.beton could not be written: File too large" in ended.stdout
    if megabytes > 16:  # a page was written: what the rest takes is known
        assert "of 1,000 images; the rest needs about 0.0" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def damage(handle: int) -> None:
        os.pwrite(handle, b"?", beton.DEFAULT_PAGE_SIZE + 100)
        sync(handle)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(FailureError, match="does not read as it was written: page 0 differs"):
        write(source_of(pixels(30) // 8), tmp_path, mode="raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FailureError("no room"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("where", ["check", "describe", "write_manifest"])
def test_whatever_ends_the_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writer, where, fail)
    with pytest.raises(type(error)):
        write(source_of(pixels(3)), tmp_path, mode="raw")
    assert list(tmp_path.iterdir()) == []


def test_an_old_manifest_never_describes_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both files have one size: only the order of the steps can tell them apart after a power cut.
    write(source_of(pixels(3)), tmp_path, mode="raw")
    replace = os.replace

    def stop_after(source: Path, target: Path) -> None:
        replace(source, target)
        if target.suffix == ".beton":
            (tmp_path / "at-that-moment").write_text(" ".join(os.listdir(tmp_path)))

    monkeypatch.setattr(os, "replace", stop_after)
    write(source_of(pixels(3, seed=1)), tmp_path, mode="raw")
    names = (tmp_path / "at-that-moment").read_text().split()
    assert "val.beton" in names
    assert "val.beton.json" not in names


def test_the_quick_start_imports_no_torch() -> None:
    program = (
        "import sys, write_datasets, resnet_ffcv.workers\n"
        "print(*sorted({'torch', 'torchvision', 'ffcv', 'cv2'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True,
        cwd=Path(writer.__file__).parent.parent,
    )  # fmt: skip
    assert ended.stdout.strip() == ""


# Skipping, going on, and other writers -------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_cannot_be_stored_are_left_out(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any, workers: int
) -> None:
    files = {f"{place:02}.png": noise(place, 8, 8) for place in range(40)}
    bad = {0, 1, 17, 39}
    files |= {f"{place:02}.png": b"no image" for place in bad}
    items = sorted(make_folder(files).iterdir())
    notes = Notes()
    path = write(
        source_of(items, items[2:4]), tmp_path / "out", notes, mode="raw", on_error="skip",
        workers=workers,
    )  # fmt: skip
    good = [place for place in range(40) if place not in bad]
    tables, manifest = beton.read_image_tables(path), read_manifest(path)
    assert tables.metadata["label"].tolist() == [place % 3 for place in good]
    pictures = [np.asarray(Image.open(items[place]).convert("RGB")) for place in good]
    assert [data for _, data in stored(path)] == [picture.tobytes() for picture in pictures]
    assert manifest.skipped == [f"{items[0].parent.name}/{place:02}.png" for place in sorted(bad)]
    assert manifest.mean == pytest.approx(np.stack(pictures).reshape(-1, 3).mean(0) / 255)
    assert manifest.pixel_mean is not None
    assert sum("cannot be stored" in text for text in notes.said) == len(bad)
    with pytest.raises(FailureError, match="none of 2 images could be stored"):
        write(source_of(items[:2], items[2:4]), tmp_path / "none", mode="raw", on_error="skip")
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("none left"), "2 cannot be stored: out of memory; try fewer"),
        (MemoryError("of a large image"), ""),
        (OSError(5, "Input/output error"), r"2 cannot be stored: .*Input/output error"),
        (OSError(2, "No such file or directory"), ""),
        (OSError("broken data stream"), ""),  # Pillow's
        (SyntaxError("broken PNG file"), ""),
    ],
)
def test_what_is_no_fault_of_an_image_skips_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    source = source_of(pixels(4))
    config = WriteConfig(image=ImageConfig(mode="raw"), writer=WriterConfig(on_error="skip"))
    (task,) = Job(source, "train", np.arange(4), config).tasks(np.arange(4))
    read = workers.read

    def fail(item: np.ndarray) -> Any:
        if item is task.items[2]:
            raise error
        return read(item)

    monkeypatch.setattr(workers, "read", fail)
    if "none left" in str(error):
        monkeypatch.setattr(workers, "ORDINARY", 1 << 62)
    memory = workers.Memory()
    encoded = workers.encode_task(task, memory)
    memory.close()
    assert bool(encoded.fault) == bool(words)
    assert re.search(words, encoded.fault)
    assert list(encoded.failures) == ([] if words else [2])
    assert len(encoded.images) == (2 if words else 3)


class Stop(Notes):
    """Ends the write when so many images are done."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "damage", ["none", "last page", "first page", "torn line", "changed line", "no journal"]
)
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_stopped_write_is_gone_on_with(tmp_path: Path, mode: str, damage: str) -> None:
    items = pixels(1500, 100)  # 45 MB raw: six pages; as JPEG some of 8 kB
    source, expected, folder = source_of(items), tmp_path / "whole", tmp_path / "out"
    write(source, expected, mode=mode, quality=95, resume=True)
    with pytest.raises(KeyboardInterrupt):
        write(source, folder, Stop(1200), mode=mode, quality=95, resume=True)
    partial, journal = folder / "train.beton.partial", folder / "train.beton.partial.journal"
    assert sorted(folder.iterdir()) == [partial, journal]
    pages = (partial.stat().st_size - beton.DEFAULT_PAGE_SIZE) // beton.DEFAULT_PAGE_SIZE
    if damage == "torn line":
        with journal.open("a") as file:
            file.write('{"done": 14')
    elif damage == "changed line":
        content = bytearray(journal.read_bytes())
        content[content.index(b'"rows":"') + 30] ^= 1
        journal.write_bytes(content)
    elif damage == "no journal":
        journal.unlink()
    elif damage != "none":
        with partial.open("r+b") as file:
            file.seek(beton.DEFAULT_PAGE_SIZE * (1 if damage == "first page" else pages) + 77)
            file.write(b"????")
    notes = Notes()
    write(source, folder, notes, mode=mode, quality=95, resume=True, workers=2)
    assert digests(folder) == digests(expected)
    went_on = [text for text in notes.said if "resuming" in text]
    assert len(went_on) == (damage in ("none", "last page", "torn line"))


@pytest.mark.parametrize("change", ["nothing", "an image", "the encoder", "a class"])
def test_a_finished_split_is_kept_while_the_other_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    paths = [tmp_path / f"{number:02}.bmp" for number in range(40)]
    for image, path in zip(pixels(40, 512), paths, strict=True):  # 0.8 MB each: ten to a page
        Image.fromarray(image).save(path)
    source, folder = source_of(paths[:10], paths[10:]), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(source, folder, Stop(35), mode="raw", resume=True)
    assert (folder / "train.beton").exists()
    assert (folder / "val.beton.partial").exists()
    if change == "an image":
        Image.fromarray(np.zeros((512, 512, 3), np.uint8)).save(paths[0])  # of as many bytes
    elif change == "the encoder":
        monkeypatch.setattr(writer, "encoder_digest", lambda: "another")
    elif change == "a class":
        source = replace(source, classes=["a", "b", "d"])
    notes = Notes()
    write(source, folder, notes, mode="raw", resume=True)
    kept = any("train.beton is there already, of these" in text for text in notes.said)
    assert kept == (change == "nothing")
    write(source, tmp_path / "whole", mode="raw")
    assert digests(folder) == digests(tmp_path / "whole")
    # Nothing was stopped: what is there is of images that may have changed since.
    notes = Notes()
    write(source, folder, notes, mode="raw", resume=True)
    assert not any("of these" in text for text in notes.said)


def test_room_on_the_disk_is_wanted_for_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(pixels(1500, 100), pixels(600, 100))  # files of 59 and 34 MB

    def have(free: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    have(100_000_000)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path, Stop(1200), mode="raw", resume=True)
    have(65_000_000)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path, Stop(1800), mode="raw", resume=True)
    assert (tmp_path / "train.beton").exists()
    have(20_000_000)
    with pytest.raises(FailureError, match="GB more, the disk has"):
        write(source_of(pixels(1500, 100), pixels(1200, 100)), tmp_path, mode="raw", resume=True)
    have(35_000_000)
    write(source, tmp_path, mode="raw", resume=True)


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_write_that_is_stopped_again_and_again_gets_on(tmp_path: Path, mode: str) -> None:
    source = source_of(pixels(2500, 100))
    options: dict[str, Any] = {"mode": mode, "quality": 95, "resume": True}
    expected = write(source, tmp_path / "whole", **options)
    done = []
    for after in range(400, 2500, 400):
        stop = Stop(after)
        with pytest.raises(KeyboardInterrupt):
            write(source, tmp_path / "out", stop, workers=2, **options)
        done += [int(text.split()[-6].replace(",", "")) for text in stop.said if "resuming" in text]
    assert done == sorted(done)
    assert len(set(done)) >= 3
    assert done[-1] > 1_000
    write(source, tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(expected.parent)


def test_a_partial_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(source_of(pixels(1500, 100)), tmp_path, Stop(1200), mode="raw", resume=True)
    other = source_of(pixels(1500, 100, seed=1))
    notes = Notes()
    write(other, tmp_path, notes, mode="raw", resume=True)
    assert not any("resuming" in text for text in notes.said)
    assert next(stored(tmp_path / "train.beton"))[1] == other.splits["train"].items[0].tobytes()


@pytest.mark.parametrize("change", ["nothing", "an image", "the encoder"])
def test_a_partial_is_gone_on_with_unless_images_or_encoder_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    paths = []
    for number, image in enumerate(pixels(40, 512)):  # 0.8 MB each: ten to a page
        paths.append(tmp_path / f"{number:02}.png")
        Image.fromarray(image).save(paths[-1], compress_level=0)
    source, folder = source_of(paths), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(source, folder, Stop(30), mode="raw", resume=True)
    notes = Notes()
    if change == "an image":
        Image.fromarray(pixels(1, 512, seed=1)[0]).save(paths[0], compress_level=0)
    elif change == "the encoder":
        monkeypatch.setattr(writer, "encoder_digest", lambda: "another")
    write(source, folder, notes, mode="raw", resume=True)
    assert any("resuming" in text for text in notes.said) == (change == "nothing")


def test_what_a_stopped_write_left_is_told_of(tmp_path: Path) -> None:
    source, notes = source_of(pixels(1500, 100)), Notes()
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path, Stop(1200), mode="raw", resume=True)
    write(source, tmp_path, notes, mode="raw")
    assert sum("train.beton.partial is of a stopped write" in text for text in notes.said) == 1


def test_larger_pages_are_gone_on_with(tmp_path: Path) -> None:
    items = np.random.default_rng(0).integers(0, 256, (9, 1700, 1700, 3), np.uint8)  # 8.67 MB each
    source = source_of(items, items[:1])
    expected = write(source, tmp_path / "whole", mode="raw", resume=True)
    notes = Notes()

    class StopLater(Notes):
        def begin(self, what: str, count: int, unit: str) -> None:
            super().begin(what, count, unit)

        def advance(self, count: int) -> None:
            super().advance(count)
            if len(self.counts) == 2 and self.counts[-1][3] == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "out", StopLater(), mode="raw", resume=True)
    write(source, tmp_path / "out", notes, mode="raw", resume=True)
    assert any("resuming" in text for text in notes.said)
    assert digests(tmp_path / "out") == digests(expected.parent)


def test_a_write_with_larger_pages_is_gone_on_with(tmp_path: Path) -> None:
    """What the journal said of the first attempt is forgotten at the second."""
    paths = []
    for number in range(700):
        side = 1_700 if number == 400 else 120  # 8.67 MB, and 43 kB: 388 to a page
        paths.append(tmp_path / f"{number:03}.png")
        Image.fromarray(pixels(1, side, number)[0]).save(paths[-1], compress_level=0)
    source = source_of(paths, paths[:1])
    expected = write(source, tmp_path / "whole", mode="raw", resume=True)

    class StopInSecond(Notes):
        def advance(self, count: int) -> None:
            super().advance(count)
            if len(self.counts) == 2 and self.counts[-1][3] > 650:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "out", StopInSecond(), mode="raw", resume=True)
    notes = Notes()
    write(source, tmp_path / "out", notes, mode="raw", resume=True)
    assert any("resuming" in text for text in notes.said)
    assert digests(tmp_path / "out") == digests(expected.parent)


def test_a_finished_file_of_other_images_is_not_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(pixels(1, 20, number)[0]).save(path)
    write(source_of(paths), tmp_path / "out", mode="raw", resume=True)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(paths[0])  # of fewer bytes
    path = write(source_of(paths), tmp_path / "out", mode="raw", resume=True)
    assert next(stored(path))[1] == bytes(1200)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with lock_folder(tmp_path, ""), pytest.raises(FailureError, match="another write_datasets"):
        write(source_of(pixels(3)), tmp_path, mode="raw")
    write(source_of(pixels(3)), tmp_path, mode="raw")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["publish", "write_new"])
def test_a_failure_while_publishing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writer, where, fail)
    with pytest.raises(FailureError if isinstance(error, OSError) else KeyboardInterrupt):
        write(source_of(pixels(3)), tmp_path, mode="raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stopped", ["before it", "after it", "for good"])
@pytest.mark.parametrize("resume", [False, True])
def test_whichever_rename_fails_files_are_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool, stopped: str
) -> None:
    """A rename fails; or Ctrl-C comes right after it; or no rename works any more."""
    bad = tmp_path / "no.png"
    bad.write_bytes(b"no image")
    folder, newer = tmp_path / "out", source_of(pixels(9, seed=1))
    write(newer, tmp_path / "new", mode="raw")
    write(source_of(pixels(3)), tmp_path / "old", mode="raw")
    states = [digests(tmp_path / "old"), digests(tmp_path / "new")]
    replace = os.replace
    seen = set()
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "old", folder)
        calls = 0

        def fail(source: Path, target: Path, number: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == number and stopped == "after it":
                replace(source, target)
                raise KeyboardInterrupt
            if calls == number or (calls > number and stopped == "for good"):
                raise OSError(5, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with suppress(FailureError, KeyboardInterrupt):
            write(newer, folder, mode="raw", resume=resume)
        monkeypatch.setattr(os, "replace", replace)
        if calls < number:
            break
        if stopped == "for good":  # the next run, though it comes to nothing, mends it
            with pytest.raises(FailureError, match="cannot be stored"):
                write(source_of([bad], [bad]), folder, mode="raw", resume=resume)
        found = digests(folder)
        for split in ("train", "val"):
            ours = {n: sha for n, sha in found.items() if n.startswith(split) and "part" not in n}
            of_split = [{n: s[n] for n in s if n.startswith(split)} for s in states]
            assert ours in of_split
            seen.add((split, of_split.index(ours)))
            if stopped == "before it" and ours == of_split[0] and split == "train":
                assert any("partial" in name for name in found) == resume  # it can be resumed
        assert not any(name.startswith(".") for name in found)
        shutil.rmtree(folder)
    assert number > 5
    assert len(seen) == 4  # older and newer files of both
    assert digests(folder) == states[1]


# Folder after folder of older files in argv[1]: a write of newer ones is killed at another rename.
KILLED_AT_EVERY_RENAME = """
import itertools, os, sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    from test_writer import pixels, source_of, write

    replace = os.replace
    for number in itertools.count(1):
        folder, calls = Path(sys.argv[1], str(number)), itertools.count(1)
        child = os.fork()
        if child == 0:
            write(source_of(pixels(3)), folder, mode="raw")
            (folder / "train.beton.partial").write_bytes(b"of an earlier write, stopped")
            os.replace = lambda *names: os._exit(9) if next(calls) == number else replace(*names)
            newer = source_of(pixels(9, seed=1))
            write(newer, folder, mode="raw", resume=sys.argv[3] == "True")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 9:
            sys.exit(code)  # 0: it had fewer renames
"""


@pytest.mark.parametrize("resume", [False, True])
def test_whichever_rename_is_the_last_before_a_kill_files_are_old_or_new(
    tmp_path: Path, resume: bool
) -> None:
    older, newer = source_of(pixels(3)), source_of(pixels(9, seed=1))
    states = [digests(write(source, tmp_path / name, mode="raw").parent) for name, source in
              (("old", older), ("new", newer))]  # fmt: skip
    bad = tmp_path / "no.png"
    bad.write_bytes(b"no image")
    script, killed = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(KILLED_AT_EVERY_RENAME)
    subprocess.run(
        [sys.executable, str(script), str(killed), str(Path(__file__).parent), str(resume)],
        check=True,
        timeout=600,
    )
    assert len(list(killed.iterdir())) >= 10
    for folder in killed.iterdir():
        with pytest.raises(FailureError, match="cannot be stored"):  # a run that comes to nothing
            write(source_of([bad], [bad]), folder, mode="raw", resume=resume)
        found = digests(folder)
        ours = {n: sha for n, sha in found.items() if n.startswith("train") and "part" not in n}
        assert ours in [{n: s[n] for n in s if n.startswith("train")} for s in states]
        write(newer, folder, mode="raw", resume=resume)
        assert {n: s for n, s in digests(folder).items() if "partial" not in n} == states[1]


def test_a_label_that_does_not_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def damage(handle: int) -> None:
        os.pwrite(handle, b"\2", 24 + 2 * 1041 + 16)  # of sample 0
        sync(handle)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(FailureError, match="the header, the fields or the metadata differ"):
        write(source_of(pixels(30)), tmp_path, mode="raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_files_of_the_users_that_look_like_ours_stay(tmp_path: Path, kind: str) -> None:
    ends = (".part", ".new", ".old", ".json.new", "-2.0123456789abcdef.part", ".bak.old")
    names = [f"{lead}train.beton{end}" for lead in (".", "..", "") for end in ends]
    for name in names:
        (tmp_path / name).mkdir() if kind == "folder" else (tmp_path / name).write_text("mine")
    write(source_of(pixels(3)), tmp_path, mode="raw")
    write(source_of(pixels(3)), tmp_path, mode="raw", resume=True)
    assert {path.name for path in tmp_path.iterdir()} >= set(names)
    if kind == "file":
        assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_only_a_journal_is_removed_where_a_journal_would_be(tmp_path: Path) -> None:
    path = tmp_path / "train.beton.partial.journal"
    for content in (b"my notes\n", b"", b"{}\n"):
        path.write_bytes(content)
        write(source_of(pixels(3)), tmp_path, mode="raw")
        assert path.read_bytes() == content
    Journal(path.with_suffix(""), {"job": 1}, 3).begin(beton.DEFAULT_PAGE_SIZE)
    write(source_of(pixels(3)), tmp_path, mode="raw")
    assert not path.exists()


def test_names_that_are_not_utf_8_are_written_and_listed(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    folder = make_folder({"1.png": noise(0, 8, 8), "2.png": noise(1, 8, 8), "3.png": b"no image"})
    (folder / "2.png").rename(folder / os.fsdecode(b"caf\xe9\n\x1b[31m.png"))
    (folder / "3.png").rename(folder / os.fsdecode(b"\xff\\.png"))
    items = sorted(folder.iterdir())
    for resume in (False, True):
        path = write(
            source_of(items, items[:1]), tmp_path / "out", mode="raw", on_error="skip",
            resume=resume,
        )  # fmt: skip
        assert read_manifest(path).skipped == [r"source/\xff\\.png"]
        assert read_manifest(path).samples == 2


def test_a_worker_that_is_stopped_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.02)
    monkeypatch.setattr(workers, "POLL", 0.01)

    class StopWorker(Notes):
        def begin(self, what: str, count: int, unit: str) -> None:
            super().begin(what, count, unit)
            if len(self.counts) == 1:
                self.said.clear()  # its start may have taken longer, too
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGSTOP)

        def say(self, text: str) -> None:
            super().say(text)
            if len(self.waits()) >= 3:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGCONT)

        def waits(self) -> list[str]:
            return [text for text in self.said if text.startswith("waiting for 1 of 1 workers")]

    notes = StopWorker()
    write(source_of(pixels(9)), tmp_path, notes, mode="raw")
    assert len(notes.waits()) >= 3  # each time after twice as long
    assert re.search(r"(at|before) image \d for \d+ s: stopped, or the disk", notes.waits()[0])


def test_a_waiting_worker_is_told_of_after_ever_longer_times() -> None:
    worker = workers.Worker.__new__(workers.Worker)
    worker.unanswered, worker.memories = workers.deque(), [workers.Memory()]
    worker.seen_at, worker.since, worker.patience = "", 0.0, workers.PATIENCE
    assert worker.look(1000.0) == ""  # it has nothing to do
    source = source_of(pixels(4))
    (task,) = Job(source, "train", np.arange(4), WriteConfig()).tasks(np.arange(4))
    worker.unanswered.append(workers.Handed(task, worker, 0))
    told = []
    for second in range(300):
        worker.memories[0].tell(0 if second < 200 else 1)
        words = worker.look(2000.0 + second)
        told += [(second, words)] if words else []
    worker.memories[0].close()
    assert told == [
        (30, "at image 0 for 30 s"), (60, "at image 0 for 60 s"), (120, "at image 0 for 120 s"),
        (230, "at image 1 for 30 s"), (260, "at image 1 for 60 s"),
    ]  # fmt: skip
