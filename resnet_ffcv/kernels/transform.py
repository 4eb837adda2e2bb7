"""JPEG's discrete cosine transform, for groups of blocks: forward, and back at four sizes.

Both are Arai, Agui and Nakajima's, whose scale factors are part of the quantisation ("A fast DCT-SQ
scheme for images", 1988), on all BLOCKS lanes of a group at once. Forward in float32 without fused
products, the same bits on every CPU; back in 16 bits, whose sums saturate, so that a damaged group
stays in range.

The inverse of size N < 8 takes the N x N lowest frequencies of each block as a DCT of size N, which
gives the image at N / 8 of its resolution (libjpeg's jidctred.c).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.groups import BLOCK_COLUMNS, BLOCK_ROWS, BLOCKS
from resnet_ffcv.kernels.memory import copy_bytes, load_byte, store_byte, store_i16
from resnet_ffcv.kernels.vector import (
    F32,
    I8,
    I16,
    I32,
    Scalar,
    Vector,
    broadcast,
    broadcast_float,
    load,
    load_integer,
    store,
    transpose,
    vector_kernel,
    weave,
)

FRACTION = 6  # bits of fraction of the inverse's numbers
ROW = 2 * BLOCKS  # bytes of one frequency of all blocks
FORWARD_BYTES = 64 * BLOCKS * (1 + 1 + 4)


# Forward ---------------------------------------------------------------------------------


@kernel
def gather_group(plane: np.ndarray, group_row: int, group_column: int, out: int) -> None:
    """The 32 x 64 samples of a group, row by row, at an address.

    Beyond the plane, the last row and column repeat; whole blocks beyond it repeat the last one.
    """
    height, width = plane.shape
    top, left = 8 * BLOCK_ROWS * group_row, 8 * BLOCK_COLUMNS * group_column
    for row in range(8 * BLOCK_ROWS):
        y = min(top + row, (height - 1) // 8 * 8 + row % 8, height - 1)
        here, line = out + 8 * BLOCK_COLUMNS * row, plane[y].ctypes.data
        inside = min(8 * BLOCK_COLUMNS, width - left)
        copy_bytes(here, line + left, inside)
        for column in range(inside, 8 * BLOCK_COLUMNS):
            x = min(left + column, (width - 1) // 8 * 8 + column % 8, width - 1)
            store_byte(here + column, load_byte(line + x))


@vector_kernel
def sort_samples(rows: Scalar, out: Scalar) -> None:
    """Sample row y of each block: 4 lines of 64 bytes, 8 lines apart -> 8 rows of BLOCKS bytes.

    `rows`: line y of a gathered group. `out`: row y of bytes (64, BLOCKS), row 8 x + y.
    """
    lines = [load(rows + 8 * 64 * by, I8, 64) for by in range(BLOCK_ROWS)]
    pairs = [weave(lines[0], lines[1]).as_lanes(I16), weave(lines[2], lines[3]).as_lanes(I16)]
    quads = weave(pairs[0], pairs[1]).as_lanes(I32)  # lane 8 bx + x has that sample of rows 0 to 3
    for x in range(8):
        store(out + 8 * x * BLOCKS, quads.shuffle(range(x, 64, 8)))


def _forward_8(x: list[Vector]) -> list[Vector]:
    """libjpeg's jfdctflt.c: the result k is the transform times 1 / forward_factors()[k]."""
    root = 0.707106781
    sums = [x[i] + x[7 - i] for i in range(4)]
    rests = [x[i] - x[7 - i] for i in range(4)]  # tmp7, tmp6, tmp5, tmp4
    outer, inner = sums[0] + sums[3], sums[1] + sums[2]  # tmp10, tmp11
    turned = sums[0] - sums[3]  # tmp13
    z1 = (sums[1] - sums[2] + turned) * root
    even = [outer + inner, turned + z1, outer - inner, turned - z1]  # 0, 2, 4, 6
    tmp10, tmp11, tmp12 = rests[3] + rests[2], rests[2] + rests[1], rests[1] + rests[0]
    z5 = (tmp10 - tmp12) * 0.382683433
    z2, z4, z3 = tmp10 * 0.541196100 + z5, tmp12 * 1.306562965 + z5, tmp11 * root
    z11, z13 = rests[0] + z3, rests[0] - z3
    odd = [z11 + z4, z13 - z2, z13 + z2, z11 - z4]  # 1, 3, 5, 7
    return [value for pair in zip(even, odd, strict=True) for value in pair]


