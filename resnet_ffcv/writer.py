"""Source -> .beton, whole or not at all.

Worker processes encode; this one places the samples in their order and writes, so that every byte
is independent of the number of workers. FFCV's own DatasetWriter waits for ever when one fails.
"""

import errno
import hashlib
import io
import itertools
import math
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_ffcv import beton
from resnet_ffcv.config import ImageConfig, WriteConfig, WriterConfig
from resnet_ffcv.encode import SMALL_SIDE
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import open_past_cache, read_blocks, sync_folder, write_at, write_whole
from resnet_ffcv.manifest import FORMAT_VERSION, Manifest, Pages, manifest_path, write_manifest
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.workers import Encoded, Pool, Task, add_pixels, prepare

PROBES = 100  # images that the size of a split is judged by
# In a task for a worker: images at most, and bytes of files, so that few large ones are in memory.
TASK_FILES, TASK_ARRAYS, TASK_BYTES = 16, 500, 1 << 22


class Report:
    """What the writer tells of itself while it works; this one is silent."""

    def begin(self, what: str, count: int, unit: str) -> None:
        """A pass over `count` units begins."""

    def advance(self, count: int) -> None:
        """So many more units are done."""

    def say(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Written:
    """A finished file."""

    path: Path
    images: int
    image_bytes: int  # of the images alone, without tables and what fills up pages
    bytes: int
    seconds: float
    damaged: int  # images whose source was damaged, and of which what is left was stored


class SampleTooLargeError(Exception):
    """A sample is larger than a page; carries the size in bytes of the largest."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def write_dataset(source: Source, config: WriteConfig, report: Report) -> dict[str, Written]:
    """Writes both splits of a source into the output folder, each with its manifest.

    Raises:
        FailureError: an image that cannot be stored, a full disk, a killed worker; what was not
            finished is removed.
    """
    folder = Path(config.output.folder or f"data/{source.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailureError(f"output.folder={folder} cannot be made: {error.strerror}") from error
    if config.image.mode is None:
        image = replace(config.image, mode=default_mode(source.splits["train"], config.image))
        config = replace(config, image=image)
    prepare(config.image)
    pool = Pool(config.writer.workers)
    try:
        jobs = [
            Job(source, name, choose(len(split.labels), config.writer), config)
            for name, split in source.splits.items()
        ]
        report.say(f"storing images as {config.image.mode}")
        refuse_if_too_large(jobs, folder, pool)
        return {job.split: write_split(job, folder, pool, report) for job in jobs}
    finally:
        pool.close()


@dataclass(frozen=True)
class Job:
    """A split to write: which of its images (sorted indices), and how."""

    source: Source
    split: str
    indices: np.ndarray
    config: WriteConfig

    @property
    def images(self) -> Split:
        return self.source.splits[self.split]

    @property
    def arguments(self) -> bytes | None:
        """The image field's, where it is one of ours."""
        image = self.config.image
        if image.mode not in beton.FORMS:
            return None
        quality = image.quality if image.mode == "dct" else 100
        return beton.write_arguments(image.mode, quality, image.max_resolution)

    def tasks(self, indices: np.ndarray) -> Iterator[Task]:
        """The images cut into tasks, in order."""
        items = self.images.items
        in_memory = isinstance(items, np.ndarray)
        part: list[int] = []
        weight = 0
        for index in map(int, indices):
            part.append(index)
            weight += 0 if in_memory else _file_size(items[index])
            if len(part) == (TASK_ARRAYS if in_memory else TASK_FILES) or weight > TASK_BYTES:
                yield self._task(part)
                part, weight = [], 0
        if part:
            yield self._task(part)

    def _task(self, part: list[int]) -> Task:
        names = [self.images.describe(index) for index in part]
        return Task(self.split, part, [self.images.items[index] for index in part], names)

    def encode(self, indices: np.ndarray, pool: Pool) -> Iterator[Encoded]:
        return pool.encode(self.tasks(indices), self.config.image, self.config.writer.seed)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the worker that reads it says what is wrong
        return 0


def choose(count: int, config: WriterConfig) -> np.ndarray:
    """Sorted indices of the images to write: all, or `writer.limit` drawn by `writer.seed`."""
    if config.limit is None or config.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).permutation(count)[: config.limit])


def probe(indices: np.ndarray) -> np.ndarray:
    """At most PROBES of the indices, evenly spread."""
    return indices[:: math.ceil(len(indices) / PROBES)]


def default_mode(split: Split, config: ImageConfig) -> str:
    """raw where no image, of those probed, has a longer side than SMALL_SIDE; else dct."""
    if isinstance(split.items, np.ndarray):
        longest = max(split.items.shape[1:3])
    else:
        longest = 0
        for index in probe(np.arange(len(split.labels))):
            try:
                with Image.open(split.items[index]) as image:
                    longest = max(longest, *image.size)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise FailureError(f"{split.describe(index)} cannot be read: {error}") from error
    longest = min(longest, config.max_resolution or longest)
    return "raw" if longest <= SMALL_SIDE else "dct"


