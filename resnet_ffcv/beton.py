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

Images lie in a field of FFCV's own, or in one of ours (fields.py, docs/format.md), whose arguments
say its form. `read_tables` reads files with any fields, `read_image_tables` those that
write_datasets.py writes: `image` and `label`.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from resnet_ffcv.errors import FailureError

VERSION = 2
DEFAULT_PAGE_SIZE = 1 << 23  # FFCV's
MAX_PAGE_SIZE = 1 << 31  # a power of two that fits the header's 32 bits
BLOCK = 1 << 15  # rows of the tables that are checked at a time
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
# A sample's row in FFCV's RGBImageField, and in a field of ours. `table` names a quantisation table
# of the field; there is one, number 0.
RGB_ROW = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
FORM_ROW = np.dtype(
    [("height", "<u2"), ("width", "<u2"), ("colour", "u1"), ("table", "u1"), ("data_ptr", "<u8")]
)
JPG, RAW = 0, 1  # RGB_ROW's modes
ROW_BYTES = 24  # of either and an int64 label, aligned

# What the arguments of a field of ours hold; the rest of them is 0.
ARGUMENTS = np.dtype(
    [("form", "S8"), ("version", "<u2"), ("quality", "u1"), ("max_resolution", "<u4")]
)
FORMS = ("dct", "yuv420")
FORM_VERSION = 1

RGB_TYPE, INT_TYPE, OTHER_TYPE = 2, 1, 255  # FFCV's RGBImageField, its IntField, all not its own
NAMES = ("image", "label")
BYTES_ROW = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# A sample's row in each of FFCV's fields: float, int, RGB image, bytes, array, JSON, tensor.
ROWS = {
    0: np.dtype("<f8"), INT_TYPE: np.dtype("<i8"), RGB_TYPE: RGB_ROW, 3: BYTES_ROW,
    4: np.dtype("<u8"), 5: BYTES_ROW, 6: np.dtype("<u8"),
}  # fmt: skip
ARRAY_TYPES = (4, 6)  # whose row is a pointer and no more


def metadata_type(row: np.dtype) -> np.dtype:
    """FFCV's type of a file's metadata, of the images' rows."""
    return np.dtype([("image", row), ("label", "<i8")], align=True)


def write_arguments(form: str, quality: int, max_resolution: int | None) -> bytes:
    """1,024 bytes: the arguments of a field of ours."""
    values = np.zeros(1, ARGUMENTS)
    values[0] = form.encode(), FORM_VERSION, quality, max_resolution or 0
    return values.tobytes().ljust(FIELD["arguments"].itemsize, b"\0")


def read_arguments(arguments: bytes) -> np.void:
    """One of ARGUMENTS.

    Raises:
        FailureError: they are of another field, or of a later version.
    """
    values = np.frombuffer(arguments, ARGUMENTS, 1)[0]
    form = bytes(values["form"]).decode("ascii", "replace")
    if form not in FORMS:
        raise FailureError(f"its class is not known here (form {form!r})")
    if values["version"] != FORM_VERSION:
        raise FailureError(
            f"the {form} form has version {values['version']}, this program knows {FORM_VERSION}; "
            "take a later one"
        )
    found: np.void = values
    return found


def describe_fields(image_arguments: bytes | None) -> np.ndarray:
    """The descriptors (2,) of `image` and `label`; of FFCV's own image field, which has no
    arguments, or of one of ours.
    """
    fields = np.zeros(len(NAMES), FIELD)
    for field, name in zip(fields, NAMES, strict=True):
        field["name"][: len(name)] = np.frombuffer(name.encode(), "u1")
    fields["type_id"] = RGB_TYPE if image_arguments is None else OTHER_TYPE, INT_TYPE
    if image_arguments is not None:
        fields[0]["arguments"] = np.frombuffer(image_arguments, "u1")
    return fields


