"""Decoding of JPEGs by libturbojpeg: to planes, which our resampler takes, or else to RGB.

Planes spare the colour conversion and the upsampling of all that the window leaves out. Where it is
twice as large as the output, libjpeg's scaled inverse DCT spares most of the rest.
"""

import ctypes
from typing import NamedTuple

import llvmlite.binding
import numpy as np
from numba import types

from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.compiling import inlined_kernel, kernel
from resnet_ffcv.kernels.geometry import Window, choose_eighths, make_axes, scaled, shrink_window
from resnet_ffcv.kernels.memory import load_byte
from resnet_ffcv.kernels.planes import Planes, count_planes_work, resample_planes
from resnet_ffcv.kernels.raw import count_rgb_work, resample_rgb
from resnet_ffcv.kernels.resample import ANY_LINE, LANES, Plane, align
from resnet_ffcv.kernels.taps import axis_words, make_half_axis

# turbojpeg.h of libjpeg-turbo 2.1: enums TJSAMP, TJCS, TJPF
FULL, HALF_ACROSS, HALF_BOTH, GRAY_SAMPLES, HALF_DOWN = 0, 1, 2, 3, 4
YCBCR, GRAY = 1, 2
RGB = 0
LIMIT_SCANS = 32_768  # TJFLAG_LIMITSCANS: libturbojpeg gives up at scan 501

# Each scan of a progressive JPEG costs a pass over all coefficients. Encoders write about 10; the
# finest division that is of any use, by bits and bands of each component, has fewer than 100.
MOST_SCANS = 100

SCAN, END = 0xDA, 0xD9  # markers, T.81, table B.1

