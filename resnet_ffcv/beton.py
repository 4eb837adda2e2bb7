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

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import open_regular
from resnet_ffcv.regions import BLOCK, check_regions
from resnet_ffcv.sizes import ANY_SIZE, Bounds, form_bounds, read_array, rgb_bounds

VERSION = 2
DEFAULT_PAGE_SIZE = 1 << 23  # FFCV's
MIN_PAGE_SIZE = 1 << 12  # of memory and disks; FFCV's least is 2^21
MAX_PAGE_SIZE = 1 << 31  # a power of two that fits the header's 32 bits
MAX_FIELDS = 1_000
MAX_SIDE = 65_535  # pixels, the metadata's 16 bits
# What decoding one image may ask for unless told otherwise: pixels, and bytes for the thread.
MAX_PIXELS, MAX_MEMORY = 1 << 28, 1 << 30

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


class UnknownFieldError(FailureError):
    """A field is neither FFCV's nor ours, and nobody said what it is."""


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
        UnknownFieldError: they are another field's.
        FailureError: they are of a later version, or say what no writer does.
    """
    values = np.frombuffer(arguments, ARGUMENTS, 1)[0]
    form = bytes(values["form"]).decode("ascii", "replace")
    if form not in FORMS:
        raise UnknownFieldError(f"its class is not known here (form {form!r})")
    if values["version"] != FORM_VERSION:
        raise FailureError(
            f"the {form} form has version {values['version']}, this program knows {FORM_VERSION}; "
            "use a later one"
        )
    if not 1 <= values["quality"] <= 100:
        raise FailureError(f"its quality must be 1 to 100, got {values['quality']}")
    if values["max_resolution"] > MAX_SIDE:
        raise FailureError(
            f"its max_resolution must be at most {MAX_SIDE:,}, got {values['max_resolution']:,}"
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
            FailureError: a field that neither FFCV nor this program knows.
        """
        if self.type_id == RGB_TYPE:
            return "rgb"
        if self.type_id == OTHER_TYPE:
            return bytes(read_arguments(self.arguments)["form"]).decode()
        return None

    def pointers(self, rows: np.ndarray) -> np.ndarray | None:
        """uint64 (samples,), where the data of each begins; None of a field without data.

        A field that neither FFCV nor this program knows has data if its row names it `ptr` or
        `data_ptr`.
        """
        if self.type_id in ARRAY_TYPES and rows.dtype == ROWS[self.type_id]:
            return rows
        names = rows.dtype.names or ()
        name = next((name for name in ("data_ptr", "ptr") if name in names), None)
        return None if name is None else np.asarray(rows[name])

    def size_bounds(self, rows: np.ndarray) -> Bounds:
        """(least, greatest) number of bytes that the data of `rows` can have: uint64, (rows,) or
        one for all. The least is 0 for empty bytes, and for them alone.
        """
        if rows.dtype == BYTES_ROW:
            return rows["size"], rows["size"]
        if self.type_id == RGB_TYPE:  # a class of its own may have other channels in such a row
            return rgb_bounds(rows)
        if self.type_id in ARRAY_TYPES and rows.dtype == ROWS[self.type_id]:
            dtype, shape = read_array(self.arguments)
            return (np.uint64(dtype.itemsize * math.prod(shape)),) * 2
        if rows.dtype == FORM_ROW and self.type_id == OTHER_TYPE:
            return form_bounds(self.arguments[: ARGUMENTS["form"].itemsize], rows)
        return ANY_SIZE


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

    def stored(self) -> list[tuple[FieldInfo, np.ndarray]]:
        """The fields that have data, and uint64 (samples,), where each sample's begins.

        Pointers of empty bytes, which have no region, are 0.
        """
        found = []
        for field in self.fields:
            pointers = field.pointers(self.metadata[field.name])
            if pointers is not None:
                found.append((field, pointers))
        return found

    def pointers(self) -> list[np.ndarray]:
        """The pointers of `stored`."""
        return [pointers for _, pointers in self.stored()]


def read_image_tables(path: Path) -> Tables:
    """read_tables, of a file with the fields `image` (RGB, dct or yuv420) and `label` (int)."""
    tables = read_tables(path)
    fields = tables.fields
    names = tuple(field.name for field in fields)
    if names != NAMES or fields[0].form is None or fields[1].type_id != INT_TYPE:
        more = ", ..." * (len(names) > 5)
        raise FailureError(
            f"{path} has the fields {', '.join(names[:5])}{more}; it must have image (RGB, dct or "
            "yuv420) and label (int)"
        )
    return tables


def read_tables(path: Path, rows: Rows | None = None) -> Tables:
    """Reads and checks the tables of a file.

    Checks that the write was finished, that every region lies within the pages and none across a
    page's end or another region, that every sample has its regions, and that each region has as
    many bytes as the sample's row and the field's arguments say, where they do.

    Args:
        path: of the file.
        rows: gives the metadata's type from a field's arguments, by the name of the field; of
            fields that are neither FFCV's nor ours.

    Raises:
        UnknownFieldError: a field that is neither FFCV's nor ours, and not in `rows`.
        FailureError: no regular file, no samples, a damaged file, or one whose tables do not fit
            into memory; says what is wrong.
    """
    try:
        with open_regular(path) as file:
            head = _read_head(path, file, rows or {})
            try:
                return _read_rows(path, file, head)
            except MemoryError as error:
                raise _too_large(path, head) from error
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class _Head:
    """What a file says of its tables, checked against the file's size."""

    found: os.stat_result
    page_size: int
    fields: tuple[FieldInfo, ...]
    row: np.dtype
    samples: int
    regions: int
    metadata_end: int
    table: int  # its offset

    @property
    def memory(self) -> int:
        """Bytes that the tables take at least."""
        return self.samples * self.row.itemsize + self.regions * ALLOCATION.itemsize


