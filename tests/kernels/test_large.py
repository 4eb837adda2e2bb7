"""Images with the longest sides that a file can hold, and as many threads as there may be."""

import numpy as np
import pytest
from images import draw_image
from references import resample

from resnet_ffcv.encode import encode_form
from resnet_ffcv.kernels import batches, dct
from resnet_ffcv.kernels.geometry import Window, read_window
from resnet_ffcv.kernels.taps import AREA, CUBIC

CODES = {"dct": batches.DCT, "yuv420": batches.YUV420}


def draw_places(height: int, width: int) -> np.ndarray:
    """A ramp along the sides, and random squares of 16 pixels: no place looks like another."""
    y, x = np.mgrid[:height, :width]
    squares = np.random.default_rng(0).uniform(-40, 40, (height // 16 + 1, width // 16 + 1))
    gray = 60 + 100 * (y / height + x / width) / 2 + squares[y // 16, x // 16]
    return (gray[..., None] + [-10, 0, 20]).clip(0, 255).astype(np.uint8)


def cut(image: np.ndarray, window: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Window]:
    """The part of an image that a window sees with all that a filter reaches, and the window there.

    A cubic filter reaches 2 outputs to either side.
    """
    reach = [4 * int(np.ceil(window[2 + axis] / size[axis])) + 16 for axis in range(2)]
    begin = [max(0, int(window[axis]) - reach[axis]) & -2 for axis in range(2)]
    end = [int(window[axis] + window[2 + axis]) + reach[axis] for axis in range(2)]
    part = image[begin[0] : end[0], begin[1] : end[1]]
    return part, read_window(window - [*begin, 0, 0, 0, 0])


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("shape", [(65_535, 9), (9, 65_535), (65_535, 1), (3_001, 4_999)])
def test_the_longest_sides(form: str, shape: tuple[int, int]) -> None:
    image = draw_places(*shape)
    data, colour = encode_form(form, image, 95)
    tall, wide = (min(side, 40) for side in shape)
    windows = np.array([
        [0, 0, *shape, 0, 0], [shape[0] - tall, shape[1] - wide, tall, wide, 0, 1],
        [shape[0] / 3, shape[1] / 3, shape[0] / 2, shape[1] / 2, 1, 0],
    ])  # fmt: skip
    regions = np.array([[data.ctypes.data, len(data)]] * 3)
    rows = np.array([[*shape, colour, 0]] * 3, np.int32)
    for filter_ in (AREA, CUBIC):
        for size in ((40, 30), (1, 1)):
            out = np.zeros((3, *size, 3), np.uint8)
            statuses = batches.decode_samples(
                CODES[form], regions, rows, windows, filter_, out, tables=dct.make_tables(95)
            )
            assert not statuses.any()
            for window, found in zip(windows, out, strict=True):
                if window[2] * window[3] > 2_000_000 and filter_ == CUBIC:
                    continue  # the reference would take minutes
                part, moved = cut(image, window, size)
                error = np.abs(found - resample(part, moved, filter_, size))
                assert error.max() < 3


@pytest.mark.parametrize("form", [*CODES, "raw"])
def test_any_number_of_threads_gives_the_same_bits(form: str) -> None:
    rng = np.random.default_rng(0)
    images = [draw_image(rng, *rng.integers(1, 200, 2)) for _ in range(33)]
    encoded = [
        (image.reshape(-1), batches.RAW_MODE) if form == "raw" else encode_form(form, image, 90)
        for image in images
    ]
    regions = np.array([[data.ctypes.data, len(data)] for data, _ in encoded])
    rows = np.array(
        [[*image.shape[:2], kind, 0] for image, (_, kind) in zip(images, encoded, strict=True)],
        np.int32,
    )
    windows = np.array(
        [[0, 0, *image.shape[:2], 0, place % 2] for place, image in enumerate(images)]
    )
    found = []
    for threads in (1, 2, 4, 40):
        out = np.zeros((33, 31, 47, 3), np.uint8)
        statuses = batches.decode_samples(
            CODES.get(form, batches.IMAGE), regions, rows, windows.astype(float), AREA, out,
            tables=dct.make_tables(90), threads=threads,
        )  # fmt: skip
        assert not statuses.any()
        found.append(out)
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("size", [(600, 16), (16, 600), (4_096, 1), (1, 4_096), (1, 1)])
def test_scratch_memory_suffices(form: str, gray: bool, size: tuple[int, int]) -> None:
    rng, tables = np.random.default_rng(0), dct.make_tables(90)
    for side in (1, 2, 8, 70):
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        if gray:
            image[:] = image[..., :1]
        data, colour = encode_form(form, image, 90)
        regions = np.array([[data.ctypes.data, len(data)]])
        rows = np.array([[side, side, colour, 0]], np.int32)
        for filter_ in (AREA, CUBIC):
            window = np.array([[0.0, 0, side, side, 1, 0]])
            statuses, out = np.empty(1, np.int32), np.zeros((1, *size, 3), np.uint8)
            arguments = CODES[form], regions, rows, window, filter_, False
            words = batches.check_samples(*arguments, size, tuple(batches.UNLIMITED), statuses)
            work = np.full(words + 1_000, 77, np.int32)
            batches.decode_some(
                *arguments, (0, 0, 0), tables.inverse, tables.means, out, statuses, work[:words],
                np.zeros(1, np.int64),
            )  # fmt: skip
            assert not statuses.any()
            assert (work[words:] == 77).all()


def test_a_row_that_lies_asks_for_no_memory() -> None:
    data, statuses = np.zeros(1_000, np.uint8), np.empty(1, np.int32)
    regions, window = np.array([[data.ctypes.data, 1_000]]), np.array([[0.0, 0, 9, 9, 0, 0]])
    for form, kind in (
        (batches.IMAGE, 0),
        (batches.IMAGE, 1),
        (batches.DCT, 1),
        (batches.YUV420, 1),
    ):
        rows = np.array([[65_535, 65_535, kind, 0]], np.int32)
        checked = form, regions, rows, window, AREA, False, (9, 9), tuple(batches.UNLIMITED)
        assert batches.check_samples(*checked, statuses) == 0
        assert statuses[0] != 0
