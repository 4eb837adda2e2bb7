"""The dct form, against its description and a plain JPEG-style decoder in float64."""

import numpy as np
import pytest
from images import Guarded, Work, draw_image, draw_size, draw_window
from PIL import Image
from references import blocks_of, join, plane_of, read_groups, resample, split, to_rgb

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF
from resnet_ffcv.kernels.dct import (
    count_dct_work,
    decode_dct,
    encode_dct,
    most_dct_bytes,
)
from resnet_ffcv.kernels.geometry import Window, choose_eighths, count_axis_words
from resnet_ffcv.kernels.quantization import quantization_tables
from resnet_ffcv.kernels.transform import (
    FRACTION,
    dequantization_table,
    quantization_factors,
)


class Quality:
    """Tables of a quality, as the kernels take them."""

    def __init__(self, quality: int) -> None:
        self.tables = quantization_tables(quality)
        self.factors = np.stack([quantization_factors(table) for table in self.tables])
        self.back = np.stack(
            [[dequantization_table(table, size) for table in self.tables] for size in (8, 4, 2, 1)]
        )
        self.means = np.array([int(table[0, 0]) << (FRACTION - 3) for table in self.tables])


def encode(image: np.ndarray, colour: int, quality: Quality) -> np.ndarray:
    most = most_dct_bytes(*image.shape[:2], colour)
    out = np.full(most + 64, 77, np.uint8)
    size = encode_dct(image, colour, quality.factors, out)
    assert size <= most
    assert (out[size:] == 77).all()
    return out[:size].copy()


def decode(data, shape, colour, quality, window, filter_, size) -> tuple[int, np.ndarray]:
    words, block = count_axis_words(window, filter_, *size), choose_eighths(window, *size)
    work, out = Work(4 * words + count_dct_work(*shape, colour, block, *size)), Guarded(size)
    found = decode_dct(
        data.ctypes.data, len(data), *shape, colour, quality.back, quality.means, window, filter_,
        out.image.ctypes.data, *size, work.words,
    )  # fmt: skip
    work.check()
    return found, out.check()


