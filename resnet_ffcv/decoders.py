"""FFCV Operations that decode a window of each image to one size.

They work in a stock `ffcv.loader.Loader`, first in a pipeline, for fields of resnet_ffcv.fields and
for FFCV's own image field, jpg and raw. There random windows come from an unseeded generator,
as FFCV's do, and a damaged sample is black.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import objmode
from numba.core.errors import NumbaWarning

from resnet_ffcv import arguments
from resnet_ffcv.arguments import Colour
from resnet_ffcv.beton import MAX_MEMORY, MAX_PIXELS, RAW
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.fields import DCTImageField, YUV420ImageField
from resnet_ffcv.kernels import batches, regions, windows
from resnet_ffcv.kernels.dct import make_tables
from resnet_ffcv.kernels.status import MEANING
from resnet_ffcv.kernels.taps import FILTERS
from resnet_ffcv.stock import AllocationQuery, Compiler, SimpleRGBImageDecoder

LIMITS = batches.Limits(MAX_PIXELS, MAX_MEMORY)

# Our stage runs in Python, where it calls compiled code on threads of its own.
warnings.filterwarnings("ignore", "Code running in object mode", NumbaWarning)

Size = tuple[int, int]


class Rows(NamedTuple):
    """What n samples' rows say: int32 (n, 4) as kernels.batches takes them; int64 (n,) pointers."""

    numbers: np.ndarray
    pointers: np.ndarray


def read_rows(field: Any, metadata: np.ndarray, indices: np.ndarray) -> Rows:
    """Rows of the metadata of an image field, ours or FFCV's.

    Raises:
        IndexError: there is no such row.
    """
    ours = isinstance(field, DCTImageField | YUV420ImageField)
    names = ("height", "width", "colour", "table") if ours else ("height", "width", "mode")
    fields: Any = metadata.dtype.fields
    offsets = np.full(5, -1)
    for place, name in (*enumerate(names), (4, "data_ptr")):
        offsets[place] = fields[name][1]
    rows = Rows(np.empty((len(indices), 4), np.int32), np.empty(len(indices), np.int64))
    found = regions.read_rows(
        metadata.ctypes.data, metadata.strides[0], len(metadata), offsets,
        np.asarray(indices).astype(np.int64), *rows,
    )  # fmt: skip
    if not found:
        raise IndexError(f"a sample is asked for that is none of the {len(metadata):,} there are")
    return rows


def locate(pointers: np.ndarray, storage_state: tuple[Any, ...]) -> np.ndarray:
    """int64 (n, 2), address and bytes of samples' data, in what FFCV's memory managers hold.

    Args:
        pointers: int64 (n,), offsets in the file.
        storage_state: of OSCacheManager (file, starts, sizes), or of ProcessCacheManager (pages,
            starts, sizes, slot of each page).
    """
    found = np.empty((len(pointers), 2), np.int64)
    memory, starts, sizes = storage_state[:3]
    if memory.ndim == 1:
        regions.locate_in_file(pointers, starts, sizes, memory.ctypes.data, len(memory), found)
    else:
        regions.locate_in_pages(pointers, starts, sizes, memory, storage_state[3], found)
    return found


