"""Source -> .beton, whole or not at all.

Worker processes encode; this one places the samples in their order and writes, so that every byte
is independent of the number of workers. FFCV's own DatasetWriter waits for ever when one fails.
"""

import errno
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resnet_ffcv import beton
from resnet_ffcv.checksums import compare
from resnet_ffcv.config import ImageConfig, WriteConfig
from resnet_ffcv.content import Content
from resnet_ffcv.encode import SMALL_SIDE, encoder_digest, read_size
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_new
from resnet_ffcv.journal import Found, Journal
from resnet_ffcv.locks import lock_folder
from resnet_ffcv.manifest import (
    FORMAT_VERSION,
    Manifest,
    Pages,
    manifest_path,
    read_manifest,
    spread,
    write_manifest,
)
from resnet_ffcv.opening import UnsuitableFileError, open_own, temporary_path
from resnet_ffcv.pages import PageWriter, write_tables
from resnet_ffcv.progress import Report
from resnet_ffcv.publication import is_under_way, publish, record_path, recover
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.tasks import Job, choose
from resnet_ffcv.workers import Encoded, Pool, Task, explain, prepare

PROBES = 100  # images that the size of a split is judged by
BLOCK = 512  # bytes, in which the system says how much of a file is on the disk


@dataclass(frozen=True)
class Written:
    """A finished file."""

    path: Path
    images: int
    image_bytes: int  # of the images alone, without tables and what fills up pages
    bytes: int
    seconds: float
    damaged: int  # images whose source was damaged, and of which what is left was stored
    skipped: list[str]  # names of images that could not be stored


