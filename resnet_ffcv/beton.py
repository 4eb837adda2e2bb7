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
say its form.
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
        raise FailureError(f"its images lie in a form that is not known here: {form!r}")
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


@dataclass(frozen=True)
class Tables:
    """All of a file but its pages.

    `form` is that of the images: dct, yuv420, or rgb in FFCV's own field; `metadata` (samples,) of
    metadata_type, `allocations` (regions,) of ALLOCATION, sorted by `ptr`.
    """

    form: str
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
            form = _check_fields(path, fields)
            table = int(header["alloc_table_ptr"])
            if first_page(samples, int(header["page_size"])) > table:  # before so much is read
                raise FailureError(f"{path}: its header is damaged; write it again")
            row = metadata_type(RGB_ROW if form == "rgb" else FORM_ROW)
            metadata = _read(path, file.read(samples * row.itemsize), row, samples)
            file.seek(table)
            rows = (size - table) // ALLOCATION.itemsize
            allocations = _read(path, file.read(), ALLOCATION, rows)
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}") from error
    page_size = int(header["page_size"])
    allocations = allocations[np.argsort(allocations["ptr"], kind="stable")]
    tables = Tables(form, page_size, metadata, allocations, first_page(samples, page_size), table)
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


def _check_fields(path: Path, fields: np.ndarray) -> str:
    """The form of the images."""
    names = [bytes(field["name"]).rstrip(b"\0").decode("ascii", "replace") for field in fields]
    types = [int(field["type_id"]) for field in fields]
    if tuple(names) != NAMES or types not in ([RGB_TYPE, INT_TYPE], [OTHER_TYPE, INT_TYPE]):
        raise FailureError(
            f"{path} has the fields {', '.join(names)}; wanted are image (RGB, dct or yuv420) and "
            "label (int)"
        )
    if types[0] == RGB_TYPE:
        return "rgb"
    try:
        return bytes(read_arguments(bytes(fields[0]["arguments"]))["form"]).decode()
    except FailureError as error:
        raise FailureError(f"{path}: {error}") from error


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
