"""How far the writing of a .partial has come, so that it can be gone on with.

A line of JSON first says what is written and how; another one follows whenever pages were written:
what was stored in them, and sums over all images so far. What a line says is believed where it
and the pages that it speaks of have their checksums. The last one has the checksum of the whole
file, which is then about to get its name.
"""

import base64
import itertools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv import beton
from resnet_ffcv.content import Content
from resnet_ffcv.pages import PageWriter

SEAL = 9  # characters of a line before its JSON


@dataclass(frozen=True)
class Entry:
    """The state at the end of a task: Content without its rows."""

    done: int
    count: int
    moments: np.ndarray
    sums: np.ndarray | None
    damaged: int
    skipped: tuple[str, ...]

    @classmethod
    def of(cls, content: Content) -> "Entry":
        return cls(**{name: getattr(content, name) for name in cls.__dataclass_fields__})


class Journal:
    """Of the file `partial`, beside it.

    Args:
        partial: path of the file.
        job: what is written and how, as JSON holds it; a journal of something else is of no use.
    """

    def __init__(self, partial: Path, job: dict[str, Any]) -> None:
        self.partial, self.job = partial, job
        self.path = partial.with_name(partial.name + ".journal")
        self._forget()

    def _forget(self) -> None:
        self.open: list[Entry] = []  # whose images do not all lie in pages that were written
        self.written = Entry.of(Content.empty(0, beton.RGB_ROW))
        self.pages = 0  # whose checksums it has

    def begin(self, page_size: int) -> None:
        """An empty journal."""
        self._forget()
        self.path.write_text(json.dumps({"job": self.job, "page_size": page_size}) + "\n")

    def page_size(self) -> int | None:
        """Of the write that it tells of; None where that is of another job."""
        try:
            with self.path.open() as file:
                said = json.loads(file.readline())
            return int(said["page_size"]) if said["job"] == self.job else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, sha256: str) -> None:
        """The file is whole, and has this SHA-256."""
        with self.path.open("a") as file:
            file.write(_seal(json.dumps({"sha256": sha256})) + "\n")

    def finished(self) -> str | None:
        """The SHA-256 of the file that this job has finished; None where it has not."""
        if self.page_size() is None:
            return None
        last = self.path.read_bytes().split(b"\n")[-2:][0]  # an empty piece follows the last line
        said = json.loads(last[SEAL:]) if _is_sealed(last) else {}
        found: str | None = said.get("sha256")
        return found

    def note(self, content: Content, pages: PageWriter) -> None:
        """A task is done: `content` and `pages` stand as they do."""
        self.open.append(Entry.of(content))
        if len(pages.crc32) <= self.pages:
            return
        samples = pages.samples_written
        written = [entry for entry in self.open if entry.count <= samples]
        if written:
            self.open = self.open[len(written) :]
            self._append(written[-1], content, pages)

    def _append(self, entry: Entry, content: Content, pages: PageWriter) -> None:
        new = slice(self.written.count, entry.count)
        line = {
            "done": entry.done,
            "count": entry.count,
            "rows": _encode(content.rows[new]),
            "allocations": _encode(np.array(pages.allocations[new], beton.ALLOCATION)),
            "crc32": pages.crc32[self.pages :],
            "moments": entry.moments.tolist(),
            "sums": None if entry.sums is None else [_encode(entry.sums), *entry.sums.shape],
            "damaged": entry.damaged,
            "skipped": entry.skipped[len(self.written.skipped) :],
        }
        with self.path.open("a") as file:
            file.write(_seal(json.dumps(line)) + "\n")
        self.written, self.pages = entry, len(pages.crc32)

    def read(self, row: np.dtype, images: int, first: int, page_size: int) -> "Found | None":
        """What can be gone on with; None where there is no journal of this job, or nothing in it.

        Forgets what comes behind it.

        Args:
            row: of an image, of beton.
            images: of the whole job.
            first, page_size: of the pages.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]  # a torn last line has no end
            if json.loads(lines[0]) != {"job": self.job, "page_size": page_size}:
                return None
            lines = [lines[0], *itertools.takewhile(_is_sealed, lines[1:])]
            said = [json.loads(line[SEAL:]) for line in lines[1:]]
            entries = [entry for entry in said if "crc32" in entry]  # the last may tell of the end
            crc32 = [crc for entry in entries for crc in entry["crc32"]]
            whole = first + _count_whole(self.partial, first, page_size, crc32) * page_size
        except (OSError, ValueError, IndexError, KeyError):
            return None
        content, placed, size = Content.empty(images, row), [], len(lines[0]) + 1
        told = 0
        for line, entry in zip(lines[1:], entries, strict=False):
            new = np.frombuffer(base64.b64decode(entry["allocations"]), beton.ALLOCATION)
            if len(new) and int(new["ptr"][-1]) >= whole:
                break
            placed += new.tolist()
            _take(content, entry)
            told += len(entry["crc32"])
            size += len(line) + 1
        if not placed:
            return None
        with self.path.open("r+b") as file:
            file.truncate(size)
        # The page in which the last sample ends is written again, though the journal may know it.
        page = (placed[-1][1] + placed[-1][2] - 1 - first) // page_size
        self.written, self.pages = Entry.of(content), told
        return Found(content, placed, crc32[:page])

    def end(self) -> None:
        """The file is whole, or will be written anew."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """What a stopped write left: as PageWriter takes it, and what was stored."""

    content: Content
    placed: list[tuple[int, int, int]]
    crc32: list[str]


def _seal(line: str) -> str:
    """A line behind its CRC-32."""
    return f"{zlib.crc32(line.encode()):08x} {line}"


def _is_sealed(line: bytes) -> bool:
    return line[:SEAL] == f"{zlib.crc32(line[SEAL:]):08x} ".encode()


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _take(content: Content, line: dict[str, Any]) -> None:
    """Brings `content` to where a line of the journal says that it was."""
    rows = np.frombuffer(base64.b64decode(line["rows"]), content.rows.dtype)
    content.rows[content.count : line["count"]] = rows
    content.done, content.count = line["done"], line["count"]
    content.moments = np.array(line["moments"], np.int64)
    content.sums = None
    if line["sums"]:
        data, *shape = line["sums"]
        content.sums = np.frombuffer(base64.b64decode(data), np.int64).reshape(shape)
    content.damaged = line["damaged"]
    content.skipped += tuple(line["skipped"])


def _count_whole(path: Path, first: int, page_size: int, crc32: list[str]) -> int:
    """How many of the pages, from the first on, lie in a file as they were written."""
    with path.open("rb") as file:
        file.seek(first)
        for number, expected in enumerate(crc32):
            if f"{zlib.crc32(file.read(page_size)):08x}" != expected:
                return number
    return len(crc32)
