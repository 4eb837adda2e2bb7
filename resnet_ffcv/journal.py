"""How far the writing of a .partial has come, so that it can be resumed.

Each line is JSON after a seal, the CRC-32 of all lines up to it: a line that was changed, lost or
moved ends what is believed. The first line says what is written and how. Whenever pages were
written, another says what was stored in them, with sums over all images so far. The last one has
the SHA-256 of the whole file, which is then about to get its name.

What a line says is checked against the job and against what PageWriter does, and used as far as
the pages in the file have its checksums. Where anything else is in doubt the file is written from
the start.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from resnet_ffcv import beton
from resnet_ffcv.content import Content
from resnet_ffcv.manifest import MEAN_SIDE
from resnet_ffcv.opening import create_file, open_own
from resnet_ffcv.pages import PageWriter
from resnet_ffcv.schema import Crc32, Sha256

SEAL = 9  # characters of a line before its JSON
MOST_FIXED, MOST_PER_IMAGE = 1 << 26, 1 << 9  # bytes of a line

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Triple = Annotated[list[Count], msgspec.Meta(min_length=3, max_length=3)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MEAN_SIDE)]


@dataclass(frozen=True)
class Head:
    """What is written and how: a journal of something else is of no use."""

    job: dict[str, Any]
    page_size: Count


@dataclass(frozen=True)
class Sums:
    """Content.sums: int64 (height, width, 3)."""

    height: Side
    width: Side
    data: bytes


@dataclass(frozen=True)
class Entry:
    """The state at the end of a task; rows, allocations, crc32 and skipped since the entry before.

    `rows` and `allocations` are the bytes of arrays of beton.metadata_type and beton.ALLOCATION.
    """

    done: Count
    count: Count
    rows: bytes
    allocations: bytes
    crc32: Annotated[list[Crc32], msgspec.Meta(min_length=1)]
    moments: Annotated[list[Triple], msgspec.Meta(min_length=2, max_length=2)]
    sums: Sums | None
    damaged: Count
    skipped: list[str]


@dataclass(frozen=True)
class Line:
    """One of these."""

    head: Head | None = None
    entry: Entry | None = None
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class State:
    """Content at the end of a task, without its rows."""

    done: int
    count: int
    moments: np.ndarray
    sums: np.ndarray | None
    damaged: int
    skipped: tuple[str, ...]

    @classmethod
    def of(cls, content: Content) -> "State":
        return cls(**{name: getattr(content, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Found:
    """What a stopped write left: its pages as PageWriter takes them, and what was stored."""

    page_size: int
    content: Content
    placed: list[tuple[int, int, int]]
    crc32: list[str]


class DoubtfulError(ValueError):
    """A line has a seal, but does not say what this program would have said."""


class Journal:
    """Of the file `partial`, next to it.

    Args:
        partial: path of the file.
        job: what is written and how, as JSON holds it.
        images: of the whole job.
    """

    def __init__(self, partial: Path, job: dict[str, Any], images: int) -> None:
        self.partial, self.job, self.images = partial, job, images
        self.path = partial.with_name(partial.name + ".journal")
        self._forget()

    def _forget(self) -> None:
        self.open: list[State] = []  # whose images do not all lie in pages that were written
        self.written = State.of(Content.empty(0, beton.RGB_ROW))
        self.pages = 0  # whose checksums it has
        self.seal = 0  # of the last line

    def begin(self, page_size: int) -> None:
        """An empty journal.

        Raises:
            OSError: as `open` and `write`, here and in the methods that follow.
        """
        self._forget()
        os.close(create_file(self.path))
        self._append(Line(head=Head(self.job, page_size)))

    def finish(self, sha256: str) -> None:
        """The file is whole, and has this SHA-256."""
        self._append(Line(sha256=sha256))

    def end(self) -> None:
        """The file is published, or will be written from the start."""
        self.path.unlink(missing_ok=True)

    def is_ours(self) -> bool:
        """Whether the file begins as a journal does, of whatever job.

        Raises:
            UnsuitableFileError: it is a link or no regular file.
        """
        try:
            with os.fdopen(open_own(self.path, os.O_RDONLY), "rb") as file:
                first = next(_unseal(file, MOST_FIXED), None)
        except (FileNotFoundError, ValueError, RecursionError):
            return False
        return first is not None and first.line.head is not None

    def note(self, content: Content, pages: PageWriter) -> None:
        """A task is done: `content` and `pages` are up to date."""
        self.open.append(State.of(content))
        if len(pages.crc32) <= self.pages:
            return
        samples = pages.samples_written
        written = [state for state in self.open if state.count <= samples]
        if written:
            self.open = self.open[len(written) :]
            self._append(Line(entry=self._describe(written[-1], content, pages)))
            self.written, self.pages = written[-1], len(pages.crc32)

    def _describe(self, state: State, content: Content, pages: PageWriter) -> Entry:
        new = slice(self.written.count, state.count)
        sums = state.sums
        return Entry(
            done=state.done,
            count=state.count,
            rows=content.rows[new].tobytes(),
            allocations=np.array(pages.allocations[new], beton.ALLOCATION).tobytes(),
            crc32=pages.crc32[self.pages :],
            moments=state.moments.tolist(),
            sums=None if sums is None else Sums(sums.shape[0], sums.shape[1], sums.tobytes()),
            damaged=state.damaged,
            skipped=list(state.skipped[len(self.written.skipped) :]),
        )

    def _append(self, line: Line) -> None:
        content = msgspec.json.encode(line)
        self.seal = zlib.crc32(content, self.seal)
        with os.fdopen(open_own(self.path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(f"{self.seal:08x} ".encode() + content + b"\n")

    def finished(self) -> str | None:
        """The SHA-256 of the file that this job has finished; None where it has not."""
        sha256 = None
        try:
            for read in self._read_lines():
                sha256 = read.line.sha256  # the last line has it
        except DoubtfulError:
            return None
        return sha256

    def read(self, row: np.dtype) -> Found | None:
        """What can be resumed; None where there is no journal of this job, or a doubtful one.

        What comes after that is removed from the journal.

        Args:
            row: type of an image's row, of beton.

        Raises:
            UnsuitableFileError: the journal or the .partial is a link or no regular file.
        """
        self._forget()
        try:
            return self._resume(row)
        except (DoubtfulError, FileNotFoundError):  # the latter: the .partial
            return None

    def _read_lines(self) -> "Iterator[Read]":
        """The lines whose seals hold, the head first; none where they are of another job.

        One at a time: each may have megabytes of sums, and there may be one for each page.

        Raises:
            DoubtfulError: a seal holds, but what it seals is no line of a journal.
        """
        try:
            with os.fdopen(open_own(self.path, os.O_RDONLY), "rb") as file:
                lines = _unseal(file, MOST_FIXED + MOST_PER_IMAGE * self.images)
                first = next(lines, None)
                if first and first.line.head and first.line.head.job == self.job:
                    yield first
                    yield from lines
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, RecursionError) as error:  # the latter: JSON that is too deep
            raise DoubtfulError from error

    def _resume(self, row: np.dtype) -> Found | None:
        lines = self._read_lines()
        last = next(lines, None)
        if last is None or last.line.head is None:
            return None
        page_size = last.line.head.page_size
        _doubt_unless(beton.DEFAULT_PAGE_SIZE <= page_size <= beton.MAX_PAGE_SIZE)
        _doubt_unless(page_size & (page_size - 1) == 0)  # a power of two
        first = beton.first_page(self.images, page_size)
        checker = Checker(Content.empty(self.images, row), first, page_size)
        crc32: list[str] = []
        with os.fdopen(open_own(self.partial, os.O_RDONLY), "rb") as partial:
            partial.seek(first)
            whole = 0  # pages that are in the file as they were written
            for read in lines:
                entry = read.line.entry
                if entry is None:
                    break
                if whole == len(crc32):
                    whole += _count_whole(partial, page_size, entry.crc32)
                if not checker.take(entry, first + whole * page_size):
                    break
                crc32 += entry.crc32
                last = read
        placed = checker.placed
        needed = max((size for _, _, size in placed), default=0)
        if not placed or (page_size > beton.DEFAULT_PAGE_SIZE and needed <= page_size // 2):
            return None  # nothing yet, or nothing that shows that pages of this size are needed
        with os.fdopen(open_own(self.path, os.O_RDWR), "r+b") as file:
            file.truncate(last.end)
        self.seal, self.pages = last.seal, checker.pages
        self.written = State.of(checker.content)
        # The page in which the last sample ends is written again, though the journal may know it.
        page = (placed[-1][1] + placed[-1][2] - 1 - first) // page_size
        return Found(page_size, checker.content, placed, crc32[:page])


@dataclass(frozen=True)
class Read:
    """A line, where it ends in the journal, and the CRC-32 of all lines up to it."""

    line: Line
    end: int
    seal: int


def _unseal(file: IO[bytes], limit: int) -> Iterator[Read]:
    """The lines of a journal up to the first whose seal is broken, which has no end, or which has
    more than `limit` bytes.

    Raises:
        ValueError: a seal holds, but what it seals is no line of a journal.
    """
    decoder, end, seal = msgspec.json.Decoder(Line), 0, 0
    while (line := file.readline(limit)).endswith(b"\n"):
        text = line[SEAL:-1]
        seal, end = zlib.crc32(text, seal), end + len(line)
        if line[:SEAL] != f"{seal:08x} ".encode():
            return
        yield Read(decoder.decode(text), end, seal)


class Checker:
    """Takes entries one after the other, each if it says what this program would have said.

    Attributes:
        content, placed: what the entries taken say.
        pages: whose checksums they have.
    """

    def __init__(self, content: Content, first: int, page_size: int) -> None:
        self.content, self.first, self.page_size = content, first, page_size
        self.placed: list[tuple[int, int, int]] = []
        self.pages = self.pixels = 0
        self.alike = True  # all images have the size of the first, of at most MEAN_SIDE a side

    def take(self, entry: Entry, whole: int) -> bool:
        """Whether its samples lie before the offset `whole`; if so, it is taken.

        Raises:
            DoubtfulError: it cannot be this program's.
        """
        content, added = self.content, entry.count - self.content.count
        skipped = (*content.skipped, *entry.skipped)
        _doubt_unless(
            content.done < entry.done <= len(content.rows)
            and added >= 0
            and entry.done == entry.count + len(skipped)
            and content.damaged <= entry.damaged <= entry.count
            and len(entry.rows) == added * content.rows.itemsize
            and len(entry.allocations) == added * beton.ALLOCATION.itemsize
        )
        rows = np.frombuffer(entry.rows, content.rows.dtype)
        placed = np.frombuffer(entry.allocations, beton.ALLOCATION)
        self._check_places(rows, placed)
        end = int(placed["ptr"][-1] + placed["size"][-1]) if added else 0
        pages = self.pages + len(entry.crc32)
        _doubt_unless(end <= self.first + pages * self.page_size)
        if end > whole:
            return False
        content.rows[content.count : entry.count] = rows
        content.done, content.count, content.damaged = entry.done, entry.count, entry.damaged
        content.skipped, content.moments = skipped, np.array(entry.moments, np.int64)
        self.placed += placed.tolist()
        self.pages = pages
        self._check_rows(rows, placed["size"])
        self._check_sums(entry)
        return True

    def _check_places(self, rows: np.ndarray, placed: np.ndarray) -> None:
        """The samples lie where PageWriter places them, and the rows say so."""
        count = self.content.count
        used = sum(self.placed[-1][1:]) - self.first if self.placed else 0
        expected = []
        for size in placed["size"].tolist():
            _doubt_unless(0 < size <= self.page_size)
            if used % self.page_size + size > self.page_size:
                used += -used % self.page_size
            expected.append(self.first + used)
            used += size
        _doubt_unless(
            placed["ptr"].tolist() == expected
            and rows["image"]["data_ptr"].tolist() == expected
            and placed["sample_id"].tolist() == list(range(count, count + len(rows)))
        )

    def _check_rows(self, rows: np.ndarray, sizes: np.ndarray) -> None:
        """The rows have values that the writer gives, and zeros between their fields."""
        images = rows["image"]
        height, width = (images[name].astype(np.int64) for name in ("height", "width"))
        self.pixels += int((height * width).sum())
        first = self.content.rows["image"][0]
        same = (height == first["height"]) & (width == first["width"])
        self.alike &= bool((same & (np.maximum(height, width) <= MEAN_SIDE)).all())
        clean = np.zeros(len(rows), rows.dtype)
        for name in rows.dtype.names or ():
            clean[name] = rows[name]
        _doubt_unless(bool((height > 0).all() and (width > 0).all()))
        _doubt_unless(clean.tobytes() == rows.tobytes())
        if images.dtype == beton.RGB_ROW:
            raw = images["mode"] == beton.RAW
            _doubt_unless(bool((raw | (images["mode"] == beton.JPG)).all()))
            _doubt_unless(bool((sizes[raw] == 3 * height[raw] * width[raw]).all()))
        else:
            _doubt_unless(bool((images["colour"] <= 1).all() and (images["table"] == 0).all()))

    def _check_sums(self, entry: Entry) -> None:
        """The sums are possible for this number of pixels, each from 0 to 255."""
        content = self.content
        for total, squares in zip(*entry.moments, strict=True):
            # Squares are at least what equal values give, by Cauchy and Schwarz.
            _doubt_unless(total * total <= squares * self.pixels and squares <= 255 * total)
            _doubt_unless(total <= 255 * self.pixels)
        sums, first = entry.sums, content.rows["image"][0]
        _doubt_unless((sums is not None) == (self.alike and content.count > 0))
        content.sums = None
        if sums is not None:
            shape = sums.height, sums.width, 3
            _doubt_unless(shape[:2] == (first["height"], first["width"]))
            _doubt_unless(len(sums.data) == 8 * shape[0] * shape[1] * 3)
            content.sums = np.frombuffer(sums.data, np.int64).reshape(shape)
            in_range = content.sums.min() >= 0 and content.sums.max() <= 255 * content.count
            _doubt_unless(bool(in_range) and content.sums.sum((0, 1)).tolist() == entry.moments[0])


def _doubt_unless(holds: bool) -> None:
    if not holds:
        raise DoubtfulError


def _count_whole(file: IO[bytes], page_size: int, crc32: Sequence[str]) -> int:
    """How many of the next pages of a file are as they were written, up to one that is not."""
    for number, expected in enumerate(crc32):
        if f"{zlib.crc32(file.read(page_size)):08x}" != expected:
            return number
    return len(crc32)
