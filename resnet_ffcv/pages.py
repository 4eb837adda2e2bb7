"""The pages of a .beton that is being written, and its tables."""

import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_ffcv import beton
from resnet_ffcv.files import bypass_cache, write_at
from resnet_ffcv.manifest import Pages
from resnet_ffcv.opening import create_file, open_own


class PageWriter:
    """Places samples into the pages of a file, one after the other, none across a page's end.

    A context: the last page is written at its end.

    Args:
        path: of the file. With `placed`, one that this program wrote earlier; else a new one, which
            replaces what has that name.
        first: offset of the first page.
        page_size: bytes.
        placed: rows of beton.ALLOCATION of the samples that lie there already.
        crc32: of the pages before the one in which the last of these ends.

    Raises:
        UnsuitableFileError: with `placed`, the file is a link or no regular file.
        OSError: as `open` and `read`.
    """

    def __init__(
        self, path: Path, first: int, page_size: int, placed: Sequence[tuple[int, int, int]] = (),
        crc32: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.first, self.page_size = first, page_size
        self.page, self.used = mmap.mmap(-1, page_size), 0  # its address is a multiple of blocks
        self.crc32, self.allocations = list(crc32), list(placed)
        self.handle = open_own(path, os.O_RDWR) if placed else create_file(path)
        try:
            if placed:
                _, offset, size = placed[-1]
                self.used = offset + size - self.end
                with memoryview(self.page) as page:
                    os.preadv(self.handle, [page[: self.used]], self.end)
            bypass_cache(self.handle)
        except BaseException:
            os.close(self.handle)
            raise

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
        """The offset after the pages that were written."""
        return self.first + len(self.crc32) * self.page_size

    @property
    def samples_written(self) -> int:
        """How many of the samples placed lie in pages that were written."""
        count = len(self.allocations)
        while count and self.allocations[count - 1][1] >= self.end:
            count -= 1
        return count

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


def write_tables(
    path: Path, pages: PageWriter, metadata: np.ndarray, arguments: bytes | None
) -> Pages:
    """Writes what lies around the pages, syncs the file, and returns the checksums of all.

    Args:
        path: of the file that `pages` were written to.
        pages: all of them.
        metadata: (samples,) of beton.metadata_type.
        arguments: of the image field, where it is one of ours.
    """
    header = np.zeros((), beton.HEADER)
    fields = beton.describe_fields(arguments)
    header["version"], header["num_fields"] = beton.VERSION, len(fields)
    header["page_size"], header["num_samples"] = pages.page_size, len(metadata)
    header["alloc_table_ptr"] = pages.end
    head = (header.tobytes() + fields.tobytes() + metadata.tobytes()).ljust(pages.first, b"\0")
    table = np.array(pages.allocations, beton.ALLOCATION).tobytes()
    with os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
        file.truncate(pages.end)  # a resumed file may have been longer
        file.write(head)
        file.seek(pages.end)
        file.write(table)
        file.flush()
        os.fsync(file.fileno())
    tables = [f"{zlib.crc32(part):08x}" for part in (head, table)]
    return Pages(pages.page_size, pages.first, pages.crc32, *tables)
