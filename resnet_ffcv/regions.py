"""Whether the regions of a .beton can be, and whether they are those that its samples' rows name.

What decoders copy is bounded by rows and arguments alone (FFCV's own copy a region into a slot of
the size that its row says), so no region may differ from its row.

All checks go through the tables in blocks: what numpy makes in between stays in the processor's
cache.
"""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from resnet_ffcv.errors import FailureError

if TYPE_CHECKING:
    from resnet_ffcv.beton import FieldInfo, Tables

BLOCK = 1 << 15  # rows


def check_regions(tables: "Tables") -> None:
    """Raises FailureError where a region, or a sample's pointer, cannot be."""
    counts: Counter[str] = Counter()
    for begin in range(0, len(tables.starts), BLOCK):
        for problem, found in _problems_of_regions(tables, begin).items():
            counts[problem] += int(np.count_nonzero(found))
    stored = tables.stored()
    for field, pointers in stored:
        ordered = np.array_equal(pointers, tables.starts)  # as one field in order has them
        for begin in range(0, len(pointers), BLOCK):
            problems = _problems_of_samples(tables, field, pointers, begin, ordered=ordered)
            for problem, found in problems.items():
                counts[problem] += int(np.count_nonzero(found))
    if len(stored) > 1:
        used = np.concatenate([pointers for _, pointers in stored])
        used = used[used != 0]  # 0: of empty bytes
        counts["two fields with one region"] = len(used) - len(np.unique(used))
    for problem, count in counts.items():
        if count:
            raise FailureError(f"{tables.path} is damaged: {problem} ({count}); write it again")


def _problems_of_regions(tables: "Tables", begin: int) -> dict[str, np.ndarray]:
    """Which of a block of regions cannot be. Unsigned: 2^63 and more is none below 0."""
    block = slice(begin, begin + BLOCK)
    start, size = tables.starts[block], tables.sizes[block]
    end = start + size
    shift, last = np.uint64(tables.page_size.bit_length() - 1), np.uint64(1)  # pages: powers of two
    following = tables.starts[begin + 1 : begin + BLOCK + 1]
    return {
        "a region outside the pages": (
            (start < tables.data_start) | (end > tables.data_end) | (end < start)
        ),
        "a region across a page's end": (start ^ (end - last)) >> shift != 0,
        "overlapping regions": following < end[: len(following)],
        "a region of no sample": tables.samples[block] >= len(tables.metadata),
    }


def _problems_of_samples(
    tables: "Tables", field: "FieldInfo", pointers: np.ndarray, begin: int, *, ordered: bool
) -> dict[str, np.ndarray]:
    """Which of a block of a field's samples have no region, or one that does not fit their row.

    Args:
        tables: of the file.
        field: the field.
        pointers: (samples,), where its data begins.
        begin: of the block.
        ordered: whether the pointers are the regions' starts, one by one.
    """
    block = slice(begin, begin + BLOCK)
    found = pointers[block]
    numbers = np.arange(begin, begin + len(found), dtype=np.uint64)
    least, most = field.size_bounds(tables.metadata[field.name][block])
    if ordered:
        sizes, lost = tables.sizes[block], tables.samples[block] != numbers
    elif len(tables.starts):
        place = np.minimum(np.searchsorted(tables.starts, found), len(tables.starts) - 1)
        lost = (tables.starts[place] != found) | (tables.samples[place] != numbers)
        sizes = tables.sizes[place]
    else:
        sizes, lost = np.zeros(len(found), np.uint64), np.ones(len(found), bool)
    filled = np.not_equal(least, 0)  # empty bytes have no region
    return {
        "a sample without its region": lost & filled,
        f"field {field.name}: a region that does not fit its row": (
            ((sizes < least) | (sizes > most)) & filled & ~lost
        ),
    }