def first_page(num_samples: int, page_size: int) -> int:
    """The offset of the first page: the next multiple of the page size behind the metadata."""
    end = HEADER.itemsize + len(NAMES) * FIELD.itemsize + num_samples * ROW_BYTES
    return -(-end // page_size) * page_size


class UnknownFieldError(FailureError):
    """A field is neither FFCV's nor ours, and nobody said what it is."""


Rows = Mapping[str, Callable[[bytes], np.dtype]]
Identity = tuple[int, int, int, int]


def identify(found: os.stat_result) -> Identity:
    """(device, inode, bytes, nanoseconds of the last change) of a file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class FieldInfo:
    """A field's descriptor."""

    name: str
    type_id: int
    arguments: bytes

    @property
    def form(self) -> str | None:
        """Of its images: rgb (FFCV's own field), dct or yuv420; None of other fields.

        Raises:
            FailureError: a field that FFCV does not know, and we neither.
        """
        if self.type_id == RGB_TYPE:
            return "rgb"
        if self.type_id == OTHER_TYPE:
            return bytes(read_arguments(self.arguments)["form"]).decode()
        return None


@dataclass(frozen=True)
class Tables:
    """All of a file but its pages.

    `identity` is that of the file when it was opened, see identify. `metadata` (samples,) has a row
    for each field, under its name. `starts` and `sizes` are uint64 (regions,): the allocation
    table, sorted by offset, without empty regions; `samples` whose they are.
    """

    path: Path
    identity: Identity
    page_size: int
    fields: tuple[FieldInfo, ...]
    metadata: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    samples: np.ndarray
    data_start: int
    data_end: int

    @property
    def form(self) -> str:
        """Of the images in the first field; empty where it has none."""
        return self.fields[0].form or ""

    def region(self, sample: int) -> tuple[int, int]:
        """(offset, size) of a sample's image."""
        ptr = int(self.metadata["image"]["data_ptr"][sample])
        return ptr, int(self.sizes[np.searchsorted(self.starts, ptr)])

    def pointers(self) -> list[np.ndarray]:
        """uint64 (samples,), where each sample's data begins, for each field that has data.

        Fields that are neither FFCV's nor ours count where their row names it `ptr` or `data_ptr`.
        Empty bytes have no region, and stand anywhere.
        """
        found = []
        for field in self.fields:
            column = self.metadata[field.name]
            names = column.dtype.names or ()
            if field.type_id in ARRAY_TYPES:
                found.append(column)
            found += [column[name] for name in ("data_ptr", "ptr") if name in names]
        return found

    def empty(self) -> np.ndarray:
        """bool (samples,), which have empty bytes in any field."""
        found = np.zeros(len(self.metadata), bool)
        for field in self.fields:
            if self.metadata.dtype[field.name] == BYTES_ROW:
                found |= self.metadata[field.name]["size"] == 0
        return found


def read_image_tables(path: Path) -> Tables:
    """read_tables, of a file with the fields `image` (RGB, dct or yuv420) and `label` (int)."""
    tables = read_tables(path)
    fields = tables.fields
    names = tuple(field.name for field in fields)
    if names != NAMES or fields[0].form is None or fields[1].type_id != INT_TYPE:
        raise FailureError(
            f"{path} has the fields {', '.join(names)}; wanted are image (RGB, dct or yuv420) and "
            "label (int)"
        )
    return tables


def read_tables(path: Path, rows: Rows | None = None) -> Tables:
    """Reads and checks the tables of a file.

    Checks that the write was finished, that every region lies within the pages and none across a
    page's end or another region, and that every sample has its regions.

    Args:
        path: of the file.
        rows: gives the metadata's type from a field's arguments, by the name of the field; of
            fields that are neither FFCV's nor ours.

    Raises:
        FailureError: no such file, or a damaged one; says what is wrong.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            size = found.st_size
            header = _read(path, file.read(HEADER.itemsize), HEADER, 1)[0]
            _check_header(path, header, size)
            samples, count = int(header["num_samples"]), int(header["num_fields"])
            described = _read(path, file.read(count * FIELD.itemsize), FIELD, count)
            fields = tuple(_describe(field) for field in described)
            row = _row_type(path, fields, rows or {})
            page_size, table = int(header["page_size"]), int(header["alloc_table_ptr"])
            metadata_end = HEADER.itemsize + count * FIELD.itemsize + samples * row.itemsize
            data_start = -(-metadata_end // page_size) * page_size
            if metadata_end > table:  # before so much is read
                raise FailureError(f"{path}: its header is damaged; write it again")
            metadata = _read(path, file.read(samples * row.itemsize), row, samples)
            file.seek(table)
            columns = _read_allocations(path, file, (size - table) // ALLOCATION.itemsize)
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}") from error
    samples_of, starts, sizes = _without_empty(path, fields, metadata, columns)
    if not (starts[1:] >= starts[:-1]).all():  # FFCV's with two workers
        order = np.argsort(starts, kind="stable")
        samples_of, starts, sizes = samples_of[order], starts[order], sizes[order]
    tables = Tables(
        path=path,
        identity=identify(found),
        page_size=page_size,
        fields=fields,
        metadata=metadata,
        starts=starts,
        sizes=sizes,
        samples=samples_of,
        data_start=data_start,
        data_end=table,
    )
    _check_regions(tables)
    return tables


def _read(path: Path, content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(content) < count * dtype.itemsize:
        raise FailureError(f"{path} ends inside its tables; write it again")
    return np.frombuffer(content, dtype, count)


def _read_allocations(path: Path, file: IO[bytes], regions: int) -> list[np.ndarray]:
    """The columns of the allocation table, uint64 (regions,): sample_id, ptr, size.

    In blocks, which stay in the processor's cache; memory for all rows would cost its page faults.
    """
    columns = [np.empty(regions, np.uint64) for _ in ALLOCATION.fields or ()]
    block = np.empty(BLOCK, ALLOCATION)
    for begin in range(0, regions, BLOCK):
        rows = block[: regions - begin]
        if file.readinto(rows.view(np.uint8)) != rows.nbytes:  # type: ignore[attr-defined]
            raise FailureError(f"{path} ends inside its tables; write it again")
        for column, name in zip(columns, ALLOCATION.names or (), strict=True):
            column[begin : begin + len(rows)] = rows[name]
    return columns


def _check_header(path: Path, header: np.void, size: int) -> None:
    page_size, table = int(header["page_size"]), int(header["alloc_table_ptr"])
    if header["version"] != VERSION or page_size == 0 or page_size & (page_size - 1):
        raise FailureError(f"{path} is no .beton file of version {VERSION}")
    if header["num_fields"] == 0:
        raise FailureError(f"{path} has no fields; write it again")
    if table == 0:
        raise FailureError(f"{path}: its writing was not finished; write it again")
    if table > size or (size - table) % ALLOCATION.itemsize:
        raise FailureError(f"{path} was cut short, or something was added to it; write it again")


def _describe(field: np.void) -> FieldInfo:
    name = bytes(field["name"]).rstrip(b"\0").decode("ascii", "replace")
    return FieldInfo(name, int(field["type_id"]), bytes(field["arguments"]))


def _row_type(path: Path, fields: tuple[FieldInfo, ...], rows: Rows) -> np.dtype:
    """The type of the metadata: FFCV's, but for the columns' names."""
    types: dict[str, np.dtype] = {}
    for field in fields:
        if field.name in types:  # FFCV cuts them to 16 bytes
            raise FailureError(f"{path} has two fields with the name {field.name}")
        try:
            own = rows.get(field.name)
            types[field.name] = own(field.arguments) if own else _row_of(field)
        except FailureError as error:
            raise UnknownFieldError(f"{path}, field {field.name}: {error}") from error
    return np.dtype(list(types.items()), align=True)


def _row_of(field: FieldInfo) -> np.dtype:
    if field.type_id == OTHER_TYPE and field.form:
        return FORM_ROW
    if field.type_id not in ROWS:
        raise FailureError(f"its type, {field.type_id}, is not known")
    return ROWS[field.type_id]


def _without_empty(
    path: Path, fields: tuple[FieldInfo, ...], metadata: np.ndarray, columns: list[np.ndarray]
) -> list[np.ndarray]:
    """The allocation table without the regions of empty bytes, which begin where others do."""
    empty = columns[2] == 0
    rows = [metadata[field.name] for field in fields]
    allowed = sum(int((row["size"] == 0).sum()) for row in rows if row.dtype == BYTES_ROW)
    if np.count_nonzero(empty) != allowed:
        raise FailureError(f"{path} is damaged: an empty region; write it again")
    return [column[~empty] for column in columns] if allowed else columns


def _check_regions(tables: Tables) -> None:
    """Raises FailureError where a region, or a sample's pointer, cannot be.

    In blocks: what numpy makes in between stays in the processor's cache.
    """
    counts: Counter[str] = Counter()
    for begin in range(0, len(tables.starts), BLOCK):
        for problem, found in _problems_of_regions(tables, begin).items():
            counts[problem] += int(np.count_nonzero(found))
    empty = tables.empty()
    for pointers in tables.pointers():
        ordered = np.array_equal(pointers, tables.starts)  # as one field in order has them
        for begin in range(0, len(pointers), BLOCK):
            lost = _lost(tables, pointers, begin, ordered=ordered) & ~empty[begin : begin + BLOCK]
            counts["a sample without its region"] += int(np.count_nonzero(lost))
    for problem, count in counts.items():
        if count:
            raise FailureError(f"{tables.path} is damaged: {problem} ({count}); write it again")


def _problems_of_regions(tables: Tables, begin: int) -> dict[str, np.ndarray]:
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


def _lost(tables: Tables, pointers: np.ndarray, begin: int, *, ordered: bool) -> np.ndarray:
    """Of a block of pointers, which do not lead to a region of their sample.

    Args:
        tables: of the file.
        pointers: (samples,) of a field.
        begin: of the block.
        ordered: whether they are the regions' starts, one by one.
    """
    block = pointers[begin : begin + BLOCK]
    numbers = np.arange(begin, begin + len(block), dtype=np.uint64)
    if ordered:
        return np.asarray(tables.samples[begin : begin + len(block)] != numbers)
    if len(tables.starts) == 0:
        return np.ones(len(block), bool)
    place = np.minimum(np.searchsorted(tables.starts, block), len(tables.starts) - 1)
    return np.asarray((tables.starts[place] != block) | (tables.samples[place] != numbers))
