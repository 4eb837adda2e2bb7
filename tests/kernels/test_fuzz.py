"""Damaged samples of every form: a status or pixels, and nothing read or written outside."""

import ctypes
import io
import mmap

import numpy as np
import pytest
from images import draw_image, draw_size
from PIL import Image

from resnet_ffcv.kernels import batches, dct, status, yuv420
from resnet_ffcv.kernels.colour import HALF
from resnet_ffcv.kernels.taps import CUBIC

CASES = 4_600  # of each form and of either fence: 20,125 damaged data of dct, yuv420 and jpg
PAGE = mmap.PAGESIZE
QUALITY = 90
FORMS = ("dct", "yuv420", "jpg", "raw")


class Fenced:
    """Memory that ends at a page which must not be touched, or begins behind one."""

    def __init__(self, most: int, at_end: bool) -> None:
        self.room, self.at_end = -(-most // PAGE) * PAGE, at_end
        self.map = mmap.mmap(-1, self.room + 2 * PAGE)
        self.all = np.frombuffer(self.map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        begin = self.all.ctypes.data
        for page in (begin, begin + PAGE + self.room):
            assert libc.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0

    def take(self, size: int) -> np.ndarray:
        begin = PAGE + (self.room - size if self.at_end else 0)
        return self.all[begin : begin + size]


def encode(form: str, image: np.ndarray, rng: np.random.Generator) -> tuple[bytes, list[int]]:
    """(data, numbers of its row)."""
    shape, colour = image.shape[:2], int(rng.integers(2))
    if form == "dct":
        data = np.empty(dct.most_dct_bytes(*shape, colour), np.uint8)
        size = dct.encode_dct(image, colour, dct.make_tables(QUALITY).factors, data)
        return data[:size].tobytes(), [*shape, colour, 0]
    if form == "yuv420":
        data = np.empty(yuv420.yuv420_bytes(*shape, colour), np.uint8)
        yuv420.encode_yuv420(image, colour, data)
        return data.tobytes(), [*shape, colour, 0]
    if form == "raw":
        return image.tobytes(), [*shape, batches.RAW_MODE, 0]
    out, options = io.BytesIO(), [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}]
    mode = "RGB" if colour == HALF else "L"
    Image.fromarray(image).convert(mode).save(out, "JPEG", quality=85, **options[rng.integers(4)])
    return out.getvalue(), [*shape, batches.JPEG_MODE, 0]


def damage(data: bytes, row: list[int], rng: np.random.Generator) -> tuple[bytes, list[int]]:
    content, row = bytearray(data), list(row)
    kind = rng.integers(6)
    if kind == 0:  # single bytes
        for place in rng.integers(len(content), size=rng.integers(1, 9)):
            content[place] = rng.integers(256)
    elif kind == 1:  # near the beginning, where sizes and tables stand
        place = rng.integers(min(len(content), 40))
        content[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        content = content[: rng.integers(1, len(content) + 1)]
    elif kind == 3:
        content += rng.bytes(rng.integers(1, 100))
    elif kind == 4:  # a run of other bytes
        place = rng.integers(len(content))
        run = rng.bytes(rng.integers(1, 200))[: len(content) - place]
        content[place : place + len(run)] = run
    else:  # the row
        row[rng.integers(4)] = int(rng.choice([0, 1, 2, 7, 40, 64, 65, 200, 255]))
    return bytes(content), row


def draw_window(
    rng: np.random.Generator, row: list[int], size: tuple[int, int], padded: bool
) -> list[float]:
    height, width = row[0], row[1]
    if padded:
        y, x = rng.integers(-90, 90, 2)
        return [y, x, *size, 0, rng.integers(2)]
    tall, wide = rng.uniform(0.01, 1, 2) * (height, width)
    y, x = rng.uniform(0, 1, 2) * (height - tall, width - wide)
    if rng.integers(20) == 0:
        y = rng.choice([-1, height, np.nan, np.inf, 1e300])
    return [y, x, tall, wide, rng.integers(2), rng.integers(2)]


def is_inside(window: np.ndarray, row: list[int]) -> bool:
    """Whether a window lies in its image, from top to bottom; draw_window moves it no other way."""
    return bool(window[0] >= 0 and window[0] + window[2] <= row[0] + 1e-9)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_damaged_samples_stay_inside_their_memory(form: str, at_end: bool) -> None:
    rng = np.random.default_rng(FORMS.index(form) + 10 * at_end)
    source, target = Fenced(1 << 20, at_end), Fenced(3 * 70 * 70, at_end)
    memory = Fenced(1 << 24, at_end)
    code = {"dct": batches.DCT, "yuv420": batches.YUV420}.get(form, batches.IMAGE)
    _, inverse, means = dct.make_tables(QUALITY)
    seen: dict[int, int] = {}
    wholes = []
    for case in range(CASES):
        if case % 50 == 0:
            image = draw_image(rng, *draw_size(rng, 150))
            if rng.integers(5) == 0:
                image[:] = image[..., :1]
            wholes.append(encode(form, image, rng))
        content, numbers = wholes[rng.integers(len(wholes))]
        intact = case % 8 == 0
        if not intact:
            content, numbers = damage(content, numbers, rng)
        data = source.take(len(content))
        data[:] = np.frombuffer(content, np.uint8)
        size, padded = draw_size(rng), case % 5 == 4
        out = target.take(3 * size[0] * size[1]).reshape(1, *size, 3)
        out[:] = 99
        regions = np.array([[data.ctypes.data, len(content)]])
        rows = np.array([numbers], np.int32)
        windows = np.array([draw_window(rng, numbers, size, padded)], np.float64)
        filter_, statuses = int(rng.integers(CUBIC + 1)), np.empty(1, np.int32)
        words = batches.check_samples(
            code, regions, rows, windows, filter_, padded, size, tuple(batches.UNLIMITED), statuses
        )
        work = memory.take(4 * words).view(np.int32)
        batches.decode_some(
            code, regions, rows, windows, filter_, padded, (1, 2, 3), inverse, means, out,
            statuses, work, np.zeros(1, np.int64),
        )  # fmt: skip
        found = int(statuses[0])
        seen[found] = seen.get(found, 0) + 1
        assert found in status.MEANING
        if intact:
            fits = padded or is_inside(windows[0], numbers)
            assert found == (status.WHOLE if fits else status.BAD_WINDOW)
        if found != status.WHOLE:
            assert not out.any()
        else:  # the same as in memory without fences, filled with something else
            again = np.full((1, *size, 3), 55, np.uint8)
            batches.decode_samples(
                code, regions, rows, windows, filter_, again,
                fill=(1, 2, 3) if padded else None, tables=dct.make_tables(QUALITY),
            )  # fmt: skip
            assert np.array_equal(out, again)
    assert seen[status.WHOLE] > CASES // 20
    wanted = {
        "dct": {status.WRONG_SIZE, status.BAD_GROUP, status.BAD_ROW},
        "yuv420": {status.WRONG_SIZE, status.BAD_ROW},
        "jpg": {status.BAD_JPEG, status.OTHER_JPEG_SIZE, status.BAD_ROW},
        "raw": {status.WRONG_SIZE, status.BAD_ROW},
    }
    assert wanted[form] <= set(seen)
