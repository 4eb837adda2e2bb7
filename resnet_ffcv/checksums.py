"""A .beton against the checksums of its manifest."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from resnet_ffcv.files import read_blocks
from resnet_ffcv.manifest import Pages


@dataclass
class Compared:
    """What differs: all before the pages, all behind them, which pages; the file's SHA-256."""

    head: bool = False
    table: bool = False
    pages: list[int] = field(default_factory=list)
    sha256: str = ""

    @property
    def words(self) -> list[str]:
        """What is wrong, if anything."""
        found = ["the header, the fields or the metadata"] if self.head else []
        found += ["the allocation table"] if self.table else []
        pages = ", ".join(map(str, self.pages[:10])) + (", ..." if len(self.pages) > 10 else "")
        found += [f"page{'s' * (len(self.pages) > 1)} {pages}"] if self.pages else []
        return [f"{what} differ{'s' * (',' not in what)} from the checksum" for what in found]


def compare(path: Path, pages: Pages, advance: Callable[[int], None]) -> Compared:
    """Reads a file, from the disk, and compares each part with its checksum.

    Args:
        path: of the file.
        pages: the checksums.
        advance: called with 1 for each page.
    """
    found, digest = Compared(), hashlib.sha256()
    head = table = 0
    first = pages.first // pages.size
    for number, block in enumerate(read_blocks(path, pages.size)):
        digest.update(block)
        page = number - first
        if page < 0:
            head = zlib.crc32(block, head)
        elif page >= len(pages.crc32):
            table = zlib.crc32(block, table)
        else:
            if f"{zlib.crc32(block):08x}" != pages.crc32[page]:
                found.pages.append(page)
            advance(1)
    found.head, found.table = (
        f"{crc:08x}" != expected
        for crc, expected in ((head, pages.head_crc32), (table, pages.table_crc32))
    )
    found.sha256 = digest.hexdigest()
    return found
