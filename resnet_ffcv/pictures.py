"""Opening image files, which may be broken or made to do harm: which formats, how much of what.

Every image file that this package reads goes through `read_picture_file` and `open_picture`.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from resnet_ffcv.opening import read_file

MAX_FILE_BYTES = 1 << 30
# Of a JPEG. Each scan goes over all of its coefficients again, so that a small file of many scans
# takes minutes; encoders make about ten.
MAX_SCANS = 100

# Pillow's decoders of pixels. Left out are those that start a program (EPS, WMF), open what is
# inside by any decoder (BLP, IPTC), unpack without a limit (FITS), or only know a format's name
# (BUFR, GRIB, HDF5, MPEG). The common ones come first, as in Pillow, which asks them in this order.
FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "CUR", "DCX", "DDS", "DIB", "FLI",
    "FTEX", "GBR", "ICNS", "ICO", "IM", "JPEG2000", "MSP", "PCD", "PCX", "PIXAR", "PSD", "QOI",
    "SGI", "SUN", "TGA", "XBM", "XPM",
)  # fmt: skip

# An escaped FF, TEM, RST0 to RST7, SOI, a fill byte.
WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}
SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # without DHT, JPG and DAC
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
SOS, EOI = 0xDA, 0xD9


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """FORMATS, without those that an older Pillow does not have."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1)
def readable_extensions() -> frozenset[str]:
    """The endings of files in these formats, in lower case, such as `.jpg`."""
    formats = readable_formats()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in formats)


def read_picture_file(path: Path) -> bytes:
    """The content of an image file, of at most MAX_FILE_BYTES.

    Raises:
        UnsuitableFileError: no regular file, or a larger one.
        OSError: as `open` and `read`.
    """
    return read_file(path, MAX_FILE_BYTES)


@contextmanager
def open_picture(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image, opened but not decoded. The limit holds inside the block, too, for images within.

    Args:
        content: of a file in one of FORMATS.
        max_pixels: width times height.

    Raises:
        ValueError: another format, too many pixels, or a JPEG of too many scans; here or when it
            is decoded in the block.
        OSError, and whatever else Pillow's decoders raise.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                if image.format in ("JPEG", "MPO") and has_too_many_scans(content):
                    raise ValueError(f"it is a JPEG of more than {MAX_SCANS} scans")
                yield image
        except UnidentifiedImageError as error:  # its text names an object in memory
            reason = "not in a supported image format" if content else "it is empty"
            raise ValueError(reason) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"it has more than image.max_pixels={max_pixels:,} pixels") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def has_too_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS scans, of those that libjpeg decodes.

    ITU-T T.81, B.1.1: a marker is FF and a byte other than 00 and FF. As libjpeg does, this skips
    what lies between markers, and takes a single scan from a sequential JPEG whose first scan has
    all of its components.
    """
    place, scans, components, sequential = 0, 0, b"", True
    while (place := content.find(b"\xff", place) + 1) and place < len(content):
        marker = content[place]
        if marker in WITHOUT_LENGTH:
            continue
        if marker == EOI:
            break
        segment = place + 1  # its length, then what it holds
        if marker in SOF:
            components, sequential = content[segment + 7 : segment + 8], marker not in PROGRESSIVE
        elif marker == SOS:
            scans += 1
            if scans > MAX_SCANS:
                return True
            if sequential and content[segment + 2 : segment + 3] == components:
                break
        place = segment + int.from_bytes(content[segment : segment + 2], "big")
    return False