def decode_batch(
    field: Any, rows: Rows, storage_state: tuple[Any, ...], wanted: np.ndarray, out: np.ndarray,
    *, filter_: str = "area", fill: Colour | None = None, limits: batches.Limits = LIMITS,
    threads: int = 1,
) -> np.ndarray:  # fmt: skip
    """Decodes windows of n samples.

    Args:
        field: of the images: its class says their form.
        rows: of the samples.
        storage_state: where the file is; see locate.
        wanted: windows, float64 (n, 6), see kernels.geometry.read_window; or (n, views, 6).
        out: uint8 (n, height, width, 3) or (n, views, height, width, 3), contiguous, is filled;
            black where a sample is damaged.
        filter_: area, triangle or cubic.
        fill: (red, green, blue). If given, windows have out's size, lie on whole pixels and may
            reach outside their images: this is what is seen there.
        limits: what a sample may ask for; one that asks for more is a damaged one.
        threads: of numba's to use.

    Returns:
        int32 (n,) or (n, views): what became of each, of kernels.status.MEANING.

    Raises:
        ValueError: `out` is not contiguous uint8, or the arguments are not of one length.
    """
    if out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError("the images to fill are not contiguous uint8")
    if out.shape[:-3] != wanted.shape[:-1] or len(rows.numbers) != len(out) or out.shape[-1] != 3:
        raise ValueError(
            f"{len(rows.numbers)} rows, windows {wanted.shape} and images {out.shape} do not match"
        )
    form, tables = batches.IMAGE, None
    if isinstance(field, DCTImageField):
        form, tables = batches.DCT, make_tables(field.quality)
    elif isinstance(field, YUV420ImageField):
        form = batches.YUV420
    numbers, found = rows.numbers, locate(rows.pointers, storage_state)
    if wanted.ndim > 2:
        numbers, found = (np.repeat(array, wanted.shape[1], axis=0) for array in (numbers, found))
    statuses = batches.decode_samples(
        form, found, numbers, wanted.reshape(-1, wanted.shape[-1]), FILTERS[filter_],
        out.reshape(-1, *out.shape[-3:]), fill=fill, tables=tables, limits=limits,
        threads=threads,
    )  # fmt: skip
    shaped: np.ndarray = statuses.reshape(wanted.shape[:-1])
    return shaped


def check_images(
    metadata: np.ndarray, indices: np.ndarray, storage_state: tuple[Any, ...],
    limits: batches.Limits,
) -> np.ndarray:  # fmt: skip
    """int32 (n,), of kernels.status.MEANING: samples of FFCV's image field that no decoder should
    be given. FFCV's own copy what a row and a JPEG's header say, without comparing the two."""
    rows = read_rows(None, metadata, indices)
    found: np.ndarray = np.empty(len(indices), np.int32)
    located, plain = locate(rows.pointers, storage_state), (limits.pixels, limits.memory)
    batches.check_images(batches.IMAGE, located, rows.numbers, plain, found)
    return found


class Samples(NamedTuple):
    """What a policy of windows is given: a key of the epoch, and n samples' indices and sizes."""

    key: np.uint64
    indices: np.ndarray
    heights: np.ndarray
    widths: np.ndarray


class ImageDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]  # ffcv has no types
    """Base of all: a policy of windows (`choose_windows`) on any form of image; here, the whole.

    Args:
        output_size: (height, width); may be set between epochs, for the next `iter()`. None: that
            of the images, where all have one.
        filter: area (the default), triangle or cubic.

    Those that choose a window also take `flip`, the probability to mirror an image.
    """

    views: tuple[int, ...] = ()  # shape between batch and image, of several windows an image
    fill: Colour | None = None  # of what lies outside the image, where windows may reach there
    metadata: np.ndarray

    def __init__(self, output_size: Sequence[int] | None = None, *, filter: str = "area") -> None:
        super().__init__()
        if filter not in FILTERS:
            raise UsageError(f"filter={filter!r}: wanted is one of {', '.join(FILTERS)}")
        self.output_size = output_size
        self.filter = filter
        self.field: Any = None
        self.generator = np.random.default_rng()

    @property
    def output_size(self) -> Size | None:
        return self._output_size

    @output_size.setter
    def output_size(self, size: Sequence[int] | None) -> None:
        if size is not None:
            sides = list(size) if isinstance(size, Sequence | np.ndarray) else []
            if len(sides) != 2 or not all(arguments.is_whole(side) and side >= 1 for side in sides):
                raise UsageError(
                    f"output_size={size!r}: wanted is (height, width), whole pixels, 1 or more"
                )
            size = (int(sides[0]), int(sides[1]))
        self._output_size = size

    def accept_field(self, field: Any) -> None:
        self.field = field

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape = (*self.views, *(self.output_size or self._one_size()), 3)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1"))
        return state, AllocationQuery(shape, np.dtype("u1"))

    def _one_size(self) -> Size:
        heights, widths = self.metadata["height"], self.metadata["width"]
        if heights.min() != heights.max() or widths.min() != widths.max():
            raise FailureError("the images have different sizes; give the decoder an output_size")
        return int(heights[0]), int(widths[0])

    @property
    def crop_size(self) -> Size:
        if self.output_size is None:
            raise UsageError(f"{type(self).__name__} wants an output_size")
        return self.output_size

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:  # noqa: ARG002
        """float64 (n, *views, 6): a window for each sample, to be shown at `size`."""
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        windows.whole_windows(samples.heights, samples.widths, chosen)
        return chosen

    def decode(
        self, field: Any, metadata: np.ndarray, indices: np.ndarray, out: np.ndarray,
        storage_state: tuple[Any, ...], key: np.uint64, threads: int,
        limits: batches.Limits = LIMITS,
    ) -> np.ndarray:  # fmt: skip
        """Fills uint8 (n, *views, height, width, 3); returns the statuses (n, *views).

        Args:
            field: of the images.
            metadata: the field's rows, of all samples.
            indices: of the n samples.
            storage_state: where the file is; see locate.
            key: that random windows are drawn by.
            threads: of numba's to use.
            limits: what a sample may ask for.
        """
        rows = read_rows(field, metadata, indices)
        return self._decode(field, indices, rows, out, storage_state, key, threads, limits)

    def _decode(
        self, field: Any, indices: np.ndarray, rows: Rows, out: np.ndarray,
        storage_state: tuple[Any, ...], key: np.uint64, threads: int, limits: batches.Limits,
    ) -> np.ndarray:  # fmt: skip
        heights, widths = (rows.numbers[:, side].astype(np.int64) for side in (0, 1))
        samples = Samples(key, np.asarray(indices).astype(np.int64), heights, widths)
        return decode_batch(
            field, rows, storage_state, self.choose_windows(samples, out.shape[-3:-1]), out,
            filter_=self.filter, fill=self.fill, limits=limits, threads=threads,
        )  # fmt: skip

    def show(self, pixels: np.ndarray) -> np.ndarray:
        """What it makes of an image in memory: uint8 (height, width, 3) -> (*views, *, *, 3).

        Raises:
            ValueError: another kind of array.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"not uint8 (height, width, 3): {pixels.dtype} {pixels.shape}")
        height, width = pixels.shape[:2]
        pixels = np.ascontiguousarray(pixels)
        memory = np.zeros(1, np.uint64), np.array([pixels.nbytes], np.uint64)
        rows = Rows(np.array([[height, width, RAW, 0]], np.int32), np.zeros(1, np.int64))
        out = np.empty((1, *self.views, *(self.output_size or (height, width)), 3), np.uint8)
        state = pixels.reshape(-1), *memory
        key, limits = self.draw_key(), batches.UNLIMITED
        found = self._decode(None, np.zeros(1), rows, out, state, key, 1, limits)
        if found.any():
            raise ValueError(MEANING[int(found.max())])
        shown: np.ndarray = out[0]
        return shown

    def draw_key(self) -> np.uint64:
        """A key for one batch, where the Loader gives none."""
        return np.uint64(self.generator.integers(2**63))

    def generate_code(self) -> Callable[..., Any]:
        def run(indices: np.ndarray, out: np.ndarray, storage_state: tuple[Any, ...]) -> None:
            self.decode(
                self.field, self.metadata, indices, out[: len(indices)], storage_state,
                self.draw_key(), Compiler.num_threads,
            )  # fmt: skip

        def stage(batch_indices, destination, metadata, storage_state):  # type: ignore[no-untyped-def]  # noqa: ARG001
            with objmode():
                run(batch_indices, destination, storage_state)
            return destination[: len(batch_indices)]

        return stage


class RandomResizedCrop(ImageDecoder):
    """A random share of the area with a random aspect ratio, resized (torchvision's rule).

    Args:
        scale: bounds of the share of the area.
        ratio: bounds of width over height.
    """

    def __init__(
        self, output_size: Sequence[int], scale: Sequence[float] = (0.08, 1),
        ratio: Sequence[float] = (3 / 4, 4 / 3), *, filter: str = "area", flip: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(output_size, filter=filter)
        self.scale, self.ratio = (
            arguments.bounds("scale", scale, 1.0),
            arguments.bounds("ratio", ratio),
        )
        self.flip = arguments.probability("flip", flip)

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:  # noqa: ARG002
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        windows.random_resized_windows(*samples, self.scale, self.ratio, self.flip, chosen)
        return chosen


class CenterCrop(ImageDecoder):
    """The middle square of `ratio` times the short side, in whole pixels (FFCV's rule), resized.

    What a model is tested on is ResizedCenterCrop's, up to a pixel or two elsewhere.
    """

    def __init__(
        self, output_size: Sequence[int], ratio: float = 224 / 256, *, filter: str = "area",
        flip: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(output_size, filter=filter)
        if not (arguments.is_real(ratio) and 0 < ratio <= 1):
            raise UsageError(f"ratio={ratio!r}: wanted is a share of the short side, up to 1")
        self.ratio, self.flip = float(ratio), arguments.probability("flip", flip)

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:  # noqa: ARG002
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        windows.center_windows(*samples, self.ratio, self.flip, chosen)
        return chosen


class ResizedCenterCrop(CenterCrop):
    """torchvision's Resize(short_side), CenterCrop(output_size).

    Args:
        ratio: the crop's longer side over the short side, which is rounded to whole pixels.
    """

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        short_side = round(max(size) / self.ratio)
        windows.resized_center_windows(*samples, short_side, size, self.flip, chosen)
        return chosen


class WholeImage(ImageDecoder):
    """All of each image, resized to one size; without a size, as it is, where all have one."""

    def __init__(self, output_size: Sequence[int] | None = None, *, filter: str = "area") -> None:
        super().__init__(output_size, filter=filter)


class _CropOfResized(ImageDecoder):
    """A crop of the output's size, of the image resized first; no smaller than the crop."""

    least_side: int

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        if self.least_side < max(self.crop_size):
            raise UsageError(
                f"a short side of {self.least_side} is less than output_size={self.crop_size}: no "
                "crop fits"
            )
        return super().declare_state_and_memory(previous_state)


class ScaleCrop(_CropOfResized):
    """A crop of the output's size at random, of the image resized to a random short side.

    The scale augmentation of He et al. 2015, section 3.4, in one step.

    Args:
        short_side: bounds of the short side in pixels, both included.
    """

    def __init__(
        self, output_size: Sequence[int], short_side: Sequence[int] = (256, 480), *,
        filter: str = "area", flip: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(output_size, filter=filter)
        self.flip = arguments.probability("flip", flip)
        low, high = arguments.bounds("short_side", short_side)
        if low != int(low) or high != int(high):
            raise UsageError(f"short_side={short_side!r}: wanted are whole pixels")
        self.short_side = (int(low), int(high))
        self.least_side = self.short_side[0]

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        windows.scale_windows(*samples, self.short_side, size, self.flip, chosen)
        return chosen


class TenCrop(_CropOfResized):
    """torchvision's Resize(short_side), TenCrop(output_size): images (n, 10, height, width, 3).

    Args:
        short_side: pixels of the short side that the crops are taken at.
    """

    views = (10,)

    def __init__(
        self, output_size: Sequence[int], short_side: int = 256, *, filter: str = "area"
    ) -> None:
        super().__init__(output_size, filter=filter)
        self.short_side = self.least_side = arguments.whole("short_side", short_side, 1, "pixels")

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:
        chosen = np.empty((len(samples.indices), 10, windows.NUMBERS))
        windows.ten_crop_windows(samples.heights, samples.widths, self.short_side, size, chosen)
        return chosen


class PadCrop(ImageDecoder):
    """A crop of the output's size at random, of the image with a border; pixels stay as they are.

    The augmentation of He et al. 2015, section 4.2, on CIFAR.

    Args:
        padding: pixels of the border, on each side.
        fill: its colour, (red, green, blue) or one number for all three.
    """

    def __init__(
        self, output_size: Sequence[int], padding: int = 4, fill: int | Sequence[int] = 0,
        flip: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(output_size)
        self.padding = arguments.whole("padding", padding, 0, "pixels")
        self.fill, self.flip = arguments.colour("fill", fill), arguments.probability("flip", flip)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        for side, size in zip(("height", "width"), self.crop_size, strict=True):
            index = int(np.argmin(self.metadata[side]))
            least = int(self.metadata[side][index])
            if least + 2 * self.padding < size:
                raise UsageError(
                    f"image {index}, of {side} {least}, with padding={self.padding} is smaller "
                    f"than output_size={self.crop_size}: no crop fits"
                )
        return super().declare_state_and_memory(previous_state)

    def choose_windows(self, samples: Samples, size: Size) -> np.ndarray:
        chosen = np.empty((len(samples.indices), windows.NUMBERS))
        windows.pad_crop_offsets(*samples, self.padding, size, self.flip, chosen)
        return chosen
