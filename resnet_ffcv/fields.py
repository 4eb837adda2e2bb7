"""FFCV fields of images in the forms dct and yuv420; docs/format.md has their layout.

A stock `ffcv.loader.Loader` opens them with `custom_fields={"image": DCTImageField}` and one of
resnet_ffcv.decoders.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from resnet_ffcv.beton import MAX_SIDE
from resnet_ffcv.encode import fit
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.kernels import dct, yuv420
from resnet_ffcv.kernels.colour import GRAY, HALF, is_gray
from resnet_ffcv.kernels.quantization import quantization_tables
from resnet_ffcv.kernels.transform import (
    FRACTION,
    dequantization_table,
    quantization_factors,
)
from resnet_ffcv.loader import ARG_TYPE, Field

FORMAT_VERSION = 1
MAX_BYTES = 2**31 - 1  # of one encoded sample

# A sample's row. `table` names a quantisation table of the field; there is one, number 0.
ROW = np.dtype(
    [("height", "<u2"), ("width", "<u2"), ("colour", "u1"), ("table", "u1"), ("data_ptr", "<u8")]
)
# What a field's arguments hold; the rest of their 1,024 bytes is 0.
ARGUMENTS = np.dtype(
    [("form", "S8"), ("version", "<u2"), ("quality", "u1"), ("max_resolution", "<u4")]
)


class _PlanarField(Field):  # type: ignore[misc]  # ffcv has no types
    """What both forms share. `max_resolution`: pixels of the longer side, or None."""

    form: ClassVar[str]

    def __init__(self, quality: int, max_resolution: int | None) -> None:
        if not 1 <= quality <= 100:
            raise UsageError(f"quality={quality}: wanted is a whole number from 1 to 100")
        self.quality, self.max_resolution = quality, max_resolution

    @property
    def metadata_type(self) -> np.dtype:
        return ROW

    def to_binary(self) -> np.ndarray:
        """The field's arguments, as FFCV's writer takes them."""
        values = np.zeros(1, ARGUMENTS)
        values[0] = self.form.encode(), FORMAT_VERSION, self.quality, self.max_resolution or 0
        arguments = np.zeros(1, ARG_TYPE)
        arguments[0][0][: ARGUMENTS.itemsize] = values.view(np.uint8)
        written: np.ndarray = arguments[0]
        return written

    @classmethod
    def read_arguments(cls, binary: np.ndarray) -> np.void:
        """Arguments as to_binary wrote them.

        Raises:
            FailureError: they are another field's, or of a later version.
        """
        values = np.frombuffer(bytes(np.asarray(binary).view(np.uint8)), ARGUMENTS, 1)[0]
        if values["form"] != cls.form.encode():
            raise FailureError(f"the field is not {cls.form}, as {cls.__name__} wants it")
        if values["version"] != FORMAT_VERSION:
            raise FailureError(
                f"the {cls.form} form has version {values['version']}, this program knows "
                f"{FORMAT_VERSION}; take a later one"
            )
        found: np.void = values
        return found

    def get_decoder_class(self) -> type:
        from resnet_ffcv.decoders import ImageDecoder

        return ImageDecoder

    def encode(self, destination: np.ndarray, image: Any, malloc: Callable[[int], Any]) -> None:
        """Stores uint8 (height, width, 3) or a Pillow image; called by FFCV's DatasetWriter.

        Raises:
            ValueError: another kind of array, or an image that is too large.
        """
        data, colour, shape = self.encode_pixels(self._pixels(image))
        destination["height"], destination["width"] = shape
        destination["colour"], destination["table"] = colour, 0
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = data

    def _pixels(self, image: Any) -> np.ndarray:
        if not isinstance(image, Image.Image):
            array = np.asarray(image)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ValueError(f"not uint8 (height, width, 3): {array.dtype} {array.shape}")
            if self.max_resolution is None or max(array.shape[:2]) <= self.max_resolution:
                return np.ascontiguousarray(array)
            image = Image.fromarray(array)
        size = fit(image.width, image.height, self.max_resolution)
        image = image.convert("RGB")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BOX)
        return np.asarray(image)

    def encode_pixels(self, rgb: np.ndarray) -> tuple[np.ndarray, int, tuple[int, int]]:
        """(uint8 data, colour, (height, width)) of uint8 (height, width, 3)."""
        height, width = rgb.shape[:2]
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"{width} x {height} pixels: a side has 1 to {MAX_SIDE:,}")
        colour = GRAY if is_gray(rgb) else HALF
        data = self._encode(rgb, colour)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it takes {len(data):,} bytes, more than {MAX_BYTES:,}")
        return data, colour, (height, width)

    def _encode(self, rgb: np.ndarray, colour: int) -> np.ndarray:
        raise NotImplementedError


class DCTImageField(_PlanarField):
    """Images as quantised DCT coefficients: 1.2 times a JPEG's bytes, at a tenth of its cost.

    Args:
        quality: 1 to 100, as a JPEG's.
        max_resolution: pixels of the longer side, shrunk to where it is longer; None: as it is.
    """

    form = "dct"

    def __init__(self, quality: int = 90, max_resolution: int | None = None) -> None:
        super().__init__(quality, max_resolution)
        tables = quantization_tables(quality)
        self.factors = np.stack([quantization_factors(table) for table in tables])
        # For the decoder: by number of the table, block size, luma and colour.
        self.tables = np.stack(
            [[[dequantization_table(table, size) for table in tables] for size in (8, 4, 2, 1)]]
        )
        self.means = np.array([[int(table[0, 0]) << (FRACTION - 3) for table in tables]])

    @staticmethod
    def from_binary(binary: np.ndarray) -> "DCTImageField":
        values = DCTImageField.read_arguments(binary)
        return DCTImageField(int(values["quality"]), int(values["max_resolution"]) or None)

    def _encode(self, rgb: np.ndarray, colour: int) -> np.ndarray:
        height, width = rgb.shape[:2]
        out = np.empty(dct.most_dct_bytes(height, width, colour), np.uint8)
        return out[: dct.encode_dct(rgb, colour, self.factors, out)]


class YUV420ImageField(_PlanarField):
    """Images as luma and half-resolution colour: 4 times a JPEG's bytes, near to raw pixels.

    Args:
        max_resolution: pixels of the longer side, shrunk to where it is longer; None: as it is.
    """

    form = "yuv420"

    def __init__(self, max_resolution: int | None = None) -> None:
        super().__init__(100, max_resolution)

    @staticmethod
    def from_binary(binary: np.ndarray) -> "YUV420ImageField":
        values = YUV420ImageField.read_arguments(binary)
        return YUV420ImageField(int(values["max_resolution"]) or None)

    def _encode(self, rgb: np.ndarray, colour: int) -> np.ndarray:
        height, width = rgb.shape[:2]
        out = np.empty(yuv420.yuv420_bytes(height, width, colour), np.uint8)
        yuv420.encode_yuv420(rgb, colour, out)
        return out
