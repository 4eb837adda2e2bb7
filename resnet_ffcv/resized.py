"""Whole images of a file, each resized to a short side, in batches of one shape."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resnet_ffcv.decoders import LIMITS, WholeImage
from resnet_ffcv.errors import FailureError
from resnet_ffcv.first_reads import FirstReads
from resnet_ffcv.kernels import windows
from resnet_ffcv.kernels.batches import Limits
from resnet_ffcv.kernels.status import MEANING
from resnet_ffcv.loader import open_tables
from resnet_ffcv.storage import Storage

LONGEST = 32  # long side over short side; ImageNet's images stay below it

Batch = tuple[np.ndarray, np.ndarray]  # places in `indices` int64 (n,), images uint8 (n, h, w, 3)


class ResizedImages:
    """The images of a .beton, as torchvision's Resize(short side) shows them.

    Images of many sizes do not fit in one batch; those that come out in one shape do.

    Args:
        fname: path of the file.
        sides: short sides to show the images at, pixels.
        resolution: pixels a side of what the network to test was trained on.
        batch_size: images of that resolution in a batch; of larger ones there are fewer.
        num_workers: threads that decode.
        filter: area, triangle or cubic.
        limits: of pixels and memory, what a sample may ask for.
        verify: "once" compares each page with its checksum when it is first read, as Loader does.

    Attributes:
        indices: int64 (n,), of the samples shown: all.
        labels: int64 (n,).

    Raises:
        FailureError: a file that cannot be opened, or an image whose long side is more than LONGEST
            times its short one. Resized to a short side it may have gigapixels, all of which the
            network would see at once.
    """

    def __init__(
        self,
        fname: str,
        sides: Sequence[int],
        *,
        resolution: int,
        batch_size: int,
        num_workers: int,
        filter: str = "area",
        limits: Limits = LIMITS,
        verify: str | None = None,
    ) -> None:
        tables, fields = open_tables(Path(fname), {})
        self.fname, self.sides, self.resolution = fname, tuple(sides), resolution
        self.batch_pixels = batch_size * resolution**2
        self.num_workers, self.decoder = num_workers, WholeImage(filter=filter)
        self.field, self.metadata = fields["image"], tables.metadata["image"]
        self.storage = Storage(tables)
        self.limits = limits
        self.first_reads = FirstReads(self.storage, num_workers) if verify else None
        self.indices = np.arange(len(tables.metadata))
        self.labels = tables.metadata["label"].astype(np.int64)
        self._refuse_strips()

    def _refuse_strips(self) -> None:
        height, width = (self.metadata[name].astype(np.int64) for name in ("height", "width"))
        too_long = np.maximum(height, width) > LONGEST * np.minimum(height, width)
        if too_long.any():
            sample = int(np.argmax(too_long))
            raise FailureError(
                f"{self.fname}: sample {sample} has {width[sample]:,} x {height[sample]:,} pixels; "
                f"test.protocol=multiscale takes images up to {LONGEST} times as long as they are "
                "wide; leave it out of the file, or use test.protocol=center"
            )

    def __iter__(self) -> Generator[Batch, None, None]:
        """Every image at each of `sides`; one batch is decoded ahead.

        Raises:
            FailureError: an image is damaged, or the file changed since it was opened.
        """
        self.storage.begin_epoch()
        groups = [group for side in self.sides for group in self._groups(side)]
        with ThreadPoolExecutor(1, "decode") as pool:
            ahead = [pool.submit(self._decode, *group) for group in groups[:1]]
            for group in groups[1:]:
                ahead.append(pool.submit(self._decode, *group))
                yield ahead.pop(0).result()
            if ahead:
                yield ahead.pop(0).result()

    def _groups(self, side: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """(indices, shape) of each batch: of one shape, as many as `batch_pixels` allow."""
        sizes = zip(self.metadata["height"].tolist(), self.metadata["width"].tolist(), strict=True)
        each = np.array([windows.resized_shape(*size, side) for size in sizes])
        shapes, kinds, counts = np.unique(each, axis=0, return_inverse=True, return_counts=True)
        by_shape = np.split(np.argsort(kinds.ravel(), kind="stable"), np.cumsum(counts)[:-1])
        found = []
        for (height, width), alike in zip(shapes.tolist(), by_shape, strict=True):
            most = max(1, self.batch_pixels // (height * width))
            found += [
                (alike[start : start + most], (height, width))
                for start in range(0, len(alike), most)
            ]
        return found

    def _decode(self, indices: np.ndarray, shape: tuple[int, int]) -> Batch:
        images = np.empty((len(indices), *shape, 3), np.uint8)
        statuses = self.decoder.decode(
            self.field, self.metadata, indices, images, self.storage.state(np.uint64(0)),
            np.uint64(0), self.num_workers, self.limits,
        )  # fmt: skip
        if self.first_reads:
            np.maximum(statuses, self.first_reads.check(indices), out=statuses)
        self.storage.check()
        bad = np.flatnonzero(statuses)
        if len(bad):
            cause = MEANING[int(statuses[bad[0]])]
            raise FailureError(f"{self.fname}: sample {indices[bad[0]]} is damaged: {cause}")
        return indices, images
