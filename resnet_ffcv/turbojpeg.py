"""JPEG -> pixels by libturbojpeg, the library that FFCV decodes with; it tells of damage.

Pillow uses the same decoder but hides its warnings, so a JPEG broken in its middle looks whole.
"""

import ctypes
from functools import lru_cache

import numpy as np

# turbojpeg.h of libjpeg-turbo 2.1: enum TJPF by Pillow's mode, TJFLAG_ACCURATEDCT,
# TJFLAG_LIMITSCANS (an error after 500 scans), TJERR_FATAL
PIXEL_FORMATS = {"RGB": 0, "L": 6, "CMYK": 11}
CHANNELS = {"RGB": 3, "L": 1, "CMYK": 4}
ACCURATE_DCT = 4096
LIMIT_SCANS = 32_768
FATAL = 1


class DamagedError(ValueError):
    """libjpeg warned; `pixels` is what it made of the image nevertheless."""

    def __init__(self, message: str, pixels: np.ndarray) -> None:
        super().__init__(message)
        self.pixels = pixels


def decode(content: bytes, width: int, height: int, mode: str) -> np.ndarray:
    """uint8 (height, width, channels) of a JPEG: the pixels that Pillow has for it.

    Args:
        content: the JPEG.
        width, height: its size in pixels.
        mode: RGB, L or CMYK, as Pillow names what the JPEG holds.

    Raises:
        DamagedError: data is missing or makes no sense; the rest was decoded.
        ValueError: it cannot be decoded at all.
    """
    library = _open_library()
    channels = CHANNELS[mode]
    pixels = np.zeros((height, width, channels), np.uint8)
    # One for each image: it would decode a JPEG that lacks its tables by those of the one before.
    handle = library.tjInitDecompress()
    try:
        failed = library.tjDecompress2(
            handle,
            content,
            len(content),
            pixels.ctypes.data,
            width,
            width * channels,
            height,
            PIXEL_FORMATS[mode],
            ACCURATE_DCT | LIMIT_SCANS,
        )
        message = library.tjGetErrorStr2(handle).decode("ascii", "replace")
        fatal = library.tjGetErrorCode(handle) == FATAL
    finally:
        library.tjDestroy(handle)
    if mode == "CMYK":
        pixels = 255 - pixels  # Adobe stores ink inverted; as Pillow, JpegImagePlugin.py, CMYK;I
    if failed and fatal:
        raise ValueError(f"libjpeg cannot decode it: {message}")
    if failed:
        words = message.removeprefix("Corrupt JPEG data: ")
        raise DamagedError(f"a damaged JPEG, says libjpeg: {words}", pixels)
    return pixels


@lru_cache(maxsize=1)
def _open_library() -> ctypes.CDLL:
    library = ctypes.CDLL("libturbojpeg.so.0")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.tjInitDecompress.restype = pointer
    library.tjDecompress2.argtypes = [
        pointer,
        ctypes.c_char_p,
        ctypes.c_ulong,
        pointer,
        *[number] * 5,
    ]
    library.tjGetErrorStr2.argtypes = [pointer]
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    library.tjGetErrorCode.argtypes = [pointer]
    library.tjDestroy.argtypes = [pointer]
    return library
