"""Separable resampling of 8-bit images to RGB, in 16-bit fixed point.

Two passes, one an axis. The first filters along the axis that is strided in memory, its lanes along
the contiguous one, so that each tap is one plain load; it writes its result transposed, so that the
second pass has the same ease along the other axis. Colour conversion is part of the second pass.

Samples count from the middle of their range, -128 to 127. Numbers: a sample enters the first pass
times 2^8, leaves it times 2^7 and leaves the second times 2^6, for a tap is one `times_q15` by a
weight that counts in 1 / 2^14 (taps.ONE). Each tap rounds once, by up to 1 / 256 grey level in the
first pass and 1 / 128 in the second; above taps.FEW_TAPS both sum up in float32, at more cost.
"""

from collections.abc import Callable
from typing import NamedTuple

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.memory import copy_bytes
from resnet_ffcv.kernels.taps import Axis
from resnet_ffcv.kernels.vector import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Scalar,
    Vector,
    broadcast,
    broadcast_float,
    concatenate,
    load,
    load_integer,
    repeat,
    store,
    transpose,
    vector_kernel,
    zeros,
)

LANES = 32  # samples of a vector in both passes
BLOCK = 8  # outputs that a kernel makes at a time
SPARE = 3 * BLOCK * LANES  # bytes that the second pass takes for what reaches over the image's edge
CACHE_LINE = 64  # bytes
ANY_LINE = 1 << 40  # a Plane's limit where memory goes on behind it

# YCbCr to RGB, ITU-T T.871 (JFIF), section 7, in shares of 2^15
RED_OF_CR = 13_173  # 1.402 - 1
GREEN_OF_CB = -11_277  # -0.344136
GREEN_OF_CR = -23_401  # -0.714136
BLUE_OF_CB = -7_471  # 1.772 - 2


# The passes ------------------------------------------------------------------------------


