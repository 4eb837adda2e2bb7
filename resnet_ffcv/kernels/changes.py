"""Lists of changes for the images of a batch: how they are done (`change_images`) and drawn.

Its kernels take, for n images with at most k changes each, one after the other:

    images   uint8 (n, height, width, 3), contiguous, changed in place
    changes  int32 (n, k), of the constants below
    numbers  float64 (n, k, 4), what each change needs: see `change`
    fill     (red, green, blue), of what a change moves in or puts over
    keys     uint64 (n,), by which an image's random numbers are drawn
"""

import math

import numba
import numpy as np

from resnet_ffcv.kernels import adjust, neighbours
from resnet_ffcv.kernels.compiling import kernel, threaded_kernel
from resnet_ffcv.kernels.memory import take_next
from resnet_ffcv.kernels.random import absorb, below, uniform

NOTHING = 0
# What changes each value by itself: a table does it.
BRIGHTNESS, CONTRAST, POSTERIZE, SOLARIZE, INVERT, AUTOCONTRAST, EQUALIZE, OFFSETS = range(1, 9)
SATURATION, HUE, GRAYSCALE, SHARPNESS = range(9, 13)
# What moves pixels, or puts a colour over them.
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, ERASE, MIRROR = range(13, 20)

NUMBERS = 4  # of a change
TRIES = 10  # of a rectangle to erase; torchvision's


@kernel
def change(
    image: np.ndarray, what: int, numbers: np.ndarray, fill: tuple[int, int, int],
    other: np.ndarray, table: np.ndarray,
) -> None:  # fmt: skip
    """Does one change to an image (height, width, 3).

    `numbers` holds the factor of BRIGHTNESS, CONTRAST, SATURATION and SHARPNESS (1: as it is), the
    turn of HUE (circles), bits of POSTERIZE, threshold of SOLARIZE, what OFFSETS adds to red, green
    and blue, the angle of SHEAR_* (radians) and ROTATE (degrees, counter-clockwise), pixels of
    TRANSLATE_*, or the top, left, height and width that ERASE covers.

    `other` is an image and `table` uint8 (3, 256), to work with.
    """
    if BRIGHTNESS <= what <= OFFSETS:
        fill_table(image, what, numbers, table)
        adjust.look_up(image, table)
    elif what == SATURATION:
        adjust.saturate(image, numbers[0])
    elif what == HUE:
        adjust.turn_hue(image, numbers[0])
    elif what == GRAYSCALE:
        adjust.make_gray(image)
    elif what == SHARPNESS:
        neighbours.sharpen(image, numbers[0], other)
        neighbours.copy_image(other, image)
    elif SHEAR_X <= what <= ROTATE:
        matrix = affine_of(what, numbers[0], image.shape[0], image.shape[1])
        neighbours.map_nearest(image, matrix, fill, other)
        neighbours.copy_image(other, image)
    elif what == ERASE:
        erase(image, numbers, fill)
    elif what == MIRROR:
        neighbours.mirror(image, other)
        neighbours.copy_image(other, image)


@kernel
def fill_table(image: np.ndarray, what: int, numbers: np.ndarray, table: np.ndarray) -> None:
    """The table of a change that is one, for this image."""
    if what == BRIGHTNESS:
        adjust.fill_brightness(numbers[0], table)
    elif what == CONTRAST:
        adjust.fill_contrast(image, numbers[0], table)
    elif what == POSTERIZE:
        adjust.fill_posterize(int(numbers[0]), table)
    elif what == SOLARIZE:
        adjust.fill_solarize(numbers[0], table)
    elif what == INVERT:
        adjust.fill_solarize(0.0, table)
    elif what == AUTOCONTRAST:
        adjust.fill_autocontrast(image, table)
    elif what == EQUALIZE:
        adjust.fill_equalize(image, table)
    else:
        adjust.fill_offsets(numbers[0], numbers[1], numbers[2], table)


