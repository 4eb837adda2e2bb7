"""Changes of an image's colours, in place: those of torchvision's v2 functional, on uint8.

An image is uint8 (height, width, 3), contiguous. What changes each value by itself is a lookup
table, uint8 (3, 256), built with the float32 operations that torchvision's kernels do, in their
order, so that the bytes are the same (`torchvision/transforms/v2/functional/_color.py`).

The loops go over an image's values as a line, with the three of a pixel at 3 i and behind, and
choose by `x if condition else y`: LLVM makes vector code of that. Of image[y, x, channel] it makes
none, since it does not know that the last side is 3.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from resnet_ffcv.kernels.compiling import kernel

F32 = np.float32
MOST = F32(255)
# Weights of red, green and blue in gray, as torchvision has them.
RED, GREEN, BLUE = F32(0.2989), F32(0.587), F32(0.114)


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """a * b + c of float32, rounded once, as torch's `add` with `alpha` does it."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> ir.Value:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


@kernel
def to_byte(value: np.float32) -> np.int32:
    """Clamped to 0 to 255, and cut to a whole number."""
    return np.int32(min(max(value, F32(0)), MOST))


@kernel
def gray_of(red: int, green: int, blue: int) -> np.float32:
    """The gray value of a pixel, a whole number as float32."""
    red_green = multiply_add(F32(green), GREEN, F32(red) * RED)
    return F32(np.floor(multiply_add(F32(blue), BLUE, red_green)))


