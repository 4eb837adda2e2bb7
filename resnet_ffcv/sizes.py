"""How many bytes a sample's data must have, by its row and its field's arguments.

FFCV hands the arguments of arrays to `json`, `numpy.dtype` and the allocator as they are, and
copies whole regions into slots of the size that rows or arguments name; so both are checked before
FFCV sees them.
"""

import math
import re
from typing import Any

import msgspec
import numpy as np

from resnet_ffcv.errors import FailureError

Bounds = tuple[Any, Any]

ANY_SIZE = np.uint64(1), np.uint64(2**64 - 1)
NO_SIZE = np.uint64(1), np.uint64(0)  # none is right: the row makes no sense
YUV420_PADDING = 32  # bytes after the planes
DCT_GROUP = 5  # bytes of a group and of its size, at least

# The arguments of FFCV's NDArrayField and TorchTensorField: 32 uint64, the shape, with 0 after the
# last dimension; the length of the text that follows, uint64; what numpy's dtype.descr says of the
# dtype, as JSON.
SHAPE = np.dtype(("<u8", 32))
DESCRIPTION = SHAPE.itemsize + 8  # offset of the text
# Byte order, kind and bytes, as in <f4; for times also their unit. Other things that numpy.dtype
# takes (objects, lists of columns, Python expressions) are no dtypes of arrays that FFCV reads.
PLAIN_DTYPE = re.compile(r"[<>|=]([biufcSUV]\d{1,10}|[mM]8(\[\d{0,6}[a-zA-Z]{1,2}\])?)")


def rgb_bounds(rows: np.ndarray) -> Bounds:
    """(least, greatest) size of images in FFCV's own field, rows of beton.RGB_ROW.

    A raw image has three bytes a pixel; the size of a JPEG stands in the allocation table alone.
    """
    pixels = 3 * rows["height"].astype(np.uint64) * rows["width"]
    mode = rows["mode"]
    least, most = (np.where(mode == 0, of_jpeg, pixels) for of_jpeg in ANY_SIZE)
    return _unless((least, most), (pixels == 0) | (mode > 1))


def form_bounds(form: bytes, rows: np.ndarray) -> Bounds:
    """The same of images in a form of docs/format.md, rows of beton.FORM_ROW."""
    tall, wide = rows["height"].astype(np.uint64), rows["width"].astype(np.uint64)
    half_tall, half_wide = (tall + 1) // 2, (wide + 1) // 2
    colours = 2 * (rows["colour"] == 1).astype(np.uint64)  # planes
    match form.rstrip(b"\0"):
        case b"yuv420":
            exact = tall * wide + colours * half_tall * half_wide + YUV420_PADDING
            sizes = exact, exact
        case b"dct":
            groups = _groups(tall, wide) + colours * _groups(half_tall, half_wide)
            sizes = DCT_GROUP * groups, ANY_SIZE[1]
        case _:  # of a class that is not known here
            return ANY_SIZE
    return _unless(sizes, (tall * wide == 0) | (rows["colour"] > 1) | (rows["table"] != 0))


def _groups(tall: np.ndarray, wide: np.ndarray) -> np.ndarray:
    return np.asarray((tall + 31) // 32 * ((wide + 63) // 64))


def _unless(bounds: Bounds, nonsense: np.ndarray) -> Bounds:
    """`bounds`, but no size at all where a row makes no sense."""
    if not nonsense.any():
        return bounds
    least, most = (np.where(nonsense, no, size) for no, size in zip(NO_SIZE, bounds, strict=True))
    return least, most


def read_array(arguments: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """(dtype, shape) of a sample's array, from its field's 1,024 bytes of arguments.

    Raises:
        FailureError: they describe no array that FFCV could have written.
    """
    shape = np.frombuffer(arguments, "<u8", 32).tolist()
    while shape and shape[-1] == 0:
        shape.pop()
    dtype = _read_dtype(arguments)
    if 0 in shape or not shape or dtype.itemsize == 0:
        raise FailureError(f"its arrays are empty, of shape {tuple(shape)} and dtype {dtype}")
    if dtype.itemsize * math.prod(shape) >= 2**63:
        raise FailureError(f"its arrays have 2^63 bytes or more, of shape {tuple(shape)}")
    return dtype, tuple(shape)


def _read_dtype(arguments: bytes) -> np.dtype:
    length = int.from_bytes(arguments[SHAPE.itemsize : DESCRIPTION], "little")
    if not 0 < length <= len(arguments) - DESCRIPTION:
        raise FailureError(
            f"the text of its arrays' dtype must have 1 to {len(arguments) - DESCRIPTION} bytes, "
            f"got {length:,}"
        )
    text = arguments[DESCRIPTION : DESCRIPTION + length]
    try:
        columns = msgspec.json.decode(text, type=list[tuple[str, str]])
        if len(columns) == 1 and columns[0][0] == "" and PLAIN_DTYPE.fullmatch(columns[0][1]):
            return np.dtype(columns[0][1])
    except (ValueError, TypeError, RecursionError):
        pass  # no JSON, or a type that numpy does not have, such as i3
    raise FailureError(f"the dtype of its arrays is {text[:60]!r}; it must be one such as <f4")
