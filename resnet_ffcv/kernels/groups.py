"""Groups of 32 blocks of quantised DCT coefficients <-> bytes, for the dct form.

A group is 4 block rows x 8 block columns of a plane, 32 x 64 samples. Lane 4 bx + by is its block
in column bx and row by. Of each frequency the 32 lanes' coefficients are stored as bit planes: a
32-bit word has one bit of all 32 lanes, and is, on a CPU with masks, the mask of one vector
instruction. docs/format.md has the layout byte by byte.
"""

from typing import Any

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import (
    add_i16,
    load_byte,
    load_i16,
    store_byte,
    store_i16,
    store_u32,
)
from resnet_ffcv.kernels.vector import (
    I16,
    I32,
    Scalar,
    Vector,
    broadcast,
    load,
    load_integer,
    mask_lanes,
    store,
    vector_kernel,
    zeros,
)

BLOCK_ROWS, BLOCK_COLUMNS = 4, 8  # of a group
BLOCKS = BLOCK_ROWS * BLOCK_COLUMNS
GROUP_BYTES = 2 * 64 * BLOCKS  # of a group's coefficients, int16 (64, BLOCKS); row 8 u + v

WIDEST = 11  # bits of a coefficient: of 8-bit samples, the table's entry being 1
EXCEPTION_LOW, EXCEPTION_HIGH = -16, 15  # what one exception can add
MOST_BYTES = 2 + 1 + (WIDEST - 1) + 64 + 64 * 4 * WIDEST  # of a packed group: no worse is chosen


# Packing ---------------------------------------------------------------------------------


@kernel
def bounds_of(width: int) -> tuple[int, int]:
    """(least, greatest) number of so many bits, in two's complement; width 0: only 0."""
    if width == 0:
        return 0, 0
    return -(1 << (width - 1)), (1 << (width - 1)) - 1


def _rest(lanes: Scalar, low: Scalar, high: Scalar) -> Vector:
    """What the numbers from low to high leave of int16 (BLOCKS,)."""
    x = load(lanes, I16, BLOCKS)
    return x - x.clip(broadcast(low, I16, BLOCKS), broadcast(high, I16, BLOCKS))


