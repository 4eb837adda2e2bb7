"""What a sample may ask for: pixels, memory, scans; and data that changes while it is decoded."""

import io
import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
from images import draw_size
from PIL import Image
from test_fuzz import PAGE, Fenced, encode

from resnet_ffcv.kernels import batches, dct, status
from resnet_ffcv.kernels.batches import UNLIMITED, Limits
from resnet_ffcv.kernels.groups import WIDEST
from resnet_ffcv.kernels.jpeg import MOST_SCANS, has_many_scans, read_frame
from resnet_ffcv.kernels.taps import AREA

CODES = {
    "dct": batches.DCT, "yuv420": batches.YUV420, "jpg": batches.IMAGE, "raw": batches.IMAGE,
}  # fmt: skip


class Sample:
    """One image, decoded whole to `size`."""

    def __init__(self, form: str, data: bytes, row: list[int], size: tuple[int, int]) -> None:
        self.form, self.size, self.data = CODES[form], size, np.frombuffer(data, np.uint8)
        self.regions = np.array([[self.data.ctypes.data, len(data)]])
        self.rows = np.array([row], np.int32)
        self.windows = np.array([[0, 0, *row[:2], 0, 0]], float)

    def check(self, limits: Limits) -> tuple[int, int]:
        """(status, words)"""
        statuses = np.empty(1, np.int32)
        words = batches.check_samples(
            self.form, self.regions, self.rows, self.windows, AREA, False, self.size,
            tuple(limits), statuses,
        )  # fmt: skip
        return int(statuses[0]), words