@kernel
def look_up(image: np.ndarray, table: np.ndarray) -> None:
    """Replaces each value by that of its channel's table."""
    values = image.reshape(-1)
    for i in range(len(values) // 3):
        for channel in range(3):
            values[3 * i + channel] = table[channel, values[3 * i + channel]]


# Tables ---------------------------------------------------------------------------------


@kernel
def fill_brightness(factor: float, table: np.ndarray) -> None:
    for value in range(256):
        table[:, value] = to_byte(F32(value) * F32(factor))


@kernel
def mean_gray(image: np.ndarray) -> np.float32:
    """The mean of the gray values; torch's sum of float32 is exact to 65,793 pixels."""
    values, total = image.reshape(-1), 0
    pixels = len(values) // 3
    for i in range(pixels):
        total += int(gray_of(values[3 * i], values[3 * i + 1], values[3 * i + 2]))
    return F32(total) / F32(pixels)


@kernel
def fill_contrast(image: np.ndarray, factor: float, table: np.ndarray) -> None:
    mean, rest = mean_gray(image), F32(1.0 - factor)
    for value in range(256):
        table[:, value] = to_byte(multiply_add(mean, rest, F32(value) * F32(factor)))


@kernel
def fill_posterize(bits: int, table: np.ndarray) -> None:
    mask = ((1 << bits) - 1) << (8 - bits)
    for value in range(256):
        table[:, value] = value & mask


@kernel
def fill_solarize(threshold: float, table: np.ndarray) -> None:
    for value in range(256):
        table[:, value] = 255 - value if F32(value) >= F32(threshold) else value


@kernel
def fill_autocontrast(image: np.ndarray, table: np.ndarray) -> None:
    values = image.reshape(-1)
    low_red, low_green, low_blue = values[0], values[1], values[2]
    high_red, high_green, high_blue = values[0], values[1], values[2]
    for i in range(len(values) // 3):
        red, green, blue = values[3 * i], values[3 * i + 1], values[3 * i + 2]
        low_red, high_red = min(low_red, red), max(high_red, red)
        low_green, high_green = min(low_green, green), max(high_green, green)
        low_blue, high_blue = min(low_blue, blue), max(high_blue, blue)
    low, high = (low_red, low_green, low_blue), (high_red, high_green, high_blue)
    for channel in range(3):
        least, scale = F32(low[channel]), F32(high[channel] - low[channel]) * F32(1.0 / 255)
        if low[channel] == high[channel]:
            least, scale = F32(0), F32(1)
        for value in range(256):
            table[channel, value] = to_byte((F32(value) - least) / scale)


@kernel
def fill_equalize(image: np.ndarray, table: np.ndarray) -> None:
    values = image.reshape(-1)
    counts = np.zeros((3, 256), np.int64)
    for i in range(len(values) // 3):
        for channel in range(3):
            counts[channel, values[3 * i + channel]] += 1
    for channel in range(3):
        last = 255
        while counts[channel, last] == 0:
            last -= 1
        step = (len(values) // 3 - counts[channel, last]) // 255
        below = 0  # pixels that are darker
        for value in range(256):
            table[channel, value] = min((below + step // 2) // step, 255) if step else value
            below += counts[channel, value]


@kernel
def fill_offsets(red: float, green: float, blue: float, table: np.ndarray) -> None:
    """Adds to each channel; rounded to the nearest, halves to even."""
    for channel, offset in enumerate((red, green, blue)):
        for value in range(256):
            table[channel, value] = int(min(max(np.rint(value + offset), 0.0), 255.0))


# What looks at a pixel as a whole -------------------------------------------------------


@kernel
def saturate(image: np.ndarray, factor: float) -> None:
    """Blends with the gray image: 0 is gray, 1 as it is."""
    values, share, rest = image.reshape(-1), F32(factor), F32(1.0 - factor)
    for i in range(len(values) // 3):
        red, green, blue = values[3 * i], values[3 * i + 1], values[3 * i + 2]
        gray = gray_of(red, green, blue)
        values[3 * i] = to_byte(multiply_add(gray, rest, F32(red) * share))
        values[3 * i + 1] = to_byte(multiply_add(gray, rest, F32(green) * share))
        values[3 * i + 2] = to_byte(multiply_add(gray, rest, F32(blue) * share))


@kernel
def make_gray(image: np.ndarray) -> None:
    values = image.reshape(-1)
    for i in range(len(values) // 3):
        gray = to_byte(gray_of(values[3 * i], values[3 * i + 1], values[3 * i + 2]))
        values[3 * i], values[3 * i + 1], values[3 * i + 2] = gray, gray, gray


@kernel
def turn_hue(image: np.ndarray, turn: float) -> None:
    """Turns the hue by `turn` of a whole circle, -0.5 to 0.5."""
    values, shift = image.reshape(-1), F32(turn)
    zero, one, six, scale, to_bytes = F32(0), F32(1), F32(6), F32(1.0 / 255), F32(256 - 1e-3)
    for i in range(len(values) // 3):
        red, green = F32(values[3 * i]) * scale, F32(values[3 * i + 1]) * scale
        blue = F32(values[3 * i + 2]) * scale
        most, least = max(red, green, blue), min(red, green, blue)
        extent = most - least
        divisor = extent if extent > zero else one  # without colour all that it divides is 0
        saturation = extent / (most if extent > zero else one)
        to_red, to_green = (most - red) / divisor, (most - green) / divisor
        to_blue = (most - blue) / divisor
        hue = to_green + F32(4) - to_red
        hue = to_red + F32(2) - to_blue if most == green else hue
        hue = to_blue - to_green if most == red else hue
        hue = hue * F32(1.0 / 6.0) + one
        hue = hue - np.floor(hue) + shift  # what is positive less its floor is its fmod by 1
        sixth = (hue - np.floor(hue)) * six
        floor = np.floor(sixth)
        part = saturation * (sixth - floor)
        sector = zero if floor == six else floor
        rest = one - saturation
        falling, rising = (one - part) * most, (part + rest) * most
        falling, rising = min(max(falling, zero), one), min(max(rising, zero), one)
        base = min(max(rest * most, zero), one)
        # Sectors 0 to 5: from red over yellow, green, cyan, blue and magenta back to red.
        red = falling if sector == F32(1) else (rising if sector == F32(4) else base)
        red = most if sector == zero or sector == F32(5) else red
        green = falling if sector == F32(3) else (rising if sector == zero else base)
        green = most if sector == F32(1) or sector == F32(2) else green
        blue = falling if sector == F32(5) else (rising if sector == F32(2) else base)
        blue = most if sector == F32(3) or sector == F32(4) else blue
        values[3 * i], values[3 * i + 1] = int(red * to_bytes), int(green * to_bytes)
        values[3 * i + 2] = int(blue * to_bytes)