def refuse_if_too_large(jobs: list[Job], folder: Path, pool: Pool) -> None:
    """Raises FailureError where the disk cannot hold what the probes say the files will take."""
    wanted = 0
    for job in jobs:
        encoded = job.encode(probe(job.indices), pool)
        sizes = [len(stored.data) for part in encoded for stored in part.images]
        wanted += file_size(np.resize(sizes, len(job.indices)).tolist())  # again and again
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise FailureError(
            f"{folder}: the files will take about {wanted / 1e9:,.2f} GB, the disk has "
            f"{free / 1e9:,.2f} GB free; free some, or take a smaller image.max_resolution or "
            "image.quality"
        )


def file_size(sizes: list[int]) -> int:
    """Bytes of the file that holds samples of these sizes, in this order."""
    page_size = page_size_for(max(sizes))
    pages = room = 0
    for size in sizes:  # as PageWriter places them
        if size > room:
            pages, room = pages + 1, page_size
        room -= size
    first = beton.first_page(len(sizes), page_size)
    return first + pages * page_size + len(sizes) * beton.ALLOCATION.itemsize


def page_size_for(largest: int) -> int:
    """FFCV's page size, or the power of two that the largest sample needs."""
    return max(beton.DEFAULT_PAGE_SIZE, 1 << (largest - 1).bit_length())


def write_split(job: Job, folder: Path, pool: Pool, report: Report) -> Written:
    """Writes one file and its manifest, with pages as large as the largest sample needs."""
    began = time.monotonic()
    path = folder / f"{job.split}.beton"
    page_size = beton.DEFAULT_PAGE_SIZE
    while True:
        try:
            content = _write_split(job, path, page_size, pool, report)
            size, seconds = path.stat().st_size, time.monotonic() - began
            count = len(job.indices)
            return Written(path, count, content.image_bytes, size, seconds, content.damaged)
        except SampleTooLargeError as error:
            page_size = page_size_for(error.size)
            if page_size > beton.MAX_PAGE_SIZE:
                raise FailureError(f"an image takes {error.size:,} bytes, too many") from error
            report.say(f"an image takes {error.size:,} bytes: again with pages of {page_size:,}")


def _write_split(job: Job, path: Path, page_size: int, pool: Pool, report: Report) -> "Content":
    if path.exists():
        report.say(f"{path} is there already and will be replaced")
    part = path.with_name(f".{path.name}.part")
    report.begin(f"write {path.name}", len(job.indices), "images")
    pages = None
    try:
        with PageWriter(part, beton.first_page(len(job.indices), page_size), page_size) as pages:
            content = _write_samples(job, pages, pool, report)
        _write_tables(part, pages, content.metadata, job.arguments)
        sha256 = check(part, pages, report)
        # A .beton without its manifest is refused when it is opened; with a stale one it is not.
        manifest_path(path).unlink(missing_ok=True)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        missing = _say_what_is_missing(error, job, pages)
        raise FailureError(f"{path} could not be written: {error.strerror}{missing}") from error
    finally:
        part.unlink(missing_ok=True)
    try:
        write_manifest(describe(job, path, content, pages, sha256), path)
    except BaseException:  # Ctrl-C too; a file alone is of no use
        path.unlink()
        _pixel_mean_path(path).unlink(missing_ok=True)
        raise
    return content


def _say_what_is_missing(error: OSError, job: Job, pages: "PageWriter | None") -> str:
    """Of a full disk: how far it reached and, by what was placed until then, what is missing."""
    placed = pages.allocations if pages else []
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not placed:
        return ""
    rest = len(job.indices) - len(placed)
    missing = sum(size for _, _, size in placed) / len(placed) * rest
    return (
        f" after {len(placed):,} of {len(job.indices):,} images; the rest needs about "
        f"{missing / 1e9:,.3f} GB more"
    )