@vector_kernel
def count_exceptions(lanes: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """Exceptions that coefficients need beside bits that hold low to high; near enough to choose.

    It is ceil(rest / EXCEPTION_HIGH) or ceil(rest / EXCEPTION_LOW); the first is made by a product.
    """
    rest = _rest(lanes, low, high)
    above = rest.clip(0, 1 << 13) + EXCEPTION_HIGH // 2
    below = (zeros(lanes, I16, BLOCKS) - rest).clip(0, 1 << 13) - (EXCEPTION_LOW + 1)
    return (above.times_q15(2**15 // EXCEPTION_HIGH) + (below >> 4)).sum()


@vector_kernel
def find_rest(lanes: Scalar, low: Scalar, high: Scalar, out: Scalar) -> Scalar:
    """Writes the rest, int16 (BLOCKS,); bit i of the result is whether lane i has any."""
    rest = _rest(lanes, low, high)
    store(out, rest)
    return rest.is_not(0)


@vector_kernel
def bit_plane(lanes: Scalar, low: Scalar, high: Scalar, above: Scalar) -> Scalar:
    """A bit of each coefficient, clipped, as a word; `above`: bits of 16 that lie above it."""
    x = load(lanes, I16, BLOCKS)
    x = x.clip(broadcast(low, I16, BLOCKS), broadcast(high, I16, BLOCKS))
    return (x << broadcast(above, I16, BLOCKS)).signs()


@kernel
def choose_width(lanes: int) -> int:
    """The bits, none or 2 to WIDEST, that store int16 (BLOCKS,) at an address in few bytes."""
    best, cheapest = 0, 2 * count_exceptions(lanes, 0, 0)
    for width in range(2, WIDEST + 1):
        least = 1 + 4 * width
        if least >= cheapest:
            break
        low, high = bounds_of(width)
        cost = least + 2 * count_exceptions(lanes, low, high)
        if cost < cheapest:
            best, cheapest = width, cost
    return best


@kernel
def subtract_middle(lanes: int) -> int:
    """Takes the middle of its range from int16 (BLOCKS,) at an address; returns it."""
    least = greatest = int(load_i16(lanes))
    for lane in range(BLOCKS):
        value = int(load_i16(lanes + 2 * lane))
        least, greatest = min(least, value), max(greatest, value)
    middle = (least + greatest + 1) >> 1  # so that WIDEST bits hold the rest
    for lane in range(BLOCKS):
        add_i16(lanes + 2 * lane, -middle)
    return middle


@kernel
def pack_group(coefficients: int, out: int) -> int:
    """Writes a group; returns its bytes.

    Args:
        coefficients: address of int16 (64, BLOCKS), row 8 u + v has horizontal frequency u and
            vertical v; then of BLOCKS more to work with. Are changed.
        out: address of MOST_BYTES.
    """
    row_bytes, spare = 2 * BLOCKS, coefficients + GROUP_BYTES
    store_i16(out, subtract_middle(coefficients))
    widths = np.zeros(64, np.int64)
    widest = 0
    for frequency in range(64):
        width = choose_width(coefficients + row_bytes * frequency)
        widths[frequency] = width
        widest = max(widest, width)
    store_byte(out + 2, widest)
    end = out + 3 + max(widest - 1, 0)
    for width in range(2, widest + 1):
        before = end
        for frequency in range(64):
            if widths[frequency] == width:
                store_byte(end, frequency)
                end += 1
        store_byte(out + 1 + width, end - before)
    for width in range(2, widest + 1):
        for frequency in range(64):
            if widths[frequency] == width:
                end = pack_bits(coefficients + row_bytes * frequency, width, end)
    for frequency in range(64):
        row = coefficients + row_bytes * frequency
        end = pack_exceptions(row, frequency, widths[frequency], spare, end)
    return end - out


@kernel
def pack_bits(lanes: int, width: int, end: int) -> int:
    """Appends the bit planes of int16 (BLOCKS,), the sign first; returns the new end."""
    low, high = bounds_of(width)
    for above in range(16 - width, 16):
        store_u32(end, bit_plane(lanes, low, high, above))
        end += 4
    return end


@kernel
def pack_exceptions(lanes: int, frequency: int, width: int, spare: int, end: int) -> int:
    """Appends what `width` bits leave of int16 (BLOCKS,); returns the new end."""
    low, high = bounds_of(width)
    left = find_rest(lanes, low, high, spare)
    lane = 0
    while left:
        if left & 1:
            rest = load_i16(spare + 2 * lane)
            while rest != 0:
                part = min(max(rest, EXCEPTION_LOW), EXCEPTION_HIGH)
                rest -= part
                store_i16(end, (part << 11) | (frequency << 5) | lane)
                end += 2
        left >>= 1
        lane += 1
    return end


# Unpacking -------------------------------------------------------------------------------


def _unpack_bits(width: int) -> Any:
    def body(planes: Scalar, out: Scalar) -> None:
        """`width` bit planes, the sign first -> BLOCKS int16."""
        total = zeros(planes, I16, BLOCKS)
        for place in range(width):
            bits = mask_lanes(load_integer(planes + 4 * place, I32), BLOCKS)
            value = 1 << (width - 1 - place)
            total = total.add_where(bits, -value if place == 0 else value)
        store(out, total)

    body.__name__ = f"unpack_{width}_bits"
    return vector_kernel(body)


unpack_2 = _unpack_bits(2)
unpack_3 = _unpack_bits(3)
unpack_4 = _unpack_bits(4)
unpack_5 = _unpack_bits(5)
unpack_6 = _unpack_bits(6)
unpack_7 = _unpack_bits(7)
unpack_8 = _unpack_bits(8)
unpack_9 = _unpack_bits(9)
unpack_10 = _unpack_bits(10)
unpack_11 = _unpack_bits(11)


@kernel
def unpack_bits(width: int, planes: int, out: int) -> None:
    if width == 2:
        unpack_2(planes, out)
    elif width == 3:
        unpack_3(planes, out)
    elif width == 4:
        unpack_4(planes, out)
    elif width == 5:
        unpack_5(planes, out)
    elif width == 6:
        unpack_6(planes, out)
    elif width == 7:
        unpack_7(planes, out)
    elif width == 8:
        unpack_8(planes, out)
    elif width == 9:
        unpack_9(planes, out)
    elif width == 10:
        unpack_10(planes, out)
    else:
        unpack_11(planes, out)


@vector_kernel
def clear_group(out: Scalar) -> None:
    """Zeros all coefficients of a group."""
    for row in range(64):
        store(out + 2 * BLOCKS * row, zeros(out, I16, BLOCKS))


@kernel
def unpack_group(begin: int, end: int, out: int) -> bool:
    """Coefficients of a packed group, but for `middle`, which is to be added to frequency 0.

    Args:
        begin, end: addresses of its bytes.
        out: address of int16 (64, BLOCKS), is filled.

    Returns:
        Whether the bytes make sense; nothing beyond them is read, even if they change meanwhile.
    """
    if end - begin < 3:
        return False
    widest = load_byte(begin + 2)
    frequencies = begin + 3 + max(widest - 1, 0)
    if widest > WIDEST or frequencies > end:
        return False
    count, words = 0, 0
    for width in range(2, widest + 1):
        number = load_byte(begin + 1 + width)
        count += number
        words += number * width
    planes = frequencies + count
    exceptions = planes + 4 * words
    if exceptions > end or (end - exceptions) & 1:
        return False
    clear_group(out)
    known, last = 0, planes
    for width in range(2, widest + 1):
        number = load_byte(begin + 1 + width)
        if frequencies + number > last or planes + 4 * width * number > exceptions:
            return False  # the file was written to since the numbers were added up
        for i in range(number):
            frequency = load_byte(frequencies + i)
            known |= frequency
            unpack_bits(width, planes, out + 2 * BLOCKS * (frequency & 63))
            planes += 4 * width
        frequencies += number
    for place in range(exceptions, end, 2):
        exception = load_i16(place)
        add_i16(out + 2 * (exception & 2047), exception >> 11)
    return known < 64