def jpeg(image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("form", CODES)
def test_limits_are_exact(form: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        image = rng.integers(0, 256, (*draw_size(rng, 150), 3), np.uint8)
        data, row = encode(form, image, rng)
        sample = Sample(form, data, row, draw_size(rng))
        pixels = image.shape[0] * image.shape[1]
        found, words = sample.check(Limits(pixels, UNLIMITED.memory))
        assert found == status.WHOLE
        assert sample.check(Limits(pixels - 1, UNLIMITED.memory)) == (status.TOO_LARGE, 0)
        kept = 8 * pixels if form == "jpg" else 0  # libjpeg's coefficients, where it keeps them
        assert sample.check(Limits(pixels, max(4 * words, kept))) == (status.WHOLE, words)
        assert sample.check(Limits(pixels, 4 * words - 1)) == (status.TOO_MUCH_WORK, 0)


def huge_jpeg(height: int, width: int) -> bytes:
    """A few hundred bytes whose header names any size."""
    content = bytearray(jpeg(np.zeros((16, 16, 3), np.uint8)))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


def test_a_header_alone_asks_for_no_memory() -> None:
    side = 65_500
    sample = Sample("jpg", huge_jpeg(side, side), [side, side, 0, 0], (224, 224))
    assert sample.check(Limits(1 << 28, 1 << 30)) == (status.TOO_LARGE, 0)
    found, words = sample.check(Limits(1 << 33, 1 << 30))
    assert found == status.WHOLE
    assert 4 * words < side * side / 8  # at an eighth of the resolution: 3 / 64 bytes a pixel


def test_memory_of_large_dct_images_is_that_of_the_blocks_decoded() -> None:
    side = 4_096
    count = dct.count_all_groups(side, side, 1)
    data = bytes(batches.LEAST_GROUP * count)
    small = Sample("dct", data, [side, side, 1, 0], (64, 64)).check(UNLIMITED)[1]
    large = Sample("dct", data, [side, side, 1, 0], (side, side)).check(UNLIMITED)[1]
    assert small < large / 10


def with_scans(count: int) -> bytes:
    """A progressive JPEG of so many scans: its last one is repeated."""
    content = jpeg(np.zeros((16, 16, 3), np.uint8), progressive=True)
    last = content.rindex(b"\xff\xda")
    scan, others = content[last:-2], content.count(b"\xff\xda") - 1
    return content[:last] + scan * (count - others) + content[-2:]


@pytest.mark.parametrize("before", [b"", b"\xff\xfe\0\4\xff\xda", b"a word that is no marker"])
def test_scans_are_counted(before: bytes) -> None:
    for count in (10, MOST_SCANS, MOST_SCANS + 1, 5_000):
        content = with_scans(count)
        if before:  # a comment with the marker in it, and what libjpeg skips
            first = content.index(b"\xff\xc4")
            content = content[:first] + before + content[first:]
        sample = Sample("jpg", content, [16, 16, 0, 0], (16, 16))
        many = sample.check(UNLIMITED)[0] == status.TOO_MANY_SCANS
        assert many == (count > MOST_SCANS)


def test_scans_of_single_components_are_counted_without_progression() -> None:
    content = bytearray(jpeg(np.zeros((16, 16, 3), np.uint8)))
    assert not read_frame(np.frombuffer(content, np.uint8).ctypes.data, len(content)).by_scans
    content[content.index(b"\xff\xda") + 4] = 1
    content[-2:-2] = b"\xff\xda" * MOST_SCANS
    data = np.frombuffer(bytes(content), np.uint8)
    frame = read_frame(data.ctypes.data, len(data))
    assert frame[:4] == (16, 16, 3, True)
    assert has_many_scans(data.ctypes.data, len(data), frame)


def test_what_a_camera_appends_to_a_jpeg_is_not_counted() -> None:
    content = with_scans(10) + b"\xff\xda" * 2 * MOST_SCANS
    sample = Sample("jpg", content, [16, 16, 0, 0], (16, 16))
    assert sample.check(UNLIMITED)[0] == status.WHOLE


def test_nothing_behind_a_jpeg_is_read() -> None:
    fence = Fenced(PAGE, at_end=True)
    for content in (with_scans(12), huge_jpeg(9, 9), jpeg(np.zeros((3, 3, 3), np.uint8))):
        for size in range(len(content)):
            data = fence.take(size)
            data[:] = np.frombuffer(content[:size], np.uint8)
            frame = read_frame(data.ctypes.data, size)
            has_many_scans(data.ctypes.data, size, frame)


def test_too_little_memory_leaves_out_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, make, asked = np.random.default_rng(0), batches._work, []
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (50, 300, 20, 600)]
    regions = np.array([[image.ctypes.data, image.nbytes] for image in images])
    rows = np.array([[*image.shape[:2], batches.RAW_MODE, 0] for image in images], np.int32)
    windows = np.array([[0, 0, *image.shape[:2], 0, 0] for image in images], float)

    def decode(**options: int) -> tuple[list[int], np.ndarray]:
        out = np.full((4, 40, 40, 3), 9, np.uint8)
        found = batches.decode_samples(batches.IMAGE, regions, rows, windows, AREA, out, **options)
        return found.tolist(), out

    def work(threads: int, words: int) -> np.ndarray:
        asked.append(threads)
        if threads * words > 20_000:
            raise MemoryError
        return make(threads, words)

    _, expected = decode(threads=2)
    monkeypatch.setattr(batches, "_work", work)
    found, out = decode(threads=2)
    assert found == [status.WHOLE, status.NO_MEMORY, status.WHOLE, status.NO_MEMORY]
    assert np.array_equal(out[[0, 2]], expected[[0, 2]])
    assert not out[[1, 3]].any()
    assert asked == [2, 1, 1, 1]


def change_while_decoding(
    place: np.ndarray, others: list[np.ndarray], decode: Callable[[], int], times: int
) -> int:
    """Exit status of a process that decodes from memory before a guard page while it changes."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        ended = threading.Event()

        def change() -> None:
            while not ended.is_set():
                for other in others:
                    place[:] = other

        thread = threading.Thread(target=change)
        thread.start()
        for _ in range(times):
            decode()
        ended.set()
        thread.join()
    finally:
        os._exit(0)


@pytest.mark.parametrize(("part", "times"), [("sizes", 200), ("groups", 5_000)])
def test_a_dct_image_may_change_while_it_is_decoded(part: str, times: int) -> None:
    """Each number is read once, or checked where it is used: else this ends by SIGSEGV.

    The groups are zeros, so that one makes sense wherever it begins.
    """
    side, count = 700, dct.count_all_groups(700, 700, 0)
    sizes = np.full(count, 101, np.uint16)
    if part == "sizes":
        sizes[: count // 2], sizes[count // 2 :] = 4_001, 3
    fence = Fenced(2 * count + int(sizes.sum()), at_end=True)
    data = fence.take(2 * count + int(sizes.sum()))
    data[2 * count :] = 0
    data[: 2 * count] = sizes.view(np.uint8)
    groups = data[2 * count :]
    if part == "sizes":  # their sum stays the same
        place, others = data[: 2 * count], [sizes.view(np.uint8), sizes[::-1].copy().view(np.uint8)]
    else:  # the numbers of frequencies by width, of the last group
        groups = groups.reshape(count, 101)
        groups[:, 2] = WIDEST
        place, others = groups[-1, 3 : 3 + WIDEST - 1], [np.uint8(0), np.uint8(255)]
    regions, rows = np.array([[data.ctypes.data, len(data)]]), np.array([[side, side, 0, 0]])
    out, window = np.empty((1, 64, 64, 3), np.uint8), np.array([[0, 0, side, side, 0, 0]])
    tables, rows, window = dct.make_tables(100), rows.astype(np.int32), window.astype(float)

    def decode() -> int:
        return int(
            batches.decode_samples(batches.DCT, regions, rows, window, AREA, out, tables=tables)[0]
        )

    assert decode() == status.WHOLE
    assert change_while_decoding(place, others, decode, times) == 0
