"""FFCV fields of images in the forms dct and yuv420; docs/format.md has their layout.

A stock `ffcv.loader.Loader` opens them with `custom_fields={"image": DCTImageField}` and one of
resnet_ffcv.decoders.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from resnet_ffcv.beton import FORM_ROW, MAX_SIDE, read_arguments, write_arguments
from resnet_ffcv.encode import encode_form, shrink
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.stock import ARG_TYPE, Field


class _PlanarField(Field):  # type: ignore[misc]  # ffcv has no types
    """What both forms share. `max_resolution`: pixels of the longer side, or None."""

    form: ClassVar[str]

    def __init__(self, quality: int, max_resolution: int | None) -> None:
        if quality != int(quality) or not 1 <= quality <= 100:
            raise UsageError(f"quality={quality}: wanted is a whole number from 1 to 100")
        if max_resolution is not None and not 1 <= max_resolution <= MAX_SIDE:
            raise UsageError(f"max_resolution={max_resolution}: wanted is None or 1 to {MAX_SIDE}")
        self.quality, self.max_resolution = quality, max_resolution

    @property
    def metadata_type(self) -> np.dtype:
        return FORM_ROW

    def to_binary(self) -> np.ndarray:
        """The field's arguments, as FFCV's writer takes them."""
        arguments = write_arguments(self.form, self.quality, self.max_resolution)
        written: np.ndarray = np.frombuffer(arguments, ARG_TYPE)[0]
        return written

    @classmethod
    def read_arguments(cls, binary: np.ndarray) -> np.void:
        """Arguments as to_binary wrote them.

        Raises:
            FailureError: they are another field's, or of a later version.
        """
        arguments = bytes(np.asarray(binary).view(np.uint8))
        if not any(arguments):  # as FFCV writes its own image field's
            raise FailureError(
                f"the field is not of {cls.__name__}; one of FFCV's own needs no custom_fields"
            )
        values = read_arguments(arguments)
        if values["form"] != cls.form.encode():
            form = bytes(values["form"]).decode()
            raise FailureError(
                f"the field holds {form} images: take {FIELDS[form].__name__}, not {cls.__name__}"
            )
        return values

    def get_decoder_class(self) -> type:
        from resnet_ffcv.decoders import ImageDecoder

        return ImageDecoder

    def encode(self, destination: np.ndarray, image: Any, malloc: Callable[[int], Any]) -> None:
        """Stores uint8 (height, width, 3) or a Pillow image; called by FFCV's DatasetWriter.

        Raises:
            ValueError: another kind of array, or an image that is too large.
        """
        rgb = self._pixels(image)
        data, colour = encode_form(self.form, rgb, self.quality)
        destination["height"], destination["width"] = rgb.shape[:2]
        destination["colour"], destination["table"] = colour, 0
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = data

    def _pixels(self, image: Any) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"not uint8 (height, width, 3): {pixels.dtype} {pixels.shape}")
        return np.ascontiguousarray(shrink(pixels, self.max_resolution))


class DCTImageField(_PlanarField):
    """Images as quantised DCT coefficients: 1.2 times a JPEG's bytes, at a tenth of its cost.

    Args:
        quality: 1 to 100, as a JPEG's.
        max_resolution: pixels of the longer side, shrunk to where it is longer; None: as it is.
    """

    form = "dct"

    def __init__(self, quality: int = 90, max_resolution: int | None = None) -> None:
        super().__init__(quality, max_resolution)

    @staticmethod
    def from_binary(binary: np.ndarray) -> "DCTImageField":
        values = DCTImageField.read_arguments(binary)
        return DCTImageField(int(values["quality"]), int(values["max_resolution"]) or None)


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


FIELDS = {"dct": DCTImageField, "yuv420": YUV420ImageField}
