"""Changes of an image's colours, in place: those of torchvision's v2 functional, on uint8.

An image is uint8 (height, width, 3), contiguous. What changes each value by itself is a lookup
table, uint8 (3, 256), built with the float32 operations that torchvision's kernels do, in their
order, so that the bytes are the same (`torchvision/transforms/v2/functional/_color.py`).
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
    pixels = image.reshape(-1, 3)
    for i in range(len(pixels)):
        for channel in range(3):
            pixels[i, channel] = table[channel, pixels[i, channel]]


# Tables ---------------------------------------------------------------------------------


@kernel
def fill_brightness(factor: float, table: np.ndarray) -> None:
    for value in range(256):
        table[:, value] = to_byte(F32(value) * F32(factor))


@kernel
def mean_gray(image: np.ndarray) -> np.float32:
    """The mean of the gray values; torch's sum of float32 is exact to 65,793 pixels."""
    pixels, total = image.reshape(-1, 3), 0.0
    for i in range(len(pixels)):
        total += float(gray_of(pixels[i, 0], pixels[i, 1], pixels[i, 2]))
    return F32(total) / F32(len(pixels))


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
    pixels = image.reshape(-1, 3)
    low, high = np.full(3, 255), np.zeros(3, np.int64)
    for i in range(len(pixels)):
        for channel in range(3):
            value = int(pixels[i, channel])
            low[channel] = min(low[channel], value)
            high[channel] = max(high[channel], value)
    for channel in range(3):
        least, scale = F32(low[channel]), F32(high[channel] - low[channel]) * F32(1.0 / 255)
        if low[channel] == high[channel]:
            least, scale = F32(0), F32(1)
        for value in range(256):
            table[channel, value] = to_byte((F32(value) - least) / scale)


@kernel
def fill_equalize(image: np.ndarray, table: np.ndarray) -> None:
    pixels = image.reshape(-1, 3)
    counts = np.zeros((3, 256), np.int64)
    for i in range(len(pixels)):
        for channel in range(3):
            counts[channel, pixels[i, channel]] += 1
    for channel in range(3):
        last = 255
        while counts[channel, last] == 0:
            last -= 1
        step = (len(pixels) - counts[channel, last]) // 255
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
    pixels, share, rest = image.reshape(-1, 3), F32(factor), F32(1.0 - factor)
    for i in range(len(pixels)):
        gray = gray_of(pixels[i, 0], pixels[i, 1], pixels[i, 2])
        for channel in range(3):
            value = F32(pixels[i, channel]) * share
            pixels[i, channel] = to_byte(multiply_add(gray, rest, value))


@kernel
def make_gray(image: np.ndarray) -> None:
    pixels = image.reshape(-1, 3)
    for i in range(len(pixels)):
        pixels[i, :] = int(gray_of(pixels[i, 0], pixels[i, 1], pixels[i, 2]))


@kernel
def turn_hue(image: np.ndarray, turn: float) -> None:
    """Turns the hue by `turn` of a whole circle, -0.5 to 0.5."""
    pixels, one, scale, six = image.reshape(-1, 3), F32(1), F32(1.0 / 255), F32(6)
    to_bytes = F32(255 + 1.0 - 1e-3)
    for i in range(len(pixels)):
        red, green = F32(pixels[i, 0]) * scale, F32(pixels[i, 1]) * scale
        blue = F32(pixels[i, 2]) * scale
        most, least = max(red, green, blue), min(red, green, blue)
        extent = most - least
        saturation, divisor = F32(0), one
        if extent > 0:
            saturation, divisor = extent / most, extent
        to_red, to_green = (most - red) / divisor, (most - green) / divisor
        to_blue = (most - blue) / divisor
        if most == red:
            hue = to_blue - to_green
        elif most == green:
            hue = to_red + F32(2) - to_blue
        else:
            hue = to_green + F32(4) - to_red
        hue = np.fmod(hue * F32(1.0 / 6.0) + one, one) + F32(turn)
        hue = F32(hue - np.floor(hue))
        sixth = hue * six
        floor = F32(np.floor(sixth))
        part = saturation * (sixth - floor)
        rest = one - saturation
        falling, rising = (one - part) * most, (part + rest) * most
        falling, rising = min(max(falling, F32(0)), one), min(max(rising, F32(0)), one)
        base = min(max(rest * most, F32(0)), one)
        sector = int(floor) % 6
        if sector == 0:
            red, green, blue = most, rising, base
        elif sector == 1:
            red, green, blue = falling, most, base
        elif sector == 2:
            red, green, blue = base, most, rising
        elif sector == 3:
            red, green, blue = base, falling, most
        elif sector == 4:
            red, green, blue = rising, base, most
        else:
            red, green, blue = most, base, falling
        pixels[i, 0], pixels[i, 1] = int(red * to_bytes), int(green * to_bytes)
        pixels[i, 2] = int(blue * to_bytes)