def read(data: np.ndarray, shape: tuple[int, int], colour: int) -> list[np.ndarray]:
    """Quantised blocks of each plane, by docs/format.md alone."""
    half = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    shapes = [shape, half, half] if colour == HALF else [shape]
    counts = [-(-height // 32) * -(-width // 64) for height, width in shapes]
    sizes = np.frombuffer(data[: 2 * sum(counts)].tobytes(), "<u2").tolist()
    found, start = [], 2 * sum(counts)
    for (height, width), count in zip(shapes, counts, strict=True):
        blocks, start = read_groups(data.tobytes(), height, width, start, sizes[:count])
        sizes = sizes[count:]
        found.append(blocks)
    assert start == len(data)
    return found


def show(data, shape, colour, quality, window: Window, filter_, size) -> np.ndarray:
    """What a plain decoder makes of it, float64 (*size, 3)."""
    block = choose_eighths(window, *size)
    half = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    blocks = read(data, shape, colour)
    planes = [plane_of(blocks[0] * quality.tables[0], shape, block)]
    for k in (1, 2):
        if colour == HALF:
            plane = plane_of(blocks[k] * quality.tables[1], half, min(8, 2 * block))
        else:
            plane = np.full(half, 128.0)
        if block < 8:
            plane = np.resize(plane, planes[0].shape) if colour == GRAY else plane
            plane = plane[: planes[0].shape[0], : planes[0].shape[1]]
        planes.append(plane)
    small = Window(*(number * block / 8 for number in window[:4]), *window[4:])
    return to_rgb(resample(join(*planes), small, filter_, size))


def smooth(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (*shape, 3) of waves, as photos are: few high frequencies, little that is clipped."""
    small = rng.normal(128, 40, (shape[0] // 8 + 2, shape[1] // 8 + 2, 3))
    layers = [Image.fromarray(small[..., c].astype(np.float32)) for c in range(3)]
    grown = [np.asarray(layer.resize(shape[::-1], Image.Resampling.BICUBIC)) for layer in layers]
    return np.clip(np.stack(grown, 2), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [1, 10, 37, 75, 90, 100])
def test_quantised_coefficients_are_the_images(quality: int) -> None:
    tables, rng, near = Quality(quality), np.random.default_rng(quality), []
    for _ in range(40):
        image = draw_image(rng, *draw_size(rng, 150))
        shape = image.shape[:2]
        for ours, plane, table in zip(
            read(encode(image, HALF, tables), shape, HALF),
            split(image),
            [tables.tables[0], tables.tables[1], tables.tables[1]],
            strict=True,
        ):
            exact = blocks_of(np.rint(plane)) / table
            # Samples at .5 may round either way, which moves a coefficient by up to 1 / table.
            assert np.abs(ours - exact).max() <= 0.51 + 8 / table.min()
            near.append((np.abs(ours - exact) <= 0.51).mean())
    assert np.mean(near) > 0.98


@pytest.mark.parametrize("colour", [GRAY, HALF])
def test_windows_are_a_jpeg_decoders(colour: int) -> None:
    rng, worst, squares = np.random.default_rng(colour), 0.0, []
    qualities = [Quality(quality) for quality in (5, 25, 60, 90, 100)]
    for case in range(300):
        shape, size = draw_size(rng, 200), draw_size(rng)
        image, window = smooth(rng, shape), draw_window(rng, *shape)
        quality = qualities[case % 5]
        data = encode(image, colour, quality)
        found, out = decode(data, shape, colour, quality, window, case % 3, size)
        assert found == status.WHOLE
        error = out - show(data, shape, colour, quality, window, case % 3, size)
        worst, squares = max(worst, np.abs(error).max()), [*squares, (error**2).mean()]
    # A sample of a plane is rounded where float64 has nearly .5; colour counts up to 1.8 times.
    assert worst <= 2.5
    assert np.mean(squares) ** 0.5 < 0.36  # rounding to whole levels alone makes 0.289


@pytest.mark.parametrize("block", [8, 4, 2, 1])
def test_reduced_blocks_are_their_formula(block: int) -> None:
    rng, quality = np.random.default_rng(block), Quality(90)
    for _ in range(20):
        shape = tuple(int(n) for n in rng.integers(65, 200, 2))
        reduced = tuple(n * block // 16 * 2 for n in shape)
        size = tuple(n // 2 for n in reduced)  # leaves geometry.MARGIN
        window = Window(0.0, 0.0, reduced[0] * 8.0 / block, reduced[1] * 8.0 / block, False, False)
        data = encode(smooth(rng, shape), GRAY, quality)
        assert choose_eighths(window, *size) == block
        assert choose_eighths(window, size[0] + 1, size[1]) == min(2 * block, 8)
        found, out = decode(data, shape, GRAY, quality, window, 0, size)
        assert found == status.WHOLE
        expected = plane_of(read(data, shape, GRAY)[0] * quality.tables[0], shape, block)
        seen = Window(0.0, 0.0, *map(float, reduced), False, False)
        expected = resample(expected[..., None], seen, 0, size)[..., 0]
        assert np.abs(out[..., 0] - expected).max() <= 1.5  # a level of a sample, and rounding


def test_extreme_images_stay_near() -> None:
    rng = np.random.default_rng(0)
    for case in range(60):
        quality = Quality(int(rng.integers(1, 101)))
        image = draw_image(rng, *draw_size(rng, 90))
        shape, colour = image.shape[:2], case % 2
        window = Window(0.0, 0.0, float(shape[0]), float(shape[1]), False, False)
        data = encode(image, colour, quality)
        found, out = decode(data, shape, colour, quality, window, 0, shape)
        assert found == status.WHOLE
        error = np.abs(out - show(data, shape, colour, quality, window, 0, shape))
        assert error.max() <= 4, (shape, colour)


def test_damage_is_told_or_shown_and_stays_inside() -> None:
    rng, quality = np.random.default_rng(0), Quality(90)
    image = draw_image(rng, 120, 170)
    whole = encode(image, HALF, quality)
    window = Window(3.0, 5.0, 100.0, 150.0, False, False)
    outcomes = set()
    for case in range(2_000):
        data = whole.copy()
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data) if case % 2 else 300)] = rng.integers(256)
        if case % 7 == 0:
            data = data[: rng.integers(len(data))]
        outcomes.add(decode(data, (120, 170), HALF, quality, window, 0, (64, 64))[0])
    assert outcomes == {status.WHOLE, status.WRONG_SIZE, status.BAD_GROUP}
    assert decode(whole, (120, 170), 2, quality, window, 0, (8, 8))[0] == status.BAD_ROW
    assert decode(whole, (120, 270), HALF, quality, window, 0, (8, 8))[0] == status.WRONG_SIZE