def forward_factors() -> np.ndarray:
    """float64 (8,): what the orthonormal transform is times _forward_8's, one axis."""
    places = np.arange(8)
    scales = np.where(places == 0, 1, np.sqrt(2) * np.cos(places * np.pi / 16))
    factors: np.ndarray = 1 / (scales * np.sqrt(8))
    return factors


def quantization_factors(table: np.ndarray) -> np.ndarray:
    """float32 (64,), of row 8 u + v: quantised coefficients are _forward_8's of both axes times it.

    Args:
        table: quantisation table (8, 8), [v, u].
    """
    one = forward_factors()
    factors: np.ndarray = one[:, None] * one[None, :] / table.T
    return factors.reshape(64).astype(np.float32)


@vector_kernel
def forward_along_y(samples: Scalar, out: Scalar) -> None:
    """Bytes -> float32, transformed along y. Rows of BLOCKS: in of y, out of v; both of one x."""
    rows = [load(samples + y * BLOCKS, I8, BLOCKS) ^ -128 for y in range(8)]
    for v, value in enumerate(_forward_8([row.widen(I32).to_float() for row in rows])):
        store(out + 4 * BLOCKS * v, value)


@vector_kernel
def forward_along_x(values: Scalar, factors: Scalar, out: Scalar) -> None:
    """The transform along x, quantised: int16 rows 8 u + v of one v, of float32 rows 8 x + v."""
    rows = [load(values + 8 * x * 4 * BLOCKS, F32, BLOCKS) for x in range(8)]
    for u, value in enumerate(_forward_8(rows)):
        factor = broadcast_float(factors + 32 * u, BLOCKS)
        store(out + 8 * u * ROW, (value * factor).round(I16))


@kernel
def forward_group(
    plane: np.ndarray, group_row: int, group_column: int, factors: int, spare: int, out: int
) -> None:
    """Quantised coefficients of a group. Blocks outside the plane keep their mean alone.

    Args:
        plane: uint8 (height, width).
        factors: address of quantization_factors.
        spare: address of FORWARD_BYTES.
        out: address of int16 (64, BLOCKS), row 8 u + v, is filled.
    """
    rows, samples = spare, spare + 64 * BLOCKS
    values = samples + 64 * BLOCKS
    gather_group(plane, group_row, group_column, rows)
    for y in range(8):
        sort_samples(rows + 64 * y, samples + BLOCKS * y)
    for x in range(8):
        forward_along_y(samples + 8 * x * BLOCKS, values + 8 * x * 4 * BLOCKS)
    for v in range(8):
        forward_along_x(values + 4 * BLOCKS * v, factors + 4 * v, out + ROW * v)
    down = (plane.shape[0] + 7) // 8 - group_row * BLOCK_ROWS
    across = (plane.shape[1] + 7) // 8 - group_column * BLOCK_COLUMNS
    if down < BLOCK_ROWS or across < BLOCK_COLUMNS:
        for lane in range(BLOCKS):
            if lane // BLOCK_ROWS >= across or lane % BLOCK_ROWS >= down:
                for frequency in range(1, 64):
                    store_i16(out + ROW * frequency + 2 * lane, 0)


# Back ------------------------------------------------------------------------------------