class SampleTooLargeError(Exception):
    """A sample is larger than a page; carries the size in bytes of the largest."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def write_dataset(source: Source, config: WriteConfig, report: Report) -> dict[str, Written]:
    """Writes both splits of a source into the output folder, each with its manifest.

    Raises:
        FailureError: an image that cannot be stored, a full disk, a killed worker, another writer;
            what was not finished is removed, or with writer.resume kept.
    """
    folder = Path(config.output.folder or f"data/{source.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FailureError(f"output.folder={folder} cannot be made: it is a file") from error
    except OSError as error:
        raise FailureError(f"output.folder={folder} cannot be made: {error.strerror}") from error
    if config.image.mode is None:
        skip = config.writer.on_error == "skip"
        mode = default_mode(source.splits["train"], config.image, skip=skip)
        image = replace(config.image, mode=mode)
        config = replace(config, image=image)
    prepare(config.image)
    busy = (
        f"output.folder={folder}: another write_datasets.py is writing there; wait for it, or "
        "choose another folder"
    )
    with lock_folder(folder, busy):
        pool = Pool(config.writer.workers, report)
        try:
            jobs = [
                Job(source, name, choose(len(split.labels), config.writer), config)
                for name, split in source.splits.items()
            ]
            drafts = [Draft(job, folder / f"{job.split}.beton", report) for job in jobs]
            report.say(f"storing images as {config.image.mode}")
            refuse_if_too_large(drafts, folder, pool)
            written = {draft.job.split: write_split(draft, pool, report) for draft in drafts}
            for draft in drafts:
                draft.end()
            return written
        finally:
            pool.close()


def probe(indices: np.ndarray) -> np.ndarray:
    """At most PROBES of the indices, evenly spread."""
    return indices[:: math.ceil(len(indices) / PROBES)]


def default_mode(split: Split, config: ImageConfig, *, skip: bool = False) -> str:
    """raw where no image, of those probed, has a longer side than SMALL_SIDE; else dct.

    `skip`: whether images that cannot be read do not count.
    """
    if isinstance(split.items, np.ndarray):
        longest = max(split.items.shape[1:3])
    else:
        longest = 0
        for index in probe(np.arange(len(split.labels))):
            try:
                longest = max(longest, *read_size(split.items[index], config))
            except Exception as error:  # Pillow's plugins raise nearly anything
                if skip:
                    continue
                raise FailureError(
                    f"{split.describe(index)} cannot be read: {explain(error)}; "
                    "writer.on_error=skip leaves such images out"
                ) from error
    longest = min(longest, config.max_resolution or longest)
    return "raw" if longest <= SMALL_SIDE else "dct"


def refuse_if_too_large(drafts: list["Draft"], folder: Path, pool: Pool) -> None:
    """Raises FailureError where the disk cannot hold what the probes say is still to be written."""
    wanted = 0
    for draft in drafts:
        if draft.is_published():
            continue
        job = draft.job
        encoded = pool.encode(job.tasks(probe(job.indices)))
        sizes = [len(stored.data) for _, part in encoded for stored in part.images] or [0]
        size = file_size(np.resize(sizes, len(job.indices)).tolist())  # again and again
        wanted += max(0, size - draft.bytes_on_disk())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise FailureError(
            f"{folder}: the files will take about {wanted / 1e9:,.2f} GB more, the disk has "
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


def write_split(draft: "Draft", pool: Pool, report: Report) -> Written:
    """Writes one file and its manifest, with pages as large as the largest sample needs."""
    began = time.monotonic()
    if draft.is_published():
        report.say(f"{draft.path} is there already, of these images and options")
        content = None
    else:
        content = _write_with_sufficient_pages(draft, pool, report)
    manifest = read_manifest(draft.path)
    return Written(
        path=draft.path,
        images=manifest.samples,
        image_bytes=int(beton.read_image_tables(draft.path).sizes.sum()),
        bytes=draft.path.stat().st_size,
        seconds=time.monotonic() - began,
        damaged=content.damaged if content else 0,
        skipped=manifest.skipped,
    )


def _write_with_sufficient_pages(draft: "Draft", pool: Pool, report: Report) -> Content:
    found = draft.find_stopped()
    page_size = found.page_size if found else beton.DEFAULT_PAGE_SIZE
    while True:
        try:
            return draft.write(page_size, found, pool, report)
        except SampleTooLargeError as error:
            found = None
            page_size = page_size_for(error.size)
            if page_size > beton.MAX_PAGE_SIZE:
                raise FailureError(f"an image takes {error.size:,} bytes, too many") from error
            report.say(f"an image takes {error.size:,} bytes: again with pages of {page_size:,}")


class Draft:
    """A file that is being written: under another name, until it is whole.

    Args:
        job: what is written.
        path: what the file will be called.
        report: is told what an earlier run left.

    Raises:
        FailureError: a link, pipe or folder is in place of one of its files.
    """

    def __init__(self, job: Job, path: Path, report: Report) -> None:
        self.job, self.path, self.report = job, path, report
        self.identity, times = job.identify()
        self.count = len(job.indices)
        self.resume = job.config.writer.resume
        self.kept = path.with_name(f"{path.name}.partial")
        self.part = self.kept if self.resume else temporary_path(path, "part")
        self.manifest, self.mean = manifest_path(path), path.with_name(pixel_mean_name(path.name))
        written = {"images": self.identity, "times": times, "encoder": encoder_digest()}
        source = {"source": job.source.name, "classes": job.source.classes}
        self.journal = Journal(self.kept, {**written, **source, **job.options()}, self.count)
        try:
            self._settle()
        except OSError as error:
            raise FailureError(self._say(error)) from error

    def _settle(self) -> None:
        """Completes a publication that was broken off, and removes what else a killed run left."""
        own = (self.kept, self.journal.path) if self.resume else ()
        for path in (*own, record_path(self.path)):
            with suppress(FileNotFoundError):
                os.close(open_own(path, os.O_RDONLY))
        words = recover(self.path, self.kept, (self.mean, self.manifest))
        if words:
            self.report.say(words)
        if not (self.resume or os.path.lexists(self.kept)):
            with suppress(UnsuitableFileError):
                if self.journal.is_ours():  # it would tell of a file that is no longer there
                    self.journal.end()

    def _say(self, error: OSError, pages: PageWriter | None = None) -> str:
        """What went wrong, and what to do."""
        if isinstance(error, UnsuitableFileError):
            return f"{error}; remove it"
        return (
            f"{self.path} could not be written: {error.strerror}"
            f"{self._say_what_is_missing(error, pages)}"
        )

    def is_published(self) -> bool:
        """Whether a run that this one resumes has finished the file."""
        try:
            finished = self.journal.finished() if self.resume else None
        except OSError as error:
            raise FailureError(self._say(error)) from error
        try:
            return finished is not None and read_manifest(self.path).sha256 == finished
        except FailureError:
            return False

    def bytes_on_disk(self) -> int:
        """Size on the disk of what a stopped write left, which is resumed or written over."""
        return self.part.stat().st_blocks * BLOCK if self.part.exists() else 0

    def end(self) -> None:
        """All files of the source are whole: there is nothing left to resume."""
        if self.resume:
            self.journal.end()

    def find_stopped(self) -> Found | None:
        """What a stopped write of this job left, if anything."""
        if not self.resume:
            return None
        row = beton.RGB_ROW if self.job.arguments is None else beton.FORM_ROW
        try:
            found = self.journal.read(row)
        except OSError as error:
            raise FailureError(self._say(error)) from error
        if found and self._has_labels_of(found.content):
            return found
        if self.part.exists():
            self.report.say(f"{self.part} cannot be resumed; it is written from the start")
        return None

    def _has_labels_of(self, content: Content) -> bool:
        """Whether the labels are those of the job's first images, but for those skipped."""
        skipped = list(reversed(content.skipped))
        stored = []
        for index in self.job.indices[: content.done].tolist():
            if skipped and skipped[-1] == self.job.short_name(index):
                skipped.pop()
            else:
                stored.append(index)
        labels = self.job.images.labels[np.array(stored, int)]
        return not skipped and np.array_equal(labels, content.metadata["label"])

    def write(self, page_size: int, found: Found | None, pool: Pool, report: Report) -> Content:
        """Writes, checks and publishes the file.

        Args:
            page_size: bytes.
            found: what a stopped write left, with pages of this size.
            pool: of the workers.
            report: is told how far it is.

        Raises:
            SampleTooLargeError: the pages are too small.
            FailureError: what went wrong; the part is removed, or with `resume` kept.
        """
        if self.path.exists():
            report.say(f"{self.path} is there already and will be replaced")
        if os.path.lexists(self.kept) and not self.resume:
            report.say(f"{self.kept} is of a stopped write; --writer.resume=true resumes it")
        report.begin(f"write {self.path.name}", self.count, "images")
        pages = None
        try:
            content, pages = self._begin(page_size, found, report)
            with pages:
                self._write_samples(pages, content, pool, report)
            sums = write_tables(self.part, pages, content.metadata, self.job.arguments)
            sha256 = check(self.part, self.path.name, sums, report)
            self._publish(describe(self.job, content, sums, self.identity, sha256), content)
        except SampleTooLargeError:
            self._remove()
            raise
        except OSError as error:
            raise FailureError(self._say(error, pages)) from error
        finally:
            if not self.resume and not is_under_way(self.path):
                self._remove()
        return content

    def _begin(
        self, page_size: int, found: Found | None, report: Report
    ) -> tuple[Content, PageWriter]:
        """Nothing, or what a stopped write has left."""
        row = beton.RGB_ROW if self.job.arguments is None else beton.FORM_ROW
        first = beton.first_page(self.count, page_size)
        if found is None:
            if self.resume:
                self.journal.begin(page_size)
            return Content.empty(self.count, row), PageWriter(self.part, first, page_size)
        done = found.content.done
        report.say(f"resuming {self.part}: {done:,} of {self.count:,} images are done")
        report.advance(done)
        return found.content, PageWriter(self.part, first, page_size, found.placed, found.crc32)

    def _write_samples(
        self, pages: PageWriter, content: Content, pool: Pool, report: Report
    ) -> None:
        labels = self.job.images.labels
        parts = _told(pool.encode(self.job.tasks(self.job.indices[content.done :])), report)
        for task, encoded in parts:
            if _largest([encoded]) > pages.page_size:
                # The rest is encoded too: the next pages are to hold the largest of all.
                rest = (encoded for _, encoded in parts)
                raise SampleTooLargeError(_largest(itertools.chain([encoded], rest)))
            content.add(encoded.moments, encoded.sums, len(encoded.images))
            images = iter(encoded.images)
            for place, index in enumerate(task.indices):
                if place in encoded.failures:
                    report.say(encoded.failures[place])
                    content.skipped += (self.job.short_name(index),)
                    continue
                stored = next(images)
                content.rows["image"][content.count] = stored.row(pages.place(stored.data))
                content.rows["label"][content.count] = labels[index]
                content.count += 1
                content.damaged += stored.damaged
            content.done += len(task.indices)
            if self.resume:
                self.journal.note(content, pages)
        if content.count == 0:
            raise FailureError(f"{self.path}: none of {self.count:,} images could be stored")

    def _publish(self, manifest: Manifest, content: Content) -> None:
        """The part becomes the file, with its manifest; or all stays as it was.

        A .beton without its manifest is refused when it is opened, with a stale one it is not: so
        the manifest comes last.
        """
        new = {path: temporary_path(path, "new") for path in (self.mean, self.manifest)}
        moves, gone = [(self.part, self.path)], [self.mean]
        try:
            if manifest.pixel_mean and content.sums is not None:
                mean = (content.sums / content.count / 255).astype(np.float32)
                write_new(new[self.mean], lambda file: np.save(file, mean))
                moves, gone = [*moves, (new[self.mean], self.mean)], []
            write_manifest(manifest, new[self.manifest])
            if self.resume:
                self.journal.finish(manifest.sha256)
            publish([*moves, (new[self.manifest], self.manifest)], gone)
        finally:
            if not is_under_way(self.path):
                for path in new.values():
                    path.unlink(missing_ok=True)

    def _remove(self) -> None:
        self.part.unlink(missing_ok=True)
        if self.resume:
            self.journal.end()

    def _say_what_is_missing(self, error: OSError, pages: PageWriter | None) -> str:
        """Of a full disk: how far the write came and about how much more it needs."""
        written = pages.samples_written if pages else 0
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not is_full or not pages or not 0 < written < self.count:
            return ""
        sizes = [size for _, _, size in pages.allocations[:written]]
        missing = sum(sizes) / written * (self.count - written)
        return (
            f" after {written:,} of {self.count:,} images; the rest needs about "
            f"{missing / 1e9:,.3f} GB more"
        )