def _read_head(path: Path, file: IO[bytes], rows: Rows) -> _Head:
    found = os.fstat(file.fileno())
    header = _read(path, file.read(HEADER.itemsize), HEADER, 1)[0]
    _check_header(path, header, found.st_size)
    samples, count = int(header["num_samples"]), int(header["num_fields"])
    described = _read(path, file.read(count * FIELD.itemsize), FIELD, count)
    fields = tuple(_describe(path, number, field) for number, field in enumerate(described))
    row, table = _row_type(path, fields, rows), int(header["alloc_table_ptr"])
    head = _Head(
        found=found,
        page_size=int(header["page_size"]),
        fields=fields,
        row=row,
        samples=samples,
        regions=(found.st_size - table) // ALLOCATION.itemsize,
        metadata_end=HEADER.itemsize + count * FIELD.itemsize + samples * row.itemsize,
        table=table,
    )
    if head.metadata_end > table:
        raise FailureError(f"{path}: its header is damaged; write it again")
    _check_number_of_regions(path, head, rows)
    if head.memory > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise _too_large(path, head)  # Linux would promise the memory, and later kill the process
    return head


def _check_number_of_regions(path: Path, head: _Head, rows: Rows) -> None:
    """FFCV and we write one region for each field with data, of each sample."""
    if any(field.name in rows for field in head.fields):
        return  # those of a class that is not known here may have any number
    none = np.empty(0, head.row)
    count = sum(field.pointers(none[field.name]) is not None for field in head.fields)
    if head.regions != head.samples * count:
        raise FailureError(
            f"{path} is damaged: its allocation table has {head.regions:,} regions, it must have "
            f"{head.samples * count:,}; write it again"
        )


def _too_large(path: Path, head: _Head) -> FailureError:
    return FailureError(
        f"{path}: its tables need {head.memory / 1e9:,.1f} GB of memory, more than there is"
    )


def _read_rows(path: Path, file: IO[bytes], head: _Head) -> Tables:
    content = file.read(head.samples * head.row.itemsize)
    metadata = _read(path, content, head.row, head.samples)
    file.seek(head.table)
    columns = _read_allocations(path, file, head.regions)
    samples, starts, sizes = _without_empty(path, head.fields, metadata, columns)
    if not (starts[1:] >= starts[:-1]).all():  # FFCV's with two workers
        order = np.argsort(starts, kind="stable")
        samples, starts, sizes = samples[order], starts[order], sizes[order]
    tables = Tables(
        path=path,
        identity=identify(head.found),
        page_size=head.page_size,
        fields=head.fields,
        metadata=_clear_pointers(head.fields, metadata),
        starts=starts,
        sizes=sizes,
        samples=samples,
        data_start=-(-head.metadata_end // head.page_size) * head.page_size,
        data_end=head.table,
    )
    check_regions(tables)
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
    is_page_size = MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE and page_size.bit_count() == 1
    if header["version"] != VERSION or not is_page_size:
        raise FailureError(f"{path} is no .beton file of version {VERSION}")
    if header["num_fields"] == 0:
        raise FailureError(f"{path} has no fields; write it again")
    if header["num_fields"] > MAX_FIELDS:
        raise FailureError(
            f"{path} has {header['num_fields']:,} fields, at most {MAX_FIELDS:,} can be read"
        )
    if table == 0:
        raise FailureError(f"{path}: its writing was not finished; write it again")
    if table > size or (size - table) % ALLOCATION.itemsize:
        raise FailureError(f"{path} was cut short, or something was added to it; write it again")
    if header["num_samples"] == 0:
        raise FailureError(f"{path}: it has no samples; write it again")


def _describe(path: Path, number: int, field: np.void) -> FieldInfo:
    name = bytes(field["name"]).rstrip(b"\0")  # FFCV cuts it to 16 bytes
    if not name or not all(32 <= letter < 127 for letter in name):
        raise FailureError(
            f"{path} is damaged: field {number} has the name {name!r}; a name must have 1 to 16 "
            "printable ASCII characters"
        )
    return FieldInfo(name.decode(), int(field["type_id"]), bytes(field["arguments"]))


def _row_type(path: Path, fields: tuple[FieldInfo, ...], rows: Rows) -> np.dtype:
    """The type of the metadata: FFCV's, but for the columns' names."""
    types: dict[str, np.dtype] = {}
    for field in fields:
        if field.name in types:
            raise FailureError(f"{path} has two fields with the name {field.name}")
        try:
            own = rows.get(field.name)
            types[field.name] = own(field.arguments) if own else _row_of(field)
        except FailureError as error:
            raise type(error)(f"{path}, field {field.name}: {error}") from error
    return np.dtype(list(types.items()), align=True)


def _row_of(field: FieldInfo) -> np.dtype:
    if field.type_id == OTHER_TYPE and field.form:
        return FORM_ROW
    if field.type_id not in ROWS:
        raise UnknownFieldError(f"its type, {field.type_id}, is not known")
    if field.type_id in ARRAY_TYPES:
        read_array(field.arguments)  # checks them
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


def _clear_pointers(fields: tuple[FieldInfo, ...], metadata: np.ndarray) -> np.ndarray:
    """The metadata with 0 for the pointers of empty bytes.

    FFCV has them begin where another region does, or behind the file's end. Its decoders would copy
    that other region, of any size; where none begins they copy nothing.
    """
    for field in fields:
        if metadata.dtype[field.name] == BYTES_ROW:
            empty = metadata[field.name]["size"] == 0
            if metadata[field.name]["ptr"][empty].any():
                metadata = metadata if metadata.flags.writeable else metadata.copy()
                metadata[field.name]["ptr"][empty] = 0
    return metadata
