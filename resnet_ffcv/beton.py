"""The .beton format, version 2, of FFCV 1.0.2, little endian.

| offset           | content                                                                     |
| ---------------- | --------------------------------------------------------------------------- |
| 0                | header: version, number of fields, page size, samples, offset of the table  |
| 24               | a descriptor for each field: type id, name (16 bytes), arguments (1,024)    |
| 24 + 1041 fields | a metadata row for each sample                                              |
| next page        | pages: samples' data one behind the other, none across a page's end         |
| end of pages     | allocation table, to the end of the file: sample, offset, size of a region  |

There is no magic number and no checksum; the length of a JPEG stands in the table alone. Bytes
after the table would be read as rows of it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_ffcv.errors import FailureError

VERSION = 2
DEFAULT_PAGE_SIZE = 1 << 23  # FFCV's
MAX_PAGE_SIZE = 1 << 31  # a power of two that fits the header's 32 bits
MAX_SIDE = 65_535  # pixels, the metadata's 16 bits

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
# FFCV's RGBImageField (packed) and IntField, together an aligned row of 24 bytes.
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)

TYPE_IDS = {"image": 2, "label": 1}  # FFCV's RGBImageField and IntField
JPG, RAW = 0, 1  # IMAGE's modes


def describe_fields() -> np.ndarray:
    """The descriptors (2,) of `image` and `label`; neither of FFCV's fields has arguments."""
    fields = np.zeros(len(TYPE_IDS), FIELD)
    for field, (name, type_id) in zip(fields, TYPE_IDS.items(), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name.encode(), "u1")
    return fields


def first_page(num_samples: int, page_size: int) -> int:
    """The offset of the first page: the next multiple of the page size behind the metadata."""
    end = HEADER.itemsize + len(TYPE_IDS) * FIELD.itemsize + num_samples * METADATA.itemsize
    return -(-end // page_size) * page_size


@dataclass(frozen=True)
class Tables:
    """All of a file but its pages.

    `metadata` is (samples,) of METADATA, `allocations` (regions,) of ALLOCATION, sorted by `ptr`.
    """

    page_size: int
    metadata: np.ndarray
    allocations: np.ndarray
    data_start: int
    data_end: int

    def region(self, sample: int) -> tuple[int, int]:
        """(offset, size) of a sample's image."""
        ptr = int(self.metadata["image"]["data_ptr"][sample])
        row = np.searchsorted(self.allocations["ptr"], ptr)
        return ptr, int(self.allocations["size"][row])


def read_tables(path: Path) -> Tables:
    """Reads and checks the tables of a file with the fields `image` and `label`.

    Checks that the write was finished, that every region lies within the pages and none across a
    page's end or another region, and that every sample has its region.

    Raises:
        FailureError: not such a file, or a damaged one; says what is wrong.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _read(path, file.read(HEADER.itemsize), HEADER, 1)[0]
            _check_header(path, header, size)
            samples, count = int(header["num_samples"]), int(header["num_fields"])
            fields = _read(path, file.read(count * FIELD.itemsize), FIELD, count)
            _check_fields(path, fields)
            table = int(header["alloc_table_ptr"])
            if first_page(samples, int(header["page_size"])) > table:  # before so much is read
                raise FailureError(f"{path}: its header is damaged; write it again")
            metadata = _read(path, file.read(samples * METADATA.itemsize), METADATA, samples)
            file.seek(table)
            rows = (size - table) // ALLOCATION.itemsize
            allocations = _read(path, file.read(), ALLOCATION, rows)
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}") from error
    page_size = int(header["page_size"])
    allocations = allocations[np.argsort(allocations["ptr"], kind="stable")]
    tables = Tables(page_size, metadata, allocations, first_page(samples, page_size), table)
    _check_regions(path, tables)
    return tables


def _read(path: Path, content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(content) < count * dtype.itemsize:
        raise FailureError(f"{path} ends inside its tables; write it again")
    return np.frombuffer(content, dtype, count)


def _check_header(path: Path, header: np.void, size: int) -> None:
    page_size, table = int(header["page_size"]), int(header["alloc_table_ptr"])
    if header["version"] != VERSION or page_size == 0 or page_size & (page_size - 1):
        raise FailureError(f"{path} is no .beton file of version {VERSION}")
    if table == 0:
        raise FailureError(f"{path}: its writing was not finished; write it again")
    if table > size or (size - table) % ALLOCATION.itemsize:
        raise FailureError(f"{path} was cut short, or something was added to it; write it again")


def _check_fields(path: Path, fields: np.ndarray) -> None:
    found = {
        bytes(field["name"]).rstrip(b"\0").decode("ascii", "replace"): int(field["type_id"])
        for field in fields
    }
    if found != TYPE_IDS or list(found) != list(TYPE_IDS):
        raise FailureError(
            f"{path} has the fields {', '.join(found)}; wanted are image (RGB) and label (int)"
        )


def _check_regions(path: Path, tables: Tables) -> None:
    start, length = (tables.allocations[name].astype(np.int64) for name in ("ptr", "size"))
    end = start + length
    pointers = tables.metadata["image"]["data_ptr"].astype(np.int64)
    problems = {
        "a region outside the pages": (start < tables.data_start) | (end > tables.data_end),
        "an empty region": length < 1,
        "a region across a page's end": start // tables.page_size != (end - 1) // tables.page_size,
        "overlapping regions": start[1:] < end[:-1],
        "a region of no sample": tables.allocations["sample_id"] >= len(pointers),
        "a sample without its region": ~np.isin(pointers, start),
    }
    for problem, found in problems.items():
        if found.any():
            raise FailureError(f"{path} is damaged: {problem} ({int(found.sum())}); write it again")
