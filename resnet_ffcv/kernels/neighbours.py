"""Changes of an image that look at more than one of its pixels: sharpness and affine maps.

An image is uint8 (height, width, 3), contiguous; what is made of it is written to another one.
"""

import math

import numpy as np

from resnet_ffcv.kernels.adjust import multiply_add, to_byte
from resnet_ffcv.kernels.compiling import kernel

F32 = np.float32


@kernel
def copy_image(source: np.ndarray, out: np.ndarray) -> None:
    """out[:] = source, which numba compiles to one byte after the other."""
    values, copies = source.reshape(-1), out.reshape(-1)
    for i in range(len(values)):
        copies[i] = values[i]


@kernel
def mirror(source: np.ndarray, out: np.ndarray) -> None:
    height, width = source.shape[0], source.shape[1]
    for y in range(height):
        row, mirrored = source[y].reshape(-1), out[y].reshape(-1)
        for x in range(width):
            other = width - 1 - x
            mirrored[3 * x], mirrored[3 * x + 1] = row[3 * other], row[3 * other + 1]
            mirrored[3 * x + 2] = row[3 * other + 2]


@kernel
def sharpen_row(
    above: np.ndarray, here: np.ndarray, below: np.ndarray, rest: np.float32, out: np.ndarray
) -> None:
    """A row of `sharpen`, all uint8 (3 * width,), but for its ends."""
    inner = len(here) - 6
    # Views from the left, middle and right neighbours on: with indices from 0 LLVM takes vectors.
    above_left, above_right, above = above[:inner], above[6:], above[3:]
    left, right, middle = here[:inner], here[6:], here[3:]
    below_left, below_right, below, out = below[:inner], below[6:], below[3:], out[3:]
    for x in range(inner):
        sums = F32(above_left[x]) + F32(above[x]) + F32(above_right[x])
        sums += F32(left[x]) + F32(right[x])
        sums += F32(below_left[x]) + F32(below[x]) + F32(below_right[x])
        value = F32(middle[x])
        blurred = F32(np.rint((sums + F32(5) * value) * F32(1 / 13)))
        out[x] = to_byte(multiply_add(blurred - value, rest, value))


@kernel
def sharpen(source: np.ndarray, factor: float, out: np.ndarray) -> None:
    """Blends with a blurred image: 0 is blurred, 1 as it is; the border stays.

    torchvision's adjust_sharpness_image. Its blur, (the 8 neighbours + 5 times the middle) / 13, is
    rounded; sums of whole numbers have no halves there.
    """
    height, width, rest = source.shape[0], source.shape[1], F32(1.0 - factor)
    copy_image(source, out)
    if height <= 2 or width <= 2:
        return
    for y in range(1, height - 1):
        sharpen_row(
            source[y - 1].reshape(-1), source[y].reshape(-1), source[y + 1].reshape(-1), rest,
            out[y].reshape(-1),
        )  # fmt: skip


@kernel
def invert_affine(
    angle: float, shift_x: float, shift_y: float, shear_x: float, shear_y: float, center_x: float,
    center_y: float,
) -> tuple[float, float, float, float, float, float]:  # fmt: skip
    """The map from a result's places to its source's, about the image's middle.

    torchvision's `_get_inverse_affine_matrix` (functional/_geometry.py:707) at scale 1; angles in
    radians.
    """
    tangent, turned = math.tan(shear_x), angle - shear_y
    a = math.cos(turned) / math.cos(shear_y)
    b = -(a * tangent + math.sin(angle))
    c = math.sin(turned) / math.cos(shear_y)
    d = math.cos(angle) - c * tangent
    x, y = center_x + shift_x, center_y + shift_y
    return d, -b, center_x - d * x + b * y, -c, a, center_y + c * x - a * y


@kernel
def map_nearest(
    source: np.ndarray, matrix: tuple[float, float, float, float, float, float],
    fill: tuple[int, int, int], out: np.ndarray,
) -> None:  # fmt: skip
    """Each pixel of the result is the nearest one of where `matrix` leads; outside it is `fill`.

    float32, as torchvision's affine_image: a place half-way between two pixels may go to the other
    one than there. With AutoAugment's, RandAugment's and TrivialAugmentWide's magnitudes, of images
    of 96 to 640 pixels, that is up to 1.5 % of the pixels in shears and 0.03 % in rotations;
    none in images of 32 or 128 pixels, nor in other maps.
    """
    height, width = source.shape[0], source.shape[1]
    half_x, half_y = F32(0.5 * width), F32(0.5 * height)
    xx, xy, x0 = F32(matrix[0]) / half_x, F32(matrix[1]) / half_x, F32(matrix[2]) / half_x
    yx, yy, y0 = F32(matrix[3]) / half_y, F32(matrix[4]) / half_y, F32(matrix[5]) / half_y
    zero, right, bottom = F32(0), F32(width), F32(height)
    values, places = source.reshape(-1), np.empty(width, np.int32)
    for row in range(height):
        y = F32(row + (1.0 - height) * 0.5)
        for column in range(width):  # where to look: vector code
            x = F32(column) + F32((1.0 - width) * 0.5)
            grid_x = multiply_add(y, xy, x * xx) + x0
            grid_y = multiply_add(y, yy, x * yx) + y0
            from_x = np.rint(multiply_add(grid_x + F32(1), half_x, F32(-0.5)))
            from_y = np.rint(multiply_add(grid_y + F32(1), half_y, F32(-0.5)))
            inside = from_x >= zero and from_x < right and from_y >= zero and from_y < bottom
            from_x, from_y = from_x if inside else zero, from_y if inside else zero
            place = np.int32(from_y) * np.int32(width) + np.int32(from_x)
            places[column] = place if inside else np.int32(-1)
        line = out[row].reshape(-1)
        for column in range(width):
            first = 3 * np.int64(places[column])
            for channel in range(3):
                value = values[first + channel] if first >= 0 else fill[channel]
                line[3 * column + channel] = value
