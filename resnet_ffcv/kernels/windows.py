"""Which part of an image is shown: the policies of training and testing, for batches.

Each writes one row a sample (geometry.read_window): y, x, height, width, whether the filter sees
all of the image, whether it is mirrored. Random ones take a key of the epoch, of random.epoch_key,
and the samples' indices: the same sample has the same window in any batch.
"""

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.random import absorb, below, uniform

NUMBERS = 6  # of a window's row
TRIES = 10  # of random-resized crops; torchvision's and FFCV's

# Draws of a sample. A try takes four.
FLIP, SHORT_SIDE, TOP, LEFT, FIRST_TRY = 0, 1, 2, 3, 4


@kernel
def is_mirrored(key: np.uint64, probability: float) -> float:
    return 1.0 if uniform(key, FLIP) < probability else 0.0


@kernel
def write_row(row: np.ndarray, y: float, x: float, height: float, width: float) -> None:
    row[0], row[1], row[2], row[3], row[4], row[5] = y, x, height, width, 0.0, 0.0


@kernel
def random_resized_window(
    key: np.uint64, height: int, width: int, scale: tuple[float, float],
    ratio: tuple[float, float], row: np.ndarray,
) -> None:  # fmt: skip
    """A share of the area and an aspect ratio at random; the middle where ten tries do not fit.

    torchvision's RandomResizedCrop.get_params and FFCV's get_random_crop (fields/rgb_image.py:48).
    """
    area = height * width
    low, high = np.log(ratio[0]), np.log(ratio[1])
    for attempt in range(TRIES):
        draw = FIRST_TRY + 4 * attempt
        target = area * (scale[0] + uniform(key, draw) * (scale[1] - scale[0]))
        aspect = np.exp(low + uniform(key, draw + 1) * (high - low))
        wide = round(np.sqrt(target * aspect))
        tall = round(np.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            y = below(key, draw + 2, height - tall + 1)
            x = below(key, draw + 3, width - wide + 1)
            write_row(row, y, x, tall, wide)
            return
    tall, wide = height, width
    if width < height * ratio[0]:
        tall = max(1, round(width / ratio[0]))
    elif width > height * ratio[1]:
        wide = max(1, round(height * ratio[1]))
    write_row(row, (height - tall) // 2, (width - wide) // 2, tall, wide)


@kernel
def center_window(height: int, width: int, ratio: float, row: np.ndarray) -> None:
    """The middle square of `ratio` times the short side, FFCV's get_center_crop, or one pixel."""
    side = max(1, int(ratio * min(height, width)))
    write_row(row, (height - side) // 2, (width - side) // 2, side, side)


@kernel
def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after torchvision's Resize(short_side)."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


@kernel
def window_of_resized(
    height: int, width: int, resized: tuple[int, int], y: int, x: int, size: tuple[int, int],
    row: np.ndarray,
) -> None:  # fmt: skip
    """What a crop of `size` at (y, x) of an image that was resized to `resized` shows of it."""
    tall, wide = height / resized[0], width / resized[1]
    write_row(row, y * tall, x * wide, size[0] * tall, size[1] * wide)
    row[4] = 1.0


@kernel
def scale_window(
    key: np.uint64, height: int, width: int, short_side: tuple[int, int], size: tuple[int, int],
    row: np.ndarray,
) -> None:  # fmt: skip
    """A crop of `size` at random, of the image resized to a short side at random, bounds included.

    The scale augmentation of He et al. 2015, section 3.4; sides as of torchvision's Resize.
    """
    short = short_side[0] + below(key, SHORT_SIDE, short_side[1] - short_side[0] + 1)
    resized = resized_shape(height, width, short)
    y = below(key, TOP, resized[0] - size[0] + 1)
    x = below(key, LEFT, resized[1] - size[1] + 1)
    window_of_resized(height, width, resized, y, x, size, row)


@kernel
def resized_center_window(
    height: int, width: int, short_side: int, size: tuple[int, int], row: np.ndarray
) -> None:
    """torchvision's Resize(short_side), CenterCrop(size)."""
    resized = resized_shape(height, width, short_side)
    y, x = round((resized[0] - size[0]) / 2.0), round((resized[1] - size[1]) / 2.0)
    window_of_resized(height, width, resized, y, x, size, row)


@kernel
def ten_crop_window(
    number: int, height: int, width: int, short_side: int, size: tuple[int, int], row: np.ndarray
) -> None:
    """Crop `number` of torchvision's Resize(short_side), TenCrop(size).

    0 to 4 are the four corners and the middle, 5 to 9 those of the mirrored image.
    """
    resized = resized_shape(height, width, short_side)
    bottom, right = resized[0] - size[0], resized[1] - size[1]
    corner = number % 5
    y = bottom if corner == 2 or corner == 3 else 0
    x = right if corner == 1 or corner == 3 else 0
    if corner == 4:
        y, x = round(bottom / 2.0), round(right / 2.0)
    if number >= 5:
        x = right - x
    window_of_resized(height, width, resized, y, x, size, row)
    row[5] = 1.0 if number >= 5 else 0.0


# Batches ---------------------------------------------------------------------------------


@kernel
def random_resized_windows(
    key: np.uint64, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray,
    scale: tuple[float, float], ratio: tuple[float, float], flip: float, rows: np.ndarray,
) -> None:  # fmt: skip
    """Fills float64 (n, 6) for samples `indices` (n,); `flip` is the probability to mirror."""
    for i in range(len(indices)):
        own = absorb(key, indices[i])
        random_resized_window(own, heights[i], widths[i], scale, ratio, rows[i])
        rows[i, 5] = is_mirrored(own, flip)


@kernel
def scale_windows(
    key: np.uint64, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray,
    short_side: tuple[int, int], size: tuple[int, int], flip: float, rows: np.ndarray,
) -> None:  # fmt: skip
    """As random_resized_windows."""
    for i in range(len(indices)):
        own = absorb(key, indices[i])
        scale_window(own, heights[i], widths[i], short_side, size, rows[i])
        rows[i, 5] = is_mirrored(own, flip)


@kernel
def center_windows(
    key: np.uint64, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, ratio: float,
    flip: float, rows: np.ndarray,
) -> None:  # fmt: skip
    """As random_resized_windows."""
    for i in range(len(heights)):
        center_window(heights[i], widths[i], ratio, rows[i])
        rows[i, 5] = is_mirrored(absorb(key, indices[i]), flip)


@kernel
def resized_center_windows(
    key: np.uint64, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, short_side: int,
    size: tuple[int, int], flip: float, rows: np.ndarray,
) -> None:  # fmt: skip
    """As random_resized_windows."""
    for i in range(len(heights)):
        resized_center_window(heights[i], widths[i], short_side, size, rows[i])
        rows[i, 5] = is_mirrored(absorb(key, indices[i]), flip)


@kernel
def whole_windows(heights: np.ndarray, widths: np.ndarray, rows: np.ndarray) -> None:
    """As random_resized_windows."""
    for i in range(len(heights)):
        write_row(rows[i], 0, 0, heights[i], widths[i])


@kernel
def ten_crop_windows(
    heights: np.ndarray, widths: np.ndarray, short_side: int, size: tuple[int, int],
    rows: np.ndarray,
) -> None:  # fmt: skip
    """Fills float64 (n, 10, 6)."""
    for i in range(len(heights)):
        for number in range(10):
            ten_crop_window(number, heights[i], widths[i], short_side, size, rows[i, number])


@kernel
def pad_crop_offsets(
    key: np.uint64, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, padding: int,
    size: tuple[int, int], flip: float, rows: np.ndarray,
) -> None:  # fmt: skip
    """Windows of `size` at random of images with `padding` pixels added on each side.

    Rows as of the others, but y and x, whole numbers, may be negative and the window reach outside.
    """
    for i in range(len(indices)):
        own = absorb(key, indices[i])
        y = below(own, TOP, heights[i] + 2 * padding - size[0] + 1) - padding
        x = below(own, LEFT, widths[i] + 2 * padding - size[1] + 1) - padding
        write_row(rows[i], y, x, size[0], size[1])
        rows[i, 5] = is_mirrored(own, flip)