def _sum_taps(
    taps: Scalar,
    row: Scalar,
    weights: list[Scalar],
    loads: list[Callable[[Scalar], Vector]],
    floats: bool,
) -> list[Vector]:
    """For each of `loads`, the sum over taps of its 16-bit vector of that tap times its weight.

    `weights`: addresses of the first tap's; those of the next lie `row` bytes behind.
    """

    def add_tap(tap: Scalar, sums: list[Vector]) -> list[Vector]:
        after = []
        for total, place, load_tap in zip(sums, weights, loads, strict=True):
            x, weight = load_tap(tap), place + tap * row
            if floats:
                after.append(total + x.widen(I32).to_float() * broadcast_float(weight, LANES))
            else:
                pair = broadcast(load_integer(weight, I32), I32, LANES // 2)
                after.append(total + x.times_q15(pair.as_lanes(I16)))
        return after

    width = F32 if floats else I16
    sums = repeat(taps, [zeros(taps, width, LANES) for _ in loads], add_tap)
    # As times_q15 does with weights of 1 / 2^14, a sum loses one bit.
    return [(total * 0.5).round(I32).narrow(I16) if floats else total for total in sums]


def _first_pass(floats: bool) -> Callable[..., None]:
    def body(
        out: Scalar, by_1: Scalar, by_4: Scalar, by_8: Scalar, by_16: Scalar,
        source: Scalar, step: Scalar, starts: Scalar, weights: Scalar, row: Scalar, taps: Scalar,
    ) -> None:  # fmt: skip
        """BLOCK outputs for LANES lines of samples.

        `source` is the first line's sample 0; samples of a line are `step` bytes apart. The outputs
        of line (0 to 3) + 4 a + 8 b + 16 c go to out + (0 to 3) by_1 + a by_4 + b by_8 + c by_16.
        """

        def samples(k: int) -> Callable[[Scalar], Vector]:
            first = source + load_integer(starts + 4 * k, I32) * step
            return lambda tap: (load(first + tap * step, I8, LANES) ^ -128).widen(I16) << 8

        places = [weights + 4 * k for k in range(BLOCK)]
        sums = transpose(_sum_taps(taps, row, places, [samples(k) for k in range(BLOCK)], floats))
        for k in range(8):
            place = out + by_1 * (k % 4) + by_4 * (k // 4)
            for eight in range(4):
                part = sums[k].shuffle(range(8 * eight, 8 * eight + 8))
                store(place + by_8 * (eight % 2) + by_16 * (eight // 2), part)

    body.__name__ = f"first_pass{'_floats' * floats}"
    return body


first_pass = vector_kernel(_first_pass(floats=False))
first_pass_floats = vector_kernel(_first_pass(floats=True))


def _to_bytes(x: Vector) -> Vector:
    """Sums of the second pass, which count in 1 / 64 -> uint8.

    Doubled twice with saturation, a number's upper byte is itself, clipped.
    """
    doubled = x.add_saturated(x)
    rounded = doubled.add_saturated(doubled).add_saturated(128)
    return rounded.as_lanes(I8).shuffle(range(1, 2 * LANES, 2)) ^ -128


def _to_rgb(y: Vector, cb: Vector, cr: Vector) -> list[Vector]:
    red = y.add_saturated(cr).add_saturated(cr.times_q15(RED_OF_CR))
    green = y.add_saturated(cb.times_q15(GREEN_OF_CB)).add_saturated(cr.times_q15(GREEN_OF_CR))
    # y is added last: 1.772 Cb alone cannot overflow.
    blue = (cb + cb + cb.times_q15(BLUE_OF_CB)).add_saturated(y)
    return [_to_bytes(red), _to_bytes(green), _to_bytes(blue)]


def _rows_pass(vectors: int, floats: bool) -> Callable[..., None]:
    def body(
        out: Scalar, stride: Scalar, row: Scalar, y: Scalar, weights: Scalar, taps: Scalar,
        cb: Scalar, cr: Scalar, colour_weights: Scalar, colour_taps: Scalar,
    ) -> None:  # fmt: skip
        """The second pass for `vectors` LANES pixels of a row, of YCbCr lines `stride` apart."""

        def lines(address: Scalar) -> list[Callable[[Scalar], Vector]]:
            def line(begin: Scalar) -> Callable[[Scalar], Vector]:
                return lambda tap: load(begin + tap * stride, I16, LANES)

            return [line(address + 2 * LANES * i) for i in range(vectors)]

        luma = _sum_taps(taps, row, [weights] * vectors, lines(y), floats)
        colours = [*lines(cb), *lines(cr)]
        colour = _sum_taps(colour_taps, row, [colour_weights] * 2 * vectors, colours, floats)
        for i in range(vectors):
            r, g, b = _to_rgb(luma[i], colour[i], colour[vectors + i])
            pixels = [channel * LANES + lane for lane in range(LANES) for channel in range(3)]
            rgb = r.shuffle(range(2 * LANES), g).shuffle(pixels, concatenate([b, b]))
            store(out + 3 * LANES * i, rgb)

    body.__name__ = f"rows_pass_{vectors}{'_floats' * floats}"
    return body


rows_pass_1 = vector_kernel(_rows_pass(vectors=1, floats=False))
rows_pass_2 = vector_kernel(_rows_pass(vectors=2, floats=False))
rows_pass_1_floats = vector_kernel(_rows_pass(vectors=1, floats=True))


def _store_tile(values: list[Vector], out: Scalar, row_bytes: Scalar) -> None:
    """Pixels x = 0 to 7 of LANES rows: values[3 x + channel] has one byte of each row."""
    for part in range(3):  # 8 of the 24 bytes of a row
        for k, bytes_ in enumerate(transpose(values[8 * part : 8 * part + 8])):
            rows = bytes_.as_lanes(I64)  # of row 8 b + k in lane b
            for block in range(LANES // 8):
                place = out + row_bytes * (8 * block + k) + 8 * part
                store(place, rows.shuffle([block]))


def _columns_pass(floats: bool, ycc: bool) -> Callable[..., None]:
    def of_ycc(
        out: Scalar, row_bytes: Scalar, stride: Scalar, row: Scalar,
        y: Scalar, starts: Scalar, weights: Scalar, taps: Scalar, cb: Scalar, cr: Scalar,
        colour_starts: Scalar, colour_weights: Scalar, colour_taps: Scalar,
    ) -> None:  # fmt: skip
        """The second pass for BLOCK pixels of LANES rows, of YCbCr columns `stride` bytes apart."""
        values = []
        for k in range(BLOCK):
            luma = lines(y + load_integer(starts + 4 * k, I32) * stride, stride)
            offset = load_integer(colour_starts + 4 * k, I32) * stride
            colour = [lines(cb + offset, stride), lines(cr + offset, stride)]
            (s,) = _sum_taps(taps, row, [weights + 4 * k], [luma], floats)
            blue, red = _sum_taps(colour_taps, row, [colour_weights + 4 * k] * 2, colour, floats)
            values += _to_rgb(s, blue, red)
        _store_tile(values, out, row_bytes)

    def of_rgb(
        out: Scalar, row_bytes: Scalar, stride: Scalar, row: Scalar,
        rgb: Scalar, starts: Scalar, weights: Scalar, taps: Scalar,
    ) -> None:  # fmt: skip
        """The second pass for BLOCK pixels of LANES rows, of columns R, G, B, R and so on."""
        values = []
        for k in range(BLOCK):
            first = rgb + load_integer(starts + 4 * k, I32) * stride * 3
            channels = [lines(first + stride * channel, stride * 3) for channel in range(3)]
            sums = _sum_taps(taps, row, [weights + 4 * k] * 3, channels, floats)
            values += [_to_bytes(total) for total in sums]
        _store_tile(values, out, row_bytes)

    def lines(address: Scalar, stride: Scalar) -> Callable[[Scalar], Vector]:
        return lambda tap: load(address + tap * stride, I16, LANES)

    body = of_ycc if ycc else of_rgb
    body.__name__ = f"columns_pass_{'ycc' if ycc else 'rgb'}{'_floats' * floats}"
    return body


columns_pass_ycc = vector_kernel(_columns_pass(floats=False, ycc=True))
columns_pass_ycc_floats = vector_kernel(_columns_pass(floats=True, ycc=True))
columns_pass_rgb = vector_kernel(_columns_pass(floats=False, ycc=False))
columns_pass_rgb_floats = vector_kernel(_columns_pass(floats=True, ycc=False))


# Images ----------------------------------------------------------------------------------


class Plane(NamedTuple):
    """A source of the first pass: lines of samples along the axis that it filters.

    Sample i of line l is the byte at address + i step + l, for lines first to first + lines - 1.
    They are read LANES at a time, never at or after line `limit`; at least LANES lie before it.
    """

    address: int
    step: int
    first: int
    lines: int
    limit: int
    block: int  # 1: lines in their order; 8, 4 or 2: as an inverse DCT of that size leaves them


@kernel
def filter_lines(plane: Plane, axis: Axis, out: int, stride: int) -> None:
    """The first pass of a plane: output i of line l goes to out + l stride + 2 i.

    Writes up to LANES lines before the first and after the last, too.
    """
    by_1, by_4, by_8, by_16 = 1, 4, 8, 16  # see transform.py, ORDER OF LINES
    if plane.block == 8:
        by_1, by_4, by_8, by_16 = 8, 1, 2, 4
    elif plane.block == 4:
        by_1, by_4, by_8, by_16 = 4, 1, 2, 16
    elif plane.block == 2:
        by_1, by_4, by_8, by_16 = 2, 1, 8, 16
    a, b, c, d = by_1 * stride, by_4 * stride, by_8 * stride, by_16 * stride
    starts, weights = axis.starts.ctypes.data, axis.weights.ctypes.data
    step, taps, row = plane.step, axis.taps, 4 * len(axis.starts)
    for begin in range(0, plane.lines, LANES):
        line = min(plane.first + begin, plane.limit - LANES)
        source, target = plane.address + line, out + line * stride
        for i in range(0, axis.outputs, BLOCK):
            to, start, weight = target + 2 * i, starts + 4 * i, weights + 4 * i
            if axis.is_float:
                first_pass_floats(to, a, b, c, d, source, step, start, weight, row, taps)
            else:
                first_pass(to, a, b, c, d, source, step, start, weight, row, taps)


@kernel
def line_bytes(outputs: int) -> int:
    """Bytes of a line that the first pass writes: whole vectors, none across two cache lines."""
    return 2 * ((outputs + LANES - 1) // LANES * LANES)


@kernel
def align(address: int) -> int:
    """The next address that a cache line begins at."""
    return (address + CACHE_LINE - 1) & -CACHE_LINE


class Colour(NamedTuple):
    """What the first pass left of an image with colour apart: lines of 16-bit numbers.

    Line l of the luma is at y + l stride, of the colour at cb + l stride and cr + l stride.
    """

    y: int
    cb: int
    cr: int
    stride: int


@kernel
def write_rows(
    lines: Colour, luma: Axis, colour: Axis, out: int, height: int, width: int, spare: int
) -> None:
    """The second pass of planes that are stored by columns: along y, to RGB rows.

    Args:
        lines: (image line) rows of the first pass, which went along x.
        luma, colour: the taps along y.
        out: address of uint8 (height, width, 3).
        spare: address of 3 LANES bytes.
    """
    to_weights, to_colour_weights = luma.weights.ctypes.data, colour.weights.ctypes.data
    next_tap = 4 * len(luma.starts)
    for row in range(height):
        y = lines.y + luma.starts[row] * lines.stride
        offset = colour.starts[row] * lines.stride
        cb, cr = lines.cb + offset, lines.cr + offset
        weights, colour_weights = to_weights + 4 * row, to_colour_weights + 4 * row
        target = out + 3 * row * width
        x = 0
        while x < width:
            place = spare if width < LANES else target + 3 * x
            if luma.is_float:
                rows_pass_1_floats(
                    place, lines.stride, next_tap, y + 2 * x, weights, luma.taps,
                    cb + 2 * x, cr + 2 * x, colour_weights, colour.taps,
                )  # fmt: skip
                x += LANES
            elif x + 2 * LANES <= width:
                rows_pass_2(
                    place, lines.stride, next_tap, y + 2 * x, weights, luma.taps,
                    cb + 2 * x, cr + 2 * x, colour_weights, colour.taps,
                )  # fmt: skip
                x += 2 * LANES
            else:
                rows_pass_1(
                    place, lines.stride, next_tap, y + 2 * x, weights, luma.taps,
                    cb + 2 * x, cr + 2 * x, colour_weights, colour.taps,
                )  # fmt: skip
                x += LANES
            if width - LANES < x < width and width >= LANES:
                x = width - LANES  # the last two overlap
        if width < LANES:
            copy_bytes(target, spare, 3 * width)


@kernel
def write_columns(
    lines: Colour, luma: Axis, colour: Axis, out: int, height: int, width: int, spare: int
) -> None:
    """The second pass of planes that are stored by rows: along x, to RGB.

    Arguments as of write_rows, x and y exchanged; `spare` has room for 3 BLOCK LANES bytes.
    """
    next_tap = 4 * len(luma.starts)
    for y in range(0, height, LANES):
        for x in range(0, width, BLOCK):
            whole = y + LANES <= height and x + BLOCK <= width
            place = out + 3 * (y * width + x) if whole else spare
            row_bytes = 3 * width if whole else 3 * BLOCK
            starts, weights = luma.starts[x:].ctypes.data, luma.weights.ctypes.data + 4 * x
            colour_starts = colour.starts[x:].ctypes.data
            colour_weights = colour.weights.ctypes.data + 4 * x
            if luma.is_float:
                columns_pass_ycc_floats(
                    place, row_bytes, lines.stride, next_tap,
                    lines.y + 2 * y, starts, weights, luma.taps,
                    lines.cb + 2 * y, lines.cr + 2 * y, colour_starts, colour_weights, colour.taps,
                )  # fmt: skip
            else:
                columns_pass_ycc(
                    place, row_bytes, lines.stride, next_tap,
                    lines.y + 2 * y, starts, weights, luma.taps,
                    lines.cb + 2 * y, lines.cr + 2 * y, colour_starts, colour_weights, colour.taps,
                )  # fmt: skip
            if not whole:
                copy_tile(out, height, width, y, x, spare)


@kernel
def write_columns_rgb(
    rgb: int, stride: int, axis: Axis, out: int, height: int, width: int, spare: int
) -> None:
    """The second pass of RGB pixels that are stored by rows; see write_columns.

    The first pass left column 3 x + channel at rgb + (3 x + channel) stride.
    """
    next_tap = 4 * len(axis.starts)
    for y in range(0, height, LANES):
        for x in range(0, width, BLOCK):
            whole = y + LANES <= height and x + BLOCK <= width
            place = out + 3 * (y * width + x) if whole else spare
            row_bytes = 3 * width if whole else 3 * BLOCK
            starts, weights = axis.starts[x:].ctypes.data, axis.weights.ctypes.data + 4 * x
            if axis.is_float:
                columns_pass_rgb_floats(
                    place, row_bytes, stride, next_tap, rgb + 2 * y, starts, weights, axis.taps
                )
            else:
                columns_pass_rgb(
                    place, row_bytes, stride, next_tap, rgb + 2 * y, starts, weights, axis.taps
                )
            if not whole:
                copy_tile(out, height, width, y, x, spare)


@kernel
def copy_tile(out: int, height: int, width: int, y: int, x: int, tile: int) -> None:
    """Copies of a tile of LANES x BLOCK pixels what lies in the image."""
    for row in range(min(LANES, height - y)):
        target = out + 3 * ((y + row) * width + x)
        copy_bytes(target, tile + 3 * BLOCK * row, 3 * min(BLOCK, width - x))
