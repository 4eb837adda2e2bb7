"""Images with the longest sides that a file can hold, and as many threads as there may be."""

import numpy as np
import pytest
from images import draw_image
from references import resample

from resnet_ffcv.encode import encode_form
from resnet_ffcv.kernels import batches, dct
from resnet_ffcv.kernels.geometry import read_window
from resnet_ffcv.kernels.taps import AREA, CUBIC

CODES = {"dct": batches.DCT, "yuv420": batches.YUV420}


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 170) + np.cos(x / 90), np.cos((x + y) / 150) * 2, np.sin(x / 130) * 2]
    return (128 + 60 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("shape", [(65_535, 9), (9, 65_535), (65_535, 1), (3_001, 4_999)])
def test_the_longest_sides(form: str, shape: tuple[int, int]) -> None:
    image = smooth(*shape)
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
                # The part of the image that the window sees, with what the filter reaches.
                y, x = (max(0, int(begin) - 300) & -2 for begin in window[:2])
                part = image[y : int(window[0] + window[2]) + 300]
                part = part[:, x : int(window[1] + window[3]) + 300]
                moved = window - [y, x, 0, 0, 0, 0]
                if not window[4]:
                    part, moved = image, window
                if part.size > 2_000_000 and filter_ == CUBIC:
                    continue
                expected = resample(part, read_window(moved), filter_, size)
                assert np.abs(found - expected).mean() < 2


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
            words = batches.check_samples(*arguments, size, statuses)
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
        assert (
            batches.check_samples(form, regions, rows, window, AREA, False, (9, 9), statuses) == 0
        )
        assert statuses[0] != 0
