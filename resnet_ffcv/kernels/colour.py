"""RGB -> YCbCr with colour at half the resolution, as a JPEG stores it.

ITU-T T.871 (JFIF), section 7, in shares of 2^16, rounded once. Of odd sizes, the last row and
column count twice in the colour's means of 2 x 2 pixels.
"""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import copy_bytes, keep
from resnet_ffcv.kernels.vector import I8, I16, I32, Scalar, Vector, load, store, vector_kernel

GRAY, HALF = 0, 1  # an image's colour: none, or at half the resolution both ways (4:2:0)

PIXELS = 32  # that a vector kernel takes at a time


@kernel
def is_gray(rgb: np.ndarray) -> bool:
    """Whether red, green and blue are equal in each pixel of uint8 (height, width, 3)."""
    pixels = rgb.reshape(-1)
    for row in range(rgb.shape[0]):
        differences = 0
        begin = row * rgb.shape[1] * 3
        for i in range(begin, begin + rgb.shape[1] * 3, 3):
            differences |= (pixels[i] ^ pixels[i + 1]) | (pixels[i] ^ pixels[i + 2])
        if differences:
            return False
    return True


def _channels(pixels: Scalar) -> list[Vector]:
    """Red, green and blue of PIXELS RGB pixels, as 16-bit lanes."""
    parts = [load(pixels + PIXELS * i, I8, PIXELS) for i in range(3)]
    low, high = parts[0].shuffle(range(2 * PIXELS), parts[1]), parts[2]
    high = high.shuffle([*range(PIXELS)] * 2)
    places = [[3 * pixel + channel for pixel in range(PIXELS)] for channel in range(3)]
    return [low.shuffle(lanes, high).widen_unsigned(I16) for lanes in places]


def _mix(channels: list[Vector], factors: tuple[int, int, int], offset: int, bits: int) -> Vector:
    """(sum of channels times factors, plus offset) >> bits, as bytes."""
    terms = [c.widen(I32) * factor for c, factor in zip(channels, factors, strict=True)]
    return ((terms[0] + terms[1] + terms[2] + offset) >> bits).narrow(I8)


@vector_kernel
def luma_of_pixels(pixels: Scalar, out: Scalar) -> None:
    """Y of PIXELS RGB pixels."""
    store(out, _mix(_channels(pixels), (19_595, 38_470, 7_471), 1 << 15, 16))


@vector_kernel
def colour_of_pixels(upper: Scalar, lower: Scalar, cb: Scalar, cr: Scalar) -> None:
    """Cb and Cr of PIXELS pixels of two rows: PIXELS / 2 bytes each."""
    even, odd = range(0, PIXELS, 2), range(1, PIXELS, 2)
    sums = []
    for above, below in zip(_channels(upper), _channels(lower), strict=True):
        both = above + below
        sums.append(both.shuffle(even) + both.shuffle(odd))
    offset = (128 << 18) + (1 << 17) - 1
    store(cb, _mix(sums, (-11_058, -21_710, 32_768), offset, 18))
    store(cr, _mix(sums, (32_768, -27_439, -5_329), offset, 18))


@kernel
def split_colour(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (height, width, 3) -> Y (height, width), Cb and Cr of half that, rounded up."""
    height, width = rgb.shape[0], rgb.shape[1]
    y = np.empty((height, width), np.uint8)
    cb = np.empty(((height + 1) // 2, (width + 1) // 2), np.uint8)
    cr = np.empty_like(cb)
    # Two rows, filled up to whole vectors with their last pixel.
    padded = (width + PIXELS) // PIXELS * PIXELS
    rows = np.empty((2, 3 * padded), np.uint8)
    luma, colour = np.empty(padded, np.uint8), np.empty((2, padded // 2), np.uint8)
    upper, lower = rows.ctypes.data, rows.ctypes.data + 3 * padded
    to_y, to_cb, to_cr = luma.ctypes.data, colour.ctypes.data, colour.ctypes.data + padded // 2
    for row in range(0, height, 2):
        for k in range(2):
            line = min(row + k, height - 1)
            here = upper + 3 * padded * k
            copy_bytes(here, rgb[line].ctypes.data, 3 * width)
            for x in range(width, padded):
                copy_bytes(here + 3 * x, here + 3 * (width - 1), 3)
            for x in range(0, width, PIXELS):
                luma_of_pixels(here + 3 * x, to_y + x)
            copy_bytes(y[line].ctypes.data, to_y, width)
        for x in range(0, width, PIXELS):
            half = x // 2
            colour_of_pixels(upper + 3 * x, lower + 3 * x, to_cb + half, to_cr + half)
        copy_bytes(cb[row // 2].ctypes.data, to_cb, cb.shape[1])
        copy_bytes(cr[row // 2].ctypes.data, to_cr, cb.shape[1])
    keep(rows)
    keep(luma)
    keep(colour)
    return y, cb, cr
