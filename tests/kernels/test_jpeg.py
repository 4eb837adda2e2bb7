"""JPEGs of every sampling, against a full decode by Pillow that is resampled in float64."""

import io
import itertools

import numpy as np
import pytest
from images import Guarded, Work, draw_size, draw_window
from PIL import Image
from references import resample

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.geometry import Window, choose_eighths, count_axis_words, scaled
from resnet_ffcv.kernels.jpeg import count_jpeg_work, decode_jpeg, read_frame

KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "RGB": {"keep_rgb": True},
    "gray": {},
}


def smooth(rng: np.random.Generator, shape: tuple[int, int]) -> Image.Image:
    small = rng.uniform(30, 220, (shape[0] // 10 + 2, shape[1] // 10 + 2, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)


def save(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image = image.convert("L") if kind == "gray" else image
    image.save(out, "JPEG", quality=95, **KINDS[kind])
    return out.getvalue()


def decode(data: bytes, shape, window: Window, filter_: int, size) -> tuple[int, np.ndarray]:
    source = np.frombuffer(data, np.uint8)
    words = count_axis_words(window, filter_, *size)
    decoded = [scaled(side, choose_eighths(window, *size)) for side in shape]
    work, out = Work(4 * words + count_jpeg_work(*decoded, *size)), Guarded(size)
    found = decode_jpeg(
        source.ctypes.data, len(data), *shape, window, filter_, out.image.ctypes.data, *size,
        work.words,
    )  # fmt: skip
    work.check()
    return found, out.check()


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_a_full_decode(kind: str) -> None:
    rng, squares = np.random.default_rng(0), []
    for case in range(120):
        shape, size = draw_size(rng, 120), draw_size(rng)
        data, window = save(smooth(rng, shape), kind), draw_window(rng, *shape)
        found, out = decode(data, shape, window, case % 3, size)
        assert found == status.WHOLE
        with Image.open(io.BytesIO(data)) as opened:
            whole = np.asarray(opened.convert("RGB"))
        if choose_eighths(window, *size) < 8:
            continue  # libjpeg's scaled image; see below
        expected = np.clip(resample(whole, window, case % 3, size), 0, 255)
        # Pillow's pixels are rounded to RGB and clipped first.
        error = out - expected
        assert np.abs(error).max() <= 3, (shape, window)
        squares.append((error**2).mean())
    assert np.mean(squares) ** 0.5 < 0.6


def test_scaled_decoding_is_libjpegs() -> None:
    rng = np.random.default_rng(1)
    for case in range(40):
        shape, eighths = draw_size(rng, 300), (4, 2, 1)[case % 3]
        data = save(smooth(rng, shape), "gray")
        reduced = tuple(max(2, n * eighths // 16 * 2) for n in shape)
        size = tuple(n // 2 for n in reduced)  # leaves geometry.MARGIN
        window = Window(
            0.0, 0.0, reduced[0] * 8.0 / eighths, reduced[1] * 8.0 / eighths, False, False
        )
        if window.height > shape[0] or window.width > shape[1]:
            continue
        found, out = decode(data, shape, window, 0, size)
        assert found == status.WHOLE
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("L", (max(1, shape[1] * eighths // 8), max(1, shape[0] * eighths // 8)))
            assert opened.size == (-(-shape[1] * eighths // 8), -(-shape[0] * eighths // 8))
            theirs = np.asarray(opened)
        seen = Window(0.0, 0.0, *map(float, reduced), False, False)
        expected = resample(theirs[..., None], seen, 0, size)[..., 0]
        assert np.abs(out[..., 0] - expected).max() <= 1.1


def test_the_size_is_found_in_the_frame() -> None:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (30, 50, 3), np.uint8))
    for options in ({}, {"progressive": True}, {"exif": b"Exif" + bytes(3_000)}, {"quality": 5}):
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        data = np.frombuffer(out.getvalue(), np.uint8)
        assert read_frame(data.ctypes.data, len(data))[:2] == (30, 50)
        assert read_frame(data.ctypes.data, 100)[:2] == (0, 0)


def test_planes_have_room_for_any_sampling_that_is_found_when_the_header_is_read_again() -> None:
    lines = [*range(1, 150), 255, 256, 257, 1_000, 65_535]
    height, width = (np.array(axis, np.int64) for axis in np.meshgrid(lines, lines))
    stride = (width + 63) // 64 * 64
    for half_across, half_down in itertools.product((False, True), repeat=2):
        tall = (height + 1) // 2 if half_down else height
        wide = ((width + 1) // 2 if half_across else width) + 63
        before = 63 + stride * (height + 1) + 32 + wide // 64 * 64 * tall + 32
        end = before + wide // 64 * 64 * (height + 1) + stride  # rows of full width, one too many
        room = [count_jpeg_work(h, w, 1, 1) for h, w in zip(height.flat, width.flat, strict=True)]
        assert (end.ravel() <= room).all()


def test_damage_is_told() -> None:
    rng = np.random.default_rng(2)
    shape = (60, 80)
    data = save(smooth(rng, shape), "4:2:0")
    window = Window(0.0, 0.0, 60.0, 80.0, False, False)
    assert decode(data, shape, window, 0, (32, 32))[0] == status.WHOLE
    assert decode(data, (60, 81), window, 0, (32, 32))[0] == status.OTHER_JPEG_SIZE
    assert decode(data[: len(data) // 2], shape, window, 0, (32, 32))[0] == status.BAD_JPEG
    assert decode(b"no JPEG", shape, window, 0, (32, 32))[0] == status.BAD_JPEG
    without_tables = data.replace(b"\xff\xdb", b"\xff\xef")
    assert decode(without_tables, shape, window, 0, (32, 32))[0] == status.BAD_JPEG
    outcomes = set()
    for _ in range(1_500):
        hurt = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            hurt[rng.integers(len(hurt))] = rng.integers(256)
        outcomes.add(decode(bytes(hurt), shape, window, 0, (32, 32))[0])
    assert outcomes == {status.WHOLE, status.BAD_JPEG, status.OTHER_JPEG_SIZE}
