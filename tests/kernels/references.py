"""What kernels are compared with: float64 formulas, and the dct form by its description."""

import numpy as np

from benchmarks.references import Taps, resample

__all__ = ["Taps", "resample"]


def assert_one_distribution(a: np.ndarray, b: np.ndarray) -> None:
    """Two samples: no gap between the shares of them up to a value (Kolmogorov and Smirnov)."""
    values = np.union1d(a, b)
    shares = [np.searchsorted(np.sort(x), values, "right") / len(x) for x in (a, b)]
    assert np.abs(shares[0] - shares[1]).max() < 2.0 * (1 / len(a) + 1 / len(b)) ** 0.5


def upsample(plane: np.ndarray, size: int, axis: int) -> np.ndarray:
    """libjpeg's "fancy" upsampling of one axis to `size` samples, unrounded."""
    plane = np.moveaxis(plane.astype(np.float64), axis, 0)
    x = np.arange(size)
    near = x // 2
    far = np.clip(np.where(x % 2, near + 1, near - 1), 0, len(plane) - 1)
    return np.moveaxis(0.75 * plane[near] + 0.25 * plane[far], 0, axis)


def to_rgb(ycc: np.ndarray) -> np.ndarray:
    """JFIF's RGB of float64 (..., 3), clipped to 0 to 255, unrounded."""
    y, cb, cr = ycc[..., 0], ycc[..., 1] - 128, ycc[..., 2] - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.clip(rgb, 0, 255)


def join(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
    """float64 (height, width, 3): colour brought to the luma's resolution where it has half."""
    height, width = y.shape
    if cb.shape == y.shape:
        return np.stack([y, cb, cr], -1).astype(np.float64)
    colour = [upsample(upsample(plane, height, 0), width, 1) for plane in (cb, cr)]
    return np.stack([y.astype(np.float64), *colour], -1)


def split(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, Cb, Cr in float64, colour as means of 2 x 2 pixels, unrounded."""
    r, g, b = np.moveaxis(rgb.astype(np.float64), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = 128 + (b - y) / 1.772, 128 + (r - y) / 1.402
    height, width = y.shape

    def half(plane: np.ndarray) -> np.ndarray:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
        return plane.reshape(plane.shape[0] // 2, 2, -1, 2).mean((1, 3))

    return y, half(cb), half(cr)


def dct_matrix(size: int) -> np.ndarray:
    """float64 (size, size): the orthonormal DCT, [frequency, place]."""
    k, n = np.arange(size)[:, None], np.arange(size)[None]
    matrix: np.ndarray = np.sqrt(2 / size) * np.cos((2 * n + 1) * k * np.pi / (2 * size))
    matrix[0] = np.sqrt(1 / size)
    return matrix


def blocks_of(plane: np.ndarray) -> np.ndarray:
    """float64 (rows, columns, 8, 8): unquantised DCT coefficients of a plane, [v, u]."""
    height, width = plane.shape
    padded = np.pad(plane.astype(np.float64), ((0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).transpose(0, 2, 1, 3) - 128
    matrix = dct_matrix(8)
    return matrix @ blocks @ matrix.T


def plane_of(coefficients: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Whole numbers 0 to 255: dequantised blocks (rows, columns, 8, 8) as a decoder shows them.

    `size`: of a block, 8, or 4, 2, 1 for the same at size / 8 of the resolution.
    """
    matrix = dct_matrix(size)
    pixels = matrix.T @ coefficients[:, :, :size, :size] @ matrix * (size / 8)
    plane = np.clip(np.rint(pixels + 128), 0, 255).transpose(0, 2, 1, 3)
    plane = plane.reshape(plane.shape[0] * size, -1)
    return plane[: -(-shape[0] * size // 8), : -(-shape[1] * size // 8)]


def read_groups(data: bytes, height: int, width: int, start: int, sizes: list[int]) -> tuple:
    """(quantised blocks (rows, columns, 8, 8) [v, u], end) of a plane, by docs/format.md alone."""
    down, across = -(-height // 32), -(-width // 64)
    blocks = np.zeros((down * 4, across * 8, 8, 8), np.int64)
    for index, size in enumerate(sizes):
        column, row = divmod(index, down)
        group = read_group(data[start : start + size])  # (64, 32)
        start += size
        tile = group.reshape(8, 8, 8, 4).transpose(3, 2, 1, 0)  # [by, bx, v, u]
        blocks[4 * row : 4 * row + 4, 8 * column : 8 * column + 8] = tile
    return blocks[: -(-height // 8), : -(-width // 8)], start


def read_group(data: bytes) -> np.ndarray:
    """int64 (64, 32), row 8 u + v, of one group."""
    values = np.zeros((64, 32), np.int64)
    middle = int.from_bytes(data[:2], "little", signed=True)
    widest = data[2]
    counts = {width: data[1 + width] for width in range(2, widest + 1)}
    place = 3 + len(counts)
    frequencies = list(data[place : place + sum(counts.values())])
    place += len(frequencies)
    for width, count in counts.items():
        for _ in range(count):
            frequency = frequencies.pop(0)
            for bit in range(width - 1, -1, -1):
                word = int.from_bytes(data[place : place + 4], "little")
                place += 4
                weight = -(1 << bit) if bit == width - 1 else 1 << bit
                values[frequency] += [weight * (word >> lane & 1) for lane in range(32)]
    for start in range(place, len(data), 2):
        exception = int.from_bytes(data[start : start + 2], "little", signed=True)
        values[exception >> 5 & 63, exception & 31] += exception >> 11
    values[0] += middle
    return values