def inverse_factors(size: int) -> np.ndarray:
    """float64 (size,): what the inverse of a size leaves to the dequantisation, one axis."""
    factors: np.ndarray
    if size == 8:  # AAN's, and 1 / 8 over both axes
        return 1 / (8 * forward_factors())
    # The orthonormal transform's factors, size / 8 over both axes, and a cosine of pi / 4 of size 4
    # and 2, which the inverse leaves out.
    factors = np.full(size, np.sqrt(2 / size))
    factors[0] = np.sqrt(1 / size)
    if size > 1:
        factors[size // 2] *= np.sqrt(1 / 2)
    factors *= np.sqrt(size / 8)
    return factors


def dequantization_table(table: np.ndarray, size: int) -> np.ndarray:
    """int32 (64, 2): coefficient c of row 8 u + v becomes (c * first) times_q15 second.

    Both are 16-bit numbers that stand twice in 32 bits; see taps.py.

    Args:
        table: quantisation table (8, 8), [v, u].
        size: of the inverse, 8, 4, 2 or 1; rows of other frequencies are zero.
    """
    factors = inverse_factors(size)
    result = np.zeros((8, 8, 2), np.int32)
    for u in range(size):
        for v in range(size):
            factor = table[v, u] * factors[u] * factors[v] * 2**FRACTION
            # As much as possible in the second, which has 15 bits; the first is a power of two.
            shift = 0
            while round(factor * 2.0 ** (15 - shift)) > 32_767:
                shift += 1
            result[u, v] = 1 << shift, round(factor * 2.0 ** (15 - shift))
    twice: np.ndarray = (result << 16 | result).reshape(64, 2)
    return twice


def _times(x: Vector, factor: float) -> Vector:
    """x times a factor from -2 to 2."""
    whole = int(factor)
    part = x.times_q15(round((factor - whole) * 2**15))
    return part.add_saturated(x) if whole else part


def _inverse_8(x: list[Vector]) -> list[Vector]:
    """libjpeg's jidctfst.c; the comments are its names."""
    sum04, difference04 = x[0].add_saturated(x[4]), x[0].sub_saturated(x[4])  # tmp10, tmp11
    sum26 = x[2].add_saturated(x[6])  # tmp13
    rest26 = _times(x[2].sub_saturated(x[6]), 1.414213562).sub_saturated(sum26)  # tmp12
    even = [
        sum04.add_saturated(sum26),
        difference04.add_saturated(rest26),
        difference04.sub_saturated(rest26),
        sum04.sub_saturated(sum26),
    ]  # tmp0 to tmp3
    z13, z10 = x[5].add_saturated(x[3]), x[5].sub_saturated(x[3])
    z11, z12 = x[1].add_saturated(x[7]), x[1].sub_saturated(x[7])
    odd7 = z11.add_saturated(z13)
    turned = _times(z11.sub_saturated(z13), 1.414213562)  # tmp11
    # 1.082392200 and -2.613125930 of the source, each with z5 = (z10 + z12) * 1.847759065 in it
    high = _times(z12, 1.847759065).sub_saturated(_times(z10, 0.765366865))  # tmp12
    low = _times(z12, 0.765366865).add_saturated(_times(z10, 1.847759065))  # -tmp10
    odd6 = high.sub_saturated(odd7)
    odd5 = turned.sub_saturated(odd6)
    odd4 = odd5.sub_saturated(low)
    odd = [odd7, odd6, odd5]
    first = [e.add_saturated(o) for e, o in zip(even, odd, strict=False)]
    last = [e.sub_saturated(o) for e, o in zip(even, odd, strict=False)]
    middle = [even[3].sub_saturated(odd4), even[3].add_saturated(odd4)]
    return [*first, *middle, *reversed(last)]


def _inverse_4(x: list[Vector]) -> list[Vector]:
    cos1, cos3 = float(np.cos(np.pi / 8)), float(np.cos(3 * np.pi / 8))
    total, difference = x[0].add_saturated(x[2]), x[0].sub_saturated(x[2])
    outer = _times(x[1], cos1).add_saturated(_times(x[3], cos3))
    inner = _times(x[1], cos3).sub_saturated(_times(x[3], cos1))
    return [
        total.add_saturated(outer),
        difference.add_saturated(inner),
        difference.sub_saturated(inner),
        total.sub_saturated(outer),
    ]


def _inverse_2(x: list[Vector]) -> list[Vector]:
    return [x[0].add_saturated(x[1]), x[0].sub_saturated(x[1])]


INVERSE: dict[int, Callable[[list[Vector]], list[Vector]]] = {
    8: _inverse_8,
    4: _inverse_4,
    2: _inverse_2,
    1: lambda x: x,
}


def load_pair(address: Scalar) -> Vector:
    """A number that stands twice in 32 bits, in all lanes."""
    return broadcast(load_integer(address, I32), I32, BLOCKS // 2).as_lanes(I16)


def _inverse_along_u(size: int) -> Any:
    def body(coefficients: Scalar, table: Scalar, bias: Scalar, out: Scalar) -> None:
        """Dequantises one vertical frequency of a group and transforms it along x.

        `coefficients`, `out`: of row v; those of u lie 8 u rows on. `bias` is added to u = 0.
        """
        values = []
        for u in range(size):
            x = load(coefficients + 8 * u * ROW, I16, BLOCKS)
            power, factor = load_pair(table + 64 * u), load_pair(table + 64 * u + 4)
            values.append((x * power).times_q15(factor))
        values[0] = values[0].add_saturated(broadcast(bias, I16, BLOCKS))
        for place, value in enumerate(INVERSE[size](values)):
            store(out + 8 * place * ROW, value)

    body.__name__ = f"inverse_{size}_along_u"
    return vector_kernel(body)


def _inverse_along_v(size: int) -> Any:
    def body(rows: Scalar, out: Scalar, stride: Scalar) -> None:
        """Transforms one pixel column of each block along y; writes BLOCK_COLUMNS columns of bytes.

        ORDER OF LINES: sample y of the block in row `by` becomes line 4 y + by of its group.
        """
        inverse = INVERSE[size]([load(rows + v * ROW, I16, BLOCKS) for v in range(size)])
        lines = [(y >> FRACTION).narrow_saturated() ^ -128 for y in inverse]
        quads = [line.as_lanes(I32) for line in lines]  # lane bx: rows 0 to 3 of block column bx
        if size == 8:
            columns = transpose(quads)
        elif size == 4:
            pairs = [quads[0].shuffle(range(16), quads[1]), quads[2].shuffle(range(16), quads[3])]
            columns = [
                pairs[0].shuffle([bx, bx + 8, bx + 16, bx + 24], pairs[1]) for bx in range(8)
            ]
        elif size == 2:
            columns = [quads[0].shuffle([bx, bx + 8], quads[1]) for bx in range(8)]
        else:
            columns = [quads[0].shuffle([bx]) for bx in range(8)]
        for bx, column in enumerate(columns):
            store(out + stride * (size * bx), column)

    body.__name__ = f"inverse_{size}_along_v"
    return vector_kernel(body)


inverse_8_along_u, inverse_8_along_v = _inverse_along_u(8), _inverse_along_v(8)
inverse_4_along_u, inverse_4_along_v = _inverse_along_u(4), _inverse_along_v(4)
inverse_2_along_u, inverse_2_along_v = _inverse_along_u(2), _inverse_along_v(2)
inverse_1_along_u, inverse_1_along_v = _inverse_along_u(1), _inverse_along_v(1)


@kernel
def inverse_group(
    size: int, coefficients: int, mean: int, table: int, between: int, out: int, stride: int
) -> None:
    """Samples of a group at size / 8 of the resolution.

    Args:
        size: 8, 4, 2 or 1.
        coefficients: address of int16 (64, BLOCKS).
        mean: is added to frequency (0, 0): dequantised, with FRACTION bits of fraction.
        table: address of dequantization_table's.
        between: address of GROUP_BYTES.
        out: address of the first sample; the next column's is `stride` bytes on. See
            _inverse_along_v for the order of lines.
    """
    bias = mean + (1 << (FRACTION - 1))  # rounds
    for v in range(size):
        row, factors, place = coefficients + v * ROW, table + 8 * v, between + v * ROW
        if size == 8:
            inverse_8_along_u(row, factors, bias, place)
        elif size == 4:
            inverse_4_along_u(row, factors, bias, place)
        elif size == 2:
            inverse_2_along_u(row, factors, bias, place)
        else:
            inverse_1_along_u(row, factors, bias, place)
        bias = 0
    for u in range(size):
        row, place = between + 8 * u * ROW, out + u * stride
        if size == 8:
            inverse_8_along_v(row, place, stride)
        elif size == 4:
            inverse_4_along_v(row, place, stride)
        elif size == 2:
            inverse_2_along_v(row, place, stride)
        else:
            inverse_1_along_v(row, place, stride)