class PageWriter:
    """Places samples into the pages of a new file, one behind the other, none across a page's end.

    A context: the last page is written at its end.
    """

    def __init__(self, path: Path, first: int, page_size: int) -> None:
        self.first, self.page_size = first, page_size
        self.page, self.used = mmap.mmap(-1, page_size), 0  # its address is a multiple of blocks
        self.crc32: list[str] = []
        self.allocations: list[tuple[int, int, int]] = []
        self.handle = open_past_cache(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __enter__(self) -> "PageWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._write_page()
        finally:
            os.close(self.handle)

    @property
    def end(self) -> int:
        """The offset behind the pages that were written."""
        return self.first + len(self.crc32) * self.page_size

    def place(self, data: bytes) -> int:
        """Adds the next sample, of a page at most; returns its offset in the file."""
        if self.used + len(data) > self.page_size:
            self._write_page()
        offset = self.end + self.used
        self.page[self.used : self.used + len(data)] = data
        self.used += len(data)
        self.allocations.append((len(self.allocations), offset, len(data)))
        return offset

    def _write_page(self) -> None:
        """Writes the page, filled up with zeros, if anything is in it."""
        if self.used:
            self.page[self.used :] = bytes(self.page_size - self.used)
            write_at(self.handle, memoryview(self.page), self.end)
            self.crc32.append(f"{zlib.crc32(self.page):08x}")
            self.used = 0


@dataclass
class Content:
    """What was stored: metadata (samples,) of beton.metadata_type, and sums of the pixels.

    `moments` and `sums` are those of `Encoded`, over all samples.
    """

    metadata: np.ndarray
    moments: np.ndarray
    sums: np.ndarray | None
    image_bytes: int = 0
    damaged: int = 0


def _write_samples(job: Job, pages: PageWriter, pool: Pool, report: Report) -> Content:
    row = beton.RGB_ROW if job.arguments is None else beton.FORM_ROW
    metadata = np.zeros(len(job.indices), beton.metadata_type(row))
    metadata["label"] = job.images.labels[job.indices]
    content = Content(metadata, np.zeros((2, 3), np.int64), None)
    place = 0
    parts = _told(job.encode(job.indices, pool), report)
    for encoded in parts:
        if _largest([encoded]) > pages.page_size:
            # The rest is encoded too: the next pages are to hold the largest of all.
            raise SampleTooLargeError(_largest(itertools.chain([encoded], parts)))
        for stored in encoded.images:
            metadata["image"][place] = stored.row(pages.place(stored.data))
            content.image_bytes += len(stored.data)
            content.damaged += stored.damaged
            place += 1
        content.moments += encoded.moments
        is_first = place == len(encoded.images)
        content.sums = encoded.sums if is_first else add_pixels(content.sums, encoded.sums)
    return content


def _told(parts: Iterator[Encoded], report: Report) -> Iterator[Encoded]:
    for part in parts:
        yield part
        report.advance(len(part.images))


def _largest(parts: Iterable[Encoded]) -> int:
    return max(len(stored.data) for part in parts for stored in part.images)


def _write_tables(
    path: Path, pages: PageWriter, metadata: np.ndarray, arguments: bytes | None
) -> None:
    header = np.zeros((), beton.HEADER)
    fields = beton.describe_fields(arguments)
    header["version"], header["num_fields"] = beton.VERSION, len(fields)
    header["page_size"], header["num_samples"] = pages.page_size, len(metadata)
    header["alloc_table_ptr"] = pages.end
    with path.open("r+b") as file:
        file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())
        file.seek(pages.end)
        file.write(np.array(pages.allocations, beton.ALLOCATION).tobytes())
        file.flush()
        os.fsync(file.fileno())


def check(path: Path, pages: PageWriter, report: Report) -> str:
    """Reads a file back: its tables, and each page against its checksum. Returns its SHA-256.

    Raises:
        FailureError: what was read is not what was written.
    """
    beton.read_image_tables(path)
    digest = hashlib.sha256()
    report.begin(f"check {path.name.strip('.').removesuffix('.part')}", len(pages.crc32), "pages")
    for number, block in enumerate(read_blocks(path, pages.page_size)):
        page = number - pages.first // pages.page_size
        if 0 <= page < len(pages.crc32):
            if f"{zlib.crc32(block):08x}" != pages.crc32[page]:
                raise FailureError(f"{path}: page {page} does not read as it was written")
            report.advance(1)
        digest.update(block)
    return digest.hexdigest()


def describe(job: Job, path: Path, content: Content, pages: PageWriter, sha256: str) -> Manifest:
    """The manifest of a finished file; writes the mean image beside it, where there is one."""
    width, height = (
        [int(f(content.metadata["image"][side])) for f in (np.min, np.median, np.max)]
        for side in ("width", "height")
    )
    mean = std = pixel_mean = None
    if job.split == "train":
        mean, std = moments(content)
        pixel_mean = _write_pixel_mean(path, content)
    chosen = {"limit": job.config.writer.limit, "seed": job.config.writer.seed}
    return Manifest(
        format_version=FORMAT_VERSION,
        source=job.source.name,
        classes=job.source.classes,
        samples=len(content.metadata),
        width=width,
        height=height,
        mean=mean,
        std=std,
        pixel_mean=pixel_mean,
        options={**asdict(job.config.image), **chosen},
        sha256=sha256,
        pages=Pages(pages.page_size, pages.first, pages.crc32),
    )


def moments(content: Content) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) of each channel, from 0 to 1."""
    sides = content.metadata["image"]
    total = int((sides["width"].astype(np.int64) * sides["height"]).sum())
    means, deviations = [], []
    for first, second in content.moments.T.tolist():  # Python's integers: exact
        means.append(first / total / 255)
        deviations.append(math.sqrt(second * total - first * first) / total / 255)
    return means, deviations


def _pixel_mean_path(path: Path) -> Path:
    return path.with_name(path.name + ".pixel_mean.npy")


def _write_pixel_mean(path: Path, content: Content) -> str | None:
    target = _pixel_mean_path(path)
    if content.sums is None:
        target.unlink(missing_ok=True)
        return None
    buffer = io.BytesIO()
    np.save(buffer, (content.sums / len(content.metadata) / 255).astype(np.float32))
    write_whole(target, lambda file: file.write(buffer.getvalue()))
    return target.name