_integer, _pointer = types.int32, types.int64
_SIGNATURES = {
    "tjInitDecompress": _pointer(),
    "tjDestroy": _integer(_pointer),
    "tjDecompressHeader3": _integer(*[_pointer] * 3, *[_pointer] * 4),
    "tjDecompressToYUVPlanes": _integer(
        _pointer, _pointer, _pointer, _pointer, _integer, _pointer, _integer, _integer
    ),
    "tjDecompress2": _integer(_pointer, _pointer, _pointer, _pointer, *[_integer] * 5),
}
_memchr = types.ExternalFunction("memchr", types.intp(types.intp, types.int32, types.uintp))
# By name and not by ctypes, whose pointers numba's cache refuses.
_library = ctypes.CDLL("libturbojpeg.so.0")
for _name in _SIGNATURES:
    _address = ctypes.cast(getattr(_library, _name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(_name, _address)

tj_init_decompress, tj_destroy, tj_decompress_header, tj_decompress_planes, tj_decompress = (
    types.ExternalFunction(name, signature) for name, signature in _SIGNATURES.items()
)


class Frame(NamedTuple):
    """What the headers of a JPEG say, up to its first scan (ITU-T T.81, B.2.2 and B.2.3)."""

    height: int
    width: int
    components: int
    by_scans: bool  # whether there may be several; libjpeg then keeps all coefficients
    scan: int  # offset of the first scan's header, or of where the headers stop making sense


@kernel
def read_frame(address: int, size: int) -> Frame:
    """The frame of a JPEG; all 0 if it has none. Reads no byte outside."""
    height = width = components = 0
    progressive = False
    place = 2
    while place + 10 <= size and load_byte(address + place) == 0xFF:
        marker = load_byte(address + place + 1)
        if marker == 0xFF:  # fills
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            numbers = address + place + 5
            height = 256 * load_byte(numbers) + load_byte(numbers + 1)
            width = 256 * load_byte(numbers + 2) + load_byte(numbers + 3)
            components = load_byte(numbers + 4)
            progressive = marker & 3 == 2
        elif marker == SCAN:
            by_scans = progressive or load_byte(address + place + 4) < components
            return Frame(height, width, components, by_scans, place)
        place += 2 + 256 * load_byte(address + place + 2) + load_byte(address + place + 3)
    # libjpeg skips what is no marker, so there may be scans behind this place.
    return Frame(height, width, components, True, place)


@kernel
def has_many_scans(address: int, size: int, frame: Frame) -> bool:
    """Whether a JPEG has more than MOST_SCANS scans; one without several is not looked through."""
    if not frame.by_scans:
        return False
    scans, place, end = 0, address + frame.scan, address + size - 1  # each marker has two bytes
    while place < end:
        place = _memchr(place, 0xFF, end - place)
        if place == 0:
            break
        marker = load_byte(place + 1)
        if marker == END:  # libjpeg stops here, too; a camera may append a film
            break
        scans += marker == SCAN
        if scans > MOST_SCANS:
            return True
        place += 1
    return False


@kernel
def decode_jpeg(
    address: int, size: int, height: int, width: int, window: Window, filter_: int, out: int,
    out_height: int, out_width: int, work: np.ndarray,
) -> int:  # fmt: skip
    """A window of a JPEG -> uint8 (out_height, out_width, 3); returns a status.

    Args:
        address, size: of its bytes.
        height, width: from its row; the JPEG must have this size.
        window: inside the image.
        filter_: of taps.FILTERS.
        out: address of the result.
        work: int32; count_jpeg_work bytes beside the axes.
    """
    # A decompressor for each image: one that is used again would decode a JPEG that lacks its
    # tables by those of the image before.
    handle = tj_init_decompress()
    if handle == 0:
        return status.BAD_JPEG
    facts = np.zeros(4, np.int32)  # width, height, sampling, colour space
    place = facts.ctypes.data
    failed = tj_decompress_header(handle, address, size, place, place + 4, place + 8, place + 12)
    found = status.WHOLE
    if facts[0] == 0:
        found = status.BAD_JPEG
    elif facts[0] != width or facts[1] != height:
        found = status.OTHER_JPEG_SIZE
    else:
        eighths = choose_eighths(window, out_height, out_width)
        small = shrink_window(window, eighths)
        shape = scaled(height, eighths), scaled(width, eighths)
        sampling = facts[2]
        by_planes = failed == 0 and 0 <= sampling <= HALF_DOWN and facts[3] in (YCBCR, GRAY)
        if shape[1] <= 4 and sampling in (HALF_ACROSS, HALF_BOTH):
            by_planes = False  # libjpeg repeats two columns of colour instead of interpolating
        size_out = out_height, out_width
        if by_planes:
            found = decode_planes(
                handle, address, size, shape, sampling, small, filter_, out, size_out, work
            )
        else:
            found = decode_rgb(handle, address, size, shape, small, filter_, out, size_out, work)
    tj_destroy(handle)
    return found


@inlined_kernel
def decode_planes(
    handle: int, address: int, size: int, shape: tuple[int, int], sampling: int, window: Window,
    filter_: int, out: int, out_shape: tuple[int, int], work: np.ndarray,
) -> int:  # fmt: skip
    """decode_jpeg of YCbCr or gray; `shape` and `window` are of the resolution to decode at."""
    height, width = shape
    half_across = sampling in (HALF_ACROSS, HALF_BOTH)
    half_down = sampling in (HALF_DOWN, HALF_BOTH)
    colour_height = (height + 1) // 2 if half_down else height
    colour_width = (width + 1) // 2 if half_across else width
    axes = make_axes(window, height, width, filter_, out_shape[0], out_shape[1], work)
    used, colour_x, colour_y = axes.words, axes.x, axes.y
    if half_across:
        colour_x = make_half_axis(axes.x, colour_width, work[used:])
        used += axis_words(out_shape[1], colour_x.taps)
    if half_down:
        colour_y = make_half_axis(axes.y, colour_height, work[used:])
        used += axis_words(out_shape[0], colour_y.taps)

    planes, strides = np.zeros(3, np.int64), np.zeros(3, np.int32)
    strides[0], strides[1:] = align(width), align(colour_width)
    planes[0] = align(work[used:].ctypes.data)
    # libturbojpeg makes luma's sides even where colour has half of them: one row more.
    planes[1] = planes[0] + strides[0] * (height + 1) + LANES
    planes[2] = planes[1] + strides[1] * colour_height + LANES
    # It reads the header again. Should another sampling stand there by now, planes overlap, and
    # the last one ends below planes[2] + strides[2] * (height + 1) + width: count_jpeg_work holds.
    end = planes[2] + strides[2] * colour_height + LANES
    if tj_decompress_planes(
        handle, address, size, planes.ctypes.data, width, strides.ctypes.data, height, LIMIT_SCANS
    ):
        return status.BAD_JPEG
    luma_step, colour_step = int(np.int64(strides[0])), int(np.int64(strides[1]))
    lines = axes.x.end - axes.x.begin
    y = Plane(planes[0], luma_step, axes.x.begin, lines, ANY_LINE, 1)
    lines = 0 if sampling == GRAY_SAMPLES else colour_x.end - colour_x.begin
    cb = Plane(planes[1], colour_step, colour_x.begin, lines, ANY_LINE, 1)
    cr = Plane(planes[2], colour_step, colour_x.begin, lines, ANY_LINE, 1)
    resample_planes(
        Planes(y, cb, cr), False, axes.y, colour_y, axes.x, colour_x, out, out_shape[0],
        out_shape[1], work[(end - work.ctypes.data + 3) // 4 :],
    )  # fmt: skip
    return status.WHOLE


@inlined_kernel
def decode_rgb(
    handle: int, address: int, size: int, shape: tuple[int, int], window: Window,
    filter_: int, out: int, out_shape: tuple[int, int], work: np.ndarray,
) -> int:  # fmt: skip
    """decode_jpeg of what has no planes that we know, such as RGB without a transform."""
    height, width = shape
    pixels = align(work.ctypes.data)
    if tj_decompress(handle, address, size, pixels, width, 3 * width, height, RGB, LIMIT_SCANS):
        return status.BAD_JPEG
    rest = work[(pixels - work.ctypes.data + 3 * height * width + 3) // 4 :]
    resample_rgb(pixels, height, width, window, filter_, out, out_shape[0], out_shape[1], rest)
    return status.WHOLE


@kernel
def count_jpeg_work(height: int, width: int, out_height: int, out_width: int) -> int:
    """Bytes that decode_jpeg takes beside its axes, at most.

    Args:
        height, width: of the image at the resolution that it is decoded at.
        out_height, out_width: of the result.
    """
    planes = 3 * (height + 1) * (width + 64) + 256
    planes += count_planes_work(width, width, out_height, out_width)
    pixels = 3 * height * width + 128 + count_rgb_work(height, width, out_height)
    return max(planes, pixels)