@kernel
def affine_of(
    what: int, number: float, height: int, width: int
) -> tuple[float, float, float, float, float, float]:
    """The map of a change that is one, for images of a size."""
    if what == ROTATE:
        return neighbours.invert_affine(-math.radians(number % 360), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if what == TRANSLATE_X:
        return neighbours.invert_affine(0.0, float(int(number)), 0.0, 0.0, 0.0, 0.0, 0.0)
    if what == TRANSLATE_Y:
        return neighbours.invert_affine(0.0, 0.0, float(int(number)), 0.0, 0.0, 0.0, 0.0)
    y, x = -0.5 * height, -0.5 * width  # shears keep the first corner where it is
    if what == SHEAR_X:
        return neighbours.invert_affine(0.0, 0.0, 0.0, number, 0.0, x, y)
    return neighbours.invert_affine(0.0, 0.0, 0.0, 0.0, number, x, y)


@kernel
def erase(image: np.ndarray, numbers: np.ndarray, fill: tuple[int, int, int]) -> None:
    top, left = int(numbers[0]), int(numbers[1])
    bottom, right = top + int(numbers[2]), left + int(numbers[3])
    for channel in range(3):
        image[top:bottom, left:right, channel] = fill[channel]


@kernel
def change_some(
    images: np.ndarray, changes: np.ndarray, numbers: np.ndarray, fill: tuple[int, int, int],
    other: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    """One thread's share: `counter`, int64 (1,), says which image is next."""
    table = np.empty((3, 256), np.uint8)
    while True:
        i = take_next(counter.ctypes.data)
        if i >= len(images):
            return
        for step in range(changes.shape[1]):
            change(images[i], changes[i, step], numbers[i, step], fill, other, table)


@threaded_kernel
def change_on_threads(
    images: np.ndarray, changes: np.ndarray, numbers: np.ndarray, fill: tuple[int, int, int],
    others: np.ndarray, counter: np.ndarray,
) -> None:  # fmt: skip
    for thread in numba.prange(len(others)):
        change_some(images, changes, numbers, fill, others[thread], counter)


def change_images(
    images: np.ndarray, changes: np.ndarray, numbers: np.ndarray,
    fill: tuple[int, int, int] = (0, 0, 0), threads: int = 1,
) -> None:  # fmt: skip
    """Does all changes to all images, on so many of numba's threads."""
    threads, counter = max(1, min(threads, len(images))), np.zeros(1, np.int64)
    others = np.empty((threads, *images.shape[1:]), np.uint8)
    if threads > 1:
        change_on_threads(images, changes, numbers, fill, others, counter)
    else:
        change_some(images, changes, numbers, fill, others[0], counter)


# Drawing --------------------------------------------------------------------------------


@kernel
def sample_keys(key: np.uint64, indices: np.ndarray) -> np.ndarray:
    """uint64 (n,): a key for each sample, int64 (n,)."""
    keys = np.empty(len(indices), np.uint64)
    for i in range(len(indices)):
        keys[i] = absorb(key, indices[i])
    return keys


@kernel
def between(key: np.uint64, draw: int, bounds: tuple[float, float]) -> float:
    return bounds[0] + uniform(key, draw) * (bounds[1] - bounds[0])


@kernel
def normal(key: np.uint64, draw: int) -> float:
    """From the standard normal distribution, by Box and Muller; takes `draw` and the next one."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(key, draw)))
    return radius * math.cos(2.0 * math.pi * uniform(key, draw + 1))


@kernel
def draw_offsets(
    keys: np.ndarray, deviation: float, vectors: np.ndarray, changes: np.ndarray,
    numbers: np.ndarray,
) -> None:  # fmt: skip
    """OFFSETS by `vectors`, float64 (3, 3): channels by components, each times a normal number."""
    for i in range(len(keys)):
        changes[i, 0] = OFFSETS
        for component in range(3):
            size = deviation * normal(keys[i], 2 * component)
            for channel in range(3):
                numbers[i, 0, channel] += vectors[channel, component] * size


@kernel
def draw_jitter(
    keys: np.ndarray, kinds: np.ndarray, bounds: np.ndarray, changes: np.ndarray,
    numbers: np.ndarray,
) -> None:  # fmt: skip
    """Changes of these `kinds`, int32 (k,), in random order, each by a number within `bounds`."""
    count = len(kinds)
    for i in range(len(keys)):
        order = np.arange(count)
        for place in range(count - 1, 0, -1):  # Fisher and Yates
            other = below(keys[i], place, place + 1)
            order[place], order[other] = order[other], order[place]
        for place in range(count):
            kind = order[place]
            changes[i, place] = kinds[kind]
            numbers[i, place, 0] = between(
                keys[i], count + kind, (bounds[kind, 0], bounds[kind, 1])
            )


@kernel
def draw_grayscale(keys: np.ndarray, probability: float, changes: np.ndarray) -> None:
    for i in range(len(keys)):
        changes[i, 0] = GRAYSCALE if uniform(keys[i], 0) < probability else NOTHING


@kernel
def place_change(
    key: np.uint64, draw: int, kind: int, base: float, magnitude: float, signed: bool,
    changes: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """A change of one image, changes (1,) and numbers (4,), by base plus or minus a magnitude."""
    changes[0] = kind
    negative = signed and uniform(key, draw) < 0.5
    numbers[0] = base - magnitude if negative else base + magnitude


@kernel
def draw_policy(
    keys: np.ndarray, kinds: np.ndarray, probabilities: np.ndarray, magnitudes: np.ndarray,
    bases: np.ndarray, signed: np.ndarray, changes: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """One of p policies for each image: all their tables are (p, k).

    A change has its policy's probability; one that is `signed` is turned round half the time.
    """
    for i in range(len(keys)):
        policy = below(keys[i], 0, len(kinds))
        for step in range(kinds.shape[1]):
            if uniform(keys[i], 1 + 2 * step) < probabilities[policy, step]:
                place_change(
                    keys[i], 2 + 2 * step, kinds[policy, step], bases[policy, step],
                    magnitudes[policy, step], signed[policy, step], changes[i, step:],
                    numbers[i, step],
                )  # fmt: skip


@kernel
def draw_from_space(
    keys: np.ndarray, kinds: np.ndarray, magnitudes: np.ndarray, bases: np.ndarray,
    signed: np.ndarray, changes: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """k of m kinds for each image, with replacement, each by one of its magnitudes (m, bins)."""
    for i in range(len(keys)):
        for step in range(changes.shape[1]):
            kind = below(keys[i], 3 * step, len(kinds))
            size = magnitudes[kind, below(keys[i], 3 * step + 1, magnitudes.shape[1])]
            place_change(
                keys[i], 3 * step + 2, kinds[kind], bases[kind], size, signed[kind],
                changes[i, step:], numbers[i, step],
            )  # fmt: skip


@kernel
def draw_shifts(
    keys: np.ndarray, padding: int, flip: float, changes: np.ndarray, numbers: np.ndarray
) -> None:
    """TRANSLATE_X and TRANSLATE_Y by up to `padding` pixels, all alike, then MIRROR by probability
    `flip`: a random window, of the image's size, of the image with a border."""
    for i in range(len(keys)):
        changes[i, 0], changes[i, 1] = TRANSLATE_X, TRANSLATE_Y
        numbers[i, 0, 0] = below(keys[i], 0, 2 * padding + 1) - padding
        numbers[i, 1, 0] = below(keys[i], 1, 2 * padding + 1) - padding
        changes[i, 2] = MIRROR if uniform(keys[i], 2) < flip else NOTHING


@kernel
def draw_erasing(
    keys: np.ndarray, height: int, width: int, probability: float, scale: tuple[float, float],
    ratio: tuple[float, float], changes: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """ERASE of a rectangle inside the image, torchvision's v2 RandomErasing: a share of the area
    and an aspect ratio (height over width) at random; nothing where ten tries do not fit.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(len(keys)):
        if uniform(keys[i], 0) >= probability:
            continue
        for attempt in range(TRIES):
            draw = 1 + 4 * attempt
            area = height * width * between(keys[i], draw, scale)
            aspect = math.exp(between(keys[i], draw + 1, (low, high)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                changes[i, 0] = ERASE
                numbers[i, 0, 0] = below(keys[i], draw + 2, height - tall + 1)
                numbers[i, 0, 1] = below(keys[i], draw + 3, width - wide + 1)
                numbers[i, 0, 2], numbers[i, 0, 3] = tall, wide
                break


@kernel
def draw_cutout(
    keys: np.ndarray, height: int, width: int, side: int, changes: np.ndarray, numbers: np.ndarray
) -> None:
    """ERASE of a square about a pixel at random, as far as it lies in the image (DeVries and
    Taylor 2017, `util/cutout.py`, where one of an odd side has a pixel less)."""
    for i in range(len(keys)):
        y, x = below(keys[i], 0, height), below(keys[i], 1, width)
        top, left = max(0, y - side // 2), max(0, x - side // 2)
        changes[i, 0] = ERASE
        numbers[i, 0, 0], numbers[i, 0, 1] = top, left
        numbers[i, 0, 2] = min(height, y + (side + 1) // 2) - top
        numbers[i, 0, 3] = min(width, x + (side + 1) // 2) - left