def _told(parts: Iterator[tuple[Task, Encoded]], report: Report) -> Iterator[tuple[Task, Encoded]]:
    for task, encoded in parts:
        yield task, encoded
        report.advance(len(task.indices))


def _largest(parts: Iterable[Encoded]) -> int:
    return max((len(stored.data) for part in parts for stored in part.images), default=0)


def check(path: Path, name: str, sums: Pages, report: Report) -> str:
    """Reads a file back: its tables, and each part against its checksum. Returns its SHA-256.

    `name` is what it will be called.

    Raises:
        FailureError: what was read is not what was written.
    """
    beton.read_image_tables(path)
    report.begin(f"check {name}", len(sums.crc32), "pages")
    found = compare(path, sums, report.advance)
    if found.words:
        raise FailureError(f"{path} does not read as it was written: {'; '.join(found.words)}")
    return found.sha256


def pixel_mean_name(beton_name: str) -> str:
    return beton_name + ".pixel_mean.npy"


def describe(job: Job, content: Content, sums: Pages, identity: str, sha256: str) -> Manifest:
    """The manifest of a finished file."""
    mean = std = pixel_mean = None
    if job.split == "train":
        mean, std = content.moments_of_pixels()
        pixel_mean = pixel_mean_name("train.beton") if content.sums is not None else None
    return Manifest(
        format_version=FORMAT_VERSION,
        source=job.source.name,
        classes=job.source.classes,
        samples=content.count,
        width=spread(content.metadata["image"]["width"]),
        height=spread(content.metadata["image"]["height"]),
        mean=mean,
        std=std,
        pixel_mean=pixel_mean,
        options=job.options(),
        skipped=list(content.skipped),
        images_sha256=identity,
        sha256=sha256,
        pages=sums,
    )
