"""The dct form of an image: quantised DCT coefficients as bit planes, without entropy coding.

What a JPEG stores, but readable from anywhere: a window is decoded from the groups under it.
docs/format.md has the layout.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.colour import GRAY, HALF, split_colour
from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.geometry import Window, choose_eighths, make_axes, scaled, shrink_window
from resnet_ffcv.kernels.groups import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    BLOCKS,
    GROUP_BYTES,
    MOST_BYTES,
    pack_group,
    unpack_group,
)
from resnet_ffcv.kernels.memory import copy_bytes, keep, load_i16, load_u16, store_i16
from resnet_ffcv.kernels.planes import Planes, count_planes_work, resample_planes
from resnet_ffcv.kernels.quantization import quantization_tables
from resnet_ffcv.kernels.resample import ANY_LINE, CACHE_LINE, LANES, Plane, align
from resnet_ffcv.kernels.taps import Axis, axis_words, make_half_axis
from resnet_ffcv.kernels.transform import (
    FORWARD_BYTES,
    FRACTION,
    dequantization_table,
    forward_group,
    inverse_group,
    quantization_factors,
)

ENCODE_BYTES = GROUP_BYTES + 2 * BLOCKS + FORWARD_BYTES


@kernel
def count_groups(height: int, width: int) -> tuple[int, int]:
    """(down, across) groups of a plane."""
    return -(-height // (8 * BLOCK_ROWS)), -(-width // (8 * BLOCK_COLUMNS))


@kernel
def count_all_groups(height: int, width: int, colour: int) -> int:
    down, across = count_groups(height, width)
    half_down, half_across = count_groups((height + 1) // 2, (width + 1) // 2)
    return down * across + (2 * half_down * half_across if colour == HALF else 0)


@kernel
def most_dct_bytes(height: int, width: int, colour: int) -> int:
    """Bytes that an image in this form has at most."""
    return count_all_groups(height, width, colour) * (2 + MOST_BYTES)


class Tables(NamedTuple):
    """What a quality is to the kernels.

    The encoder takes `factors`, float32 (2, 64), of luma and colour. The decoder takes, by the
    number of the table that a sample's row names (there is one, number 0), `inverse`, int32
    (1, 4, 2, 64, 2), for blocks of 8, 4, 2 and 1 samples, and `means`, int64 (1, 2).
    """

    factors: np.ndarray
    inverse: np.ndarray
    means: np.ndarray


@lru_cache
def make_tables(quality: int) -> Tables:
    """Tables of a quality from 1 to 100."""
    tables = quantization_tables(quality)
    factors = np.stack([quantization_factors(table) for table in tables])
    inverse = [[dequantization_table(table, size) for table in tables] for size in (8, 4, 2, 1)]
    means = [int(table[0, 0]) << (FRACTION - 3) for table in tables]
    return Tables(factors, np.stack([inverse]), np.array([means]))


# Encoding --------------------------------------------------------------------------------


@kernel
def encode_plane(plane: np.ndarray, factors: int, work: int, sizes: int, out: int) -> int:
    """Packs a plane's groups, column by column; returns their bytes.

    Args:
        plane: uint8 (height, width).
        factors: address of transform.quantization_factors.
        work: address of ENCODE_BYTES.
        sizes: address of uint16, is filled with the bytes of each group.
        out: address of room for them.
    """
    down, across = count_groups(plane.shape[0], plane.shape[1])
    spare = work + GROUP_BYTES + 2 * BLOCKS
    end = out
    for column in range(across):
        for row in range(down):
            forward_group(plane, row, column, factors, spare, work)
            size = pack_group(work, end)
            store_i16(sizes + 2 * (column * down + row), size)
            end += size
    return end - out


@kernel
def encode_dct(rgb: np.ndarray, colour: int, factors: np.ndarray, out: np.ndarray) -> int:
    """The form of an image; returns its bytes.

    Args:
        rgb: uint8 (height, width, 3).
        colour: GRAY or HALF.
        factors: float32 (2, 64), transform.quantization_factors of luma and colour.
        out: uint8 (most_dct_bytes,), is filled from its beginning.
    """
    height, width = rgb.shape[0], rgb.shape[1]
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    y, cb, cr = split_colour(rgb)
    room = np.empty(ENCODE_BYTES, np.uint8)
    work = room.ctypes.data
    down, across = count_groups(height, width)
    half_down, half_across = count_groups(half_height, half_width)
    sizes, of_y, of_colour = out.ctypes.data, factors[0].ctypes.data, factors[1].ctypes.data
    end = sizes + 2 * count_all_groups(height, width, colour)
    end += encode_plane(y, of_y, work, sizes, end)
    if colour == HALF:
        sizes += 2 * down * across
        end += encode_plane(cb, of_colour, work, sizes, end)
        sizes += 2 * half_down * half_across
        end += encode_plane(cr, of_colour, work, sizes, end)
    keep(room)
    return end - out.ctypes.data


# Decoding --------------------------------------------------------------------------------


@kernel
def plane_bytes(height: int, width: int, block: int) -> int:
    """Bytes that a decoded plane takes, at most."""
    down, across = count_groups(height, width)
    return down * across * BLOCKS * block * block + 2 * LANES


@kernel
def sum_sizes(sizes: int, count: int) -> int:
    """Sum of `count` uint16 at an address."""
    total = 0
    for i in range(count):
        total += load_u16(sizes + 2 * i)
    return total


@kernel
def decode_plane(
    groups: int, sizes: int, height: int, width: int, block: int, rows: Axis, columns: Axis,
    table: int, mean_factor: int, out: int, coefficients: int,
) -> Plane:  # fmt: skip
    """Samples of the groups that the taps of both axes see. Of a damaged group: an empty plane.

    Args:
        groups: address of the plane's first group.
        sizes: address of a copy of the plane's sizes, whose sum was checked.
        height, width: of the plane.
        block: samples of a block's side in the result: 8, 4, 2 or 1.
        rows, columns: taps in the result.
        table, mean_factor: dequantisation: its address, and what makes samples of a group's mean.
        out: address of plane_bytes.
        coefficients: address of two GROUP_BYTES and 64.
    """
    down = count_groups(height, width)[0]
    tall, wide = BLOCK_ROWS * block, BLOCK_COLUMNS * block
    first_row, last_row = rows.begin // tall, (rows.end - 1) // tall
    first_column, last_column = columns.begin // wide, (columns.end - 1) // wide
    stride = (last_row - first_row + 1) * tall
    between = coefficients + GROUP_BYTES + 64  # a page apart, stores would be taken for loads
    groups += sum_sizes(sizes, first_column * down)
    sizes += 2 * first_column * down
    for column in range(first_column, last_column + 1):
        for row in range(down):
            end = groups + load_u16(sizes)
            if first_row <= row <= last_row:
                if not unpack_group(groups, end, coefficients):
                    return Plane(0, 0, 0, -1, 0, 8)
                mean = load_i16(groups) * mean_factor
                place = out + (column - first_column) * wide * stride + (row - first_row) * tall
                inverse_group(block, coefficients, mean, table, between, place, stride)
            groups, sizes = end, sizes + 2
    first = first_row * tall
    address = out - first_column * wide * stride - first
    return Plane(address, stride, first, rows.end - first, ANY_LINE, block)


@kernel
def decode_dct(
    address: int, size: int, height: int, width: int, colour: int, tables: np.ndarray,
    means: np.ndarray, window: Window, filter_: int, out: int, out_height: int, out_width: int,
    work: np.ndarray,
) -> int:  # fmt: skip
    """A window of an image in this form -> uint8 (out_height, out_width, 3); returns a status.

    Args:
        address, size: of its bytes.
        height, width, colour: from its row.
        tables: int32 (4, 2, 64, 2), transform.dequantization_table for blocks of 8, 4, 2, 1 and for
            luma, colour.
        means: int64 (2,), what a group's mean counts for, luma and colour.
        window: inside the image.
        filter_: of taps.FILTERS.
        out: address of the result.
        work: int32; count_dct_work bytes beside the axes.
    """
    if colour != GRAY and colour != HALF:
        return status.BAD_ROW
    count = count_all_groups(height, width, colour)
    if size < 2 * count:
        return status.WRONG_SIZE
    # A copy: the file may be written to between the check of the sum and the use of a size.
    sizes = work.ctypes.data
    copy_bytes(sizes, address, 2 * count)
    if size != 2 * count + sum_sizes(sizes, count):
        return status.WRONG_SIZE
    work = work[sizes_words(count) :]
    block = choose_eighths(window, out_height, out_width)
    shrunk = shrink_window(window, block)
    axes = make_axes(
        shrunk, scaled(height, block), scaled(width, block), filter_, out_height, out_width, work
    )
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    colour_block, half_x, half_y, used = block_of_colour(block), axes.x, axes.y, axes.words
    if block == 8:
        half_x = make_half_axis(axes.x, half_width, work[used:])
        used += axis_words(out_width, half_x.taps)
        half_y = make_half_axis(axes.y, half_height, work[used:])
        used += axis_words(out_height, half_y.taps)
    coefficients = align(work[used:].ctypes.data)
    out_y = coefficients + 2 * GROUP_BYTES + 64
    out_cb = out_y + plane_bytes(height, width, block)
    out_cr = out_cb + plane_bytes(half_height, half_width, colour_block)
    end = out_cr + plane_bytes(half_height, half_width, colour_block)

    down, across = count_groups(height, width)
    groups, luma = address + 2 * count, down * across
    table = tables[level(block), 0].ctypes.data
    y = decode_plane(
        groups, sizes, height, width, block, axes.y, axes.x, table, means[0], out_y, coefficients
    )
    cb = cr = Plane(0, 0, 0, 0, 0, 8)
    if colour == HALF:
        half = (count - luma) // 2
        table = tables[level(colour_block), 1].ctypes.data
        groups, sizes = groups + sum_sizes(sizes, luma), sizes + 2 * luma
        cb = decode_plane(
            groups, sizes, half_height, half_width, colour_block, half_y, half_x,
            table, means[1], out_cb, coefficients,
        )  # fmt: skip
        groups, sizes = groups + sum_sizes(sizes, half), sizes + 2 * half
        cr = decode_plane(
            groups, sizes, half_height, half_width, colour_block, half_y, half_x,
            table, means[1], out_cr, coefficients,
        )  # fmt: skip
    if min(y.lines, cb.lines, cr.lines) < 0:
        return status.BAD_GROUP
    resample_planes(
        Planes(y, cb, cr), True, axes.x, half_x, axes.y, half_y,
        out, out_height, out_width, work[(end - work.ctypes.data + 3) // 4 :],
    )  # fmt: skip
    return status.WHOLE


@kernel
def level(block: int) -> int:
    """Place of a block size in the tables of dequantisation."""
    return 0 if block == 8 else 1 if block == 4 else 2 if block == 2 else 3


@kernel
def block_of_colour(block: int) -> int:
    """Side of colour's blocks: below 8, twice that of luma's, for the same resolution."""
    return min(2 * block, 8)


@kernel
def sizes_words(count: int) -> int:
    """32-bit words that the copy of the sizes of `count` groups takes: whole cache lines."""
    return -(-2 * count // CACHE_LINE) * (CACHE_LINE // 4)


@kernel
def count_dct_work(
    height: int, width: int, colour: int, block: int, out_height: int, out_width: int
) -> int:
    """Bytes that decode_dct takes beside its axes, at most; `block` of geometry.choose_eighths."""
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    colour_block = block_of_colour(block)
    planes = plane_bytes(height, width, block)
    planes += 2 * plane_bytes(half_height, half_width, colour_block)
    lines, colour_lines = scaled(height, block) + 64, scaled(half_height, colour_block) + 64
    return (
        4 * sizes_words(count_all_groups(height, width, colour)) + 2 * GROUP_BYTES + 128 + planes
        + count_planes_work(lines, colour_lines, out_width, out_height)
    )  # fmt: skip
