"""That no region differs from what its row says, whatever numbers a file holds.

Files of every kind of field are packed by hand, then numbers in them are changed: each is refused
by name, or a plain loop over its bytes finds every region as its row says.
"""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import betons
import numpy as np
import pytest
from betons import ARRAY, BYTES, FLOAT, INT, JSON, OURS, PAGE, RGB, TENSOR
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ffcv import sizes
from resnet_ffcv.beton import (
    BYTES_ROW,
    FORM_ROW,
    RGB_ROW,
    FieldInfo,
    UnknownFieldError,
    read_image_tables,
    read_tables,
)
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels.dct import count_all_groups
from resnet_ffcv.kernels.yuv420 import yuv420_bytes
from resnet_ffcv.progress import Report
from resnet_ffcv.verify import verify

ARGUMENTS = {
    ARRAY: betons.array_arguments((2, 3), b'[["", "<f4"]]'),
    TENSOR: betons.array_arguments((5,), b'[["", "|b1"]]'),
}
DCT, YUV420 = betons.form_arguments(b"dct"), betons.form_arguments(b"yuv420", quality=100)
NUMBERS = (0, 1, 2, 7, 24, 101, 255, PAGE, 2**16 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def yuv420_size(height: int, width: int, colour: int) -> int:
    return height * width + 2 * colour * (-(-height // 2)) * (-(-width // 2)) + 32


def dct_groups(height: int, width: int, colour: int) -> int:
    luma = -(-height // 32) * -(-width // 64)
    half = -(-((height + 1) // 2) // 32) * -(-((width + 1) // 2) // 64)
    return luma + 2 * colour * half


@st.composite
def samples_of(
    draw: st.DrawFn, kind: int, arguments: bytes
) -> tuple[tuple[float, ...], int | None]:
    """(a row's numbers, the size of its region) as an honest writer has them."""
    side, size = st.integers(1, 70), draw(st.integers(1, 60))
    height, width = draw(side) % 12 + 1, draw(side) % 12 + 1
    if kind in (FLOAT, INT):
        return (draw(st.integers(0, 9)),), None
    if kind in (BYTES, JSON):
        size = draw(st.integers(0, 40))
        return (size,), size
    if kind == ARRAY:
        return (), 24
    if kind == TENSOR:
        return (), 5
    if kind == RGB:
        return draw(
            st.sampled_from([((0, width, height), size), ((1, width, height), 3 * height * width)])
        )
    colour = draw(st.integers(0, 1))
    exact = yuv420_size(height, width, colour)
    size = exact if arguments == YUV420 else 5 * dct_groups(height, width, colour) + size
    return (height, width, colour, 0), size


@st.composite
def files(draw: st.DrawFn) -> tuple[list[betons.Field], bytearray]:
    kinds = draw(st.lists(st.sampled_from(list(betons.ROW_FORMATS)), min_size=1, max_size=4))
    fields = []
    for number, kind in enumerate(kinds):
        arguments = (
            draw(st.sampled_from([DCT, YUV420])) if kind == OURS else ARGUMENTS.get(kind, b"")
        )
        fields.append((f"field {number}".encode(), kind, arguments))
    rows = st.tuples(*(samples_of(kind, arguments) for _, kind, arguments in fields))
    samples = draw(st.lists(rows, min_size=1, max_size=5))
    return fields, betons.pack_file(fields, [list(row) for row in samples])


def expected_size(kind: int, arguments: bytes, row: tuple[Any, ...]) -> tuple[int, int]:
    """(pointer, size) that a row says; size -1 where it may be any."""
    if kind in (BYTES, JSON):
        return row
    if kind in (ARRAY, TENSOR):
        shape = [n for n in struct.unpack_from("<32Q", arguments) if n]
        text = arguments[264:][: struct.unpack_from("<Q", arguments, 256)[0]]
        ((_, dtype),) = json.loads(text)
        return row[0], int(np.dtype(dtype).itemsize) * int(np.prod(shape, dtype=object))
    if kind == RGB:
        mode, width, height, pointer = row
        assert mode in (0, 1)
        assert min(width, height) > 0
        return pointer, 3 * width * height if mode else -1
    height, width, colour, table, pointer = row
    assert colour in (0, 1)
    assert table == 0
    assert min(width, height) > 0
    if arguments.startswith(b"yuv420\0\0"):
        return pointer, yuv420_size(height, width, colour)
    return pointer, -5 * dct_groups(height, width, colour)  # at least


def check_by_hand(content: bytes) -> None:
    """Every region lies in a page of its own file, belongs to its row and has its row's size."""
    version, count, page, samples, end = struct.unpack_from("<HHIQQ", content)
    assert version == 2
    assert samples > 0
    fields = [struct.unpack_from("<B16s1024s", content, 24 + 1041 * i) for i in range(count)]
    offsets, row_bytes = betons.row_layout([kind for kind, _, _ in fields])
    rows = 24 + 1041 * count
    first = -(-(rows + samples * row_bytes) // page) * page
    table = [struct.unpack_from("<QQQ", content, place) for place in range(end, len(content), 24)]
    filled = sorted((pointer, size, sample) for sample, pointer, size in table if size)
    limits = [*(pointer for pointer, _, _ in filled), end][1:] if filled else []
    for (pointer, size, sample), following in zip(filled, limits, strict=True):
        assert first <= pointer < pointer + size <= following
        assert pointer // page == (pointer + size - 1) // page
        assert sample < samples
    found = {(sample, pointer): size for pointer, size, sample in filled}
    for sample in range(samples):
        for (kind, _, arguments), offset in zip(fields, offsets, strict=True):
            if kind not in (FLOAT, INT):
                place = rows + sample * row_bytes + offset
                row = struct.unpack_from(betons.ROW_FORMATS[kind], content, place)
                pointer, size = expected_size(kind, arguments, row)
                if size < 0:
                    assert found[sample, pointer] >= -size
                elif size or kind not in (BYTES, JSON):
                    assert found[sample, pointer] == size


def open_or_refuse(path: Path, content: bytes) -> bool:
    """Whether a file is accepted; nothing but FailureError may come out."""
    path.write_bytes(content)
    with contextlib.suppress(FailureError):
        verify(path, Report())
        tables = read_tables(path)
        for field in tables.fields:
            rows = tables.metadata[field.name]
            if rows.dtype == BYTES_ROW:
                assert not rows["ptr"][rows["size"] == 0].any()
        return True
    return False


@settings(max_examples=100, deadline=None)
@given(file=files())
def test_honest_files_of_all_fields_open(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[list[betons.Field], bytearray]
) -> None:
    _, content = file
    check_by_hand(bytes(content))
    assert open_or_refuse(tmp_path_factory.getbasetemp() / "honest.beton", bytes(content))


@settings(max_examples=250, deadline=None)
@given(file=files(), data=st.data())
def test_what_is_accepted_is_as_its_rows_say(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[list[betons.Field], bytearray],
    data: st.DataObject,
) -> None:
    fields, content = file
    (end,) = struct.unpack_from("<Q", content, 16)
    samples = struct.unpack_from("<Q", content, 8)[0]
    rows = 24 + 1041 * len(fields)
    row_bytes = betons.row_layout([kind for _, kind, _ in fields])[1]
    parts = [(0, 24), (24, rows), (rows, rows + samples * row_bytes), (end, len(content))]
    for _ in range(data.draw(st.integers(1, 3))):
        begin, stop = data.draw(st.sampled_from([part for part in parts if part[0] < part[1]]))
        place = data.draw(st.integers(begin, stop - 1))
        if data.draw(st.booleans()):
            content[place] = (content[place] + data.draw(st.sampled_from([1, 255, 3, 128]))) % 256
            continue
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        number = data.draw(st.sampled_from(NUMBERS) | st.integers(0, len(content))) % 256**width
        content[place : place + width] = number.to_bytes(width, "little")[: len(content) - place]
    if open_or_refuse(tmp_path_factory.getbasetemp() / "changed.beton", bytes(content)):
        check_by_hand(bytes(content))


# One lie a case: fields, the row's numbers but for the pointer, the region's size.
LIES: dict[str, tuple[int, bytes, tuple[int, ...], int]] = {
    "longer bytes": (BYTES, b"", (8,), 3000),
    "shorter bytes": (BYTES, b"", (3000,), 8),
    "bytes of 2^63": (BYTES, b"", (2**63,), 8),
    "longer JSON": (JSON, b"", (8,), 3000),
    "a longer array": (ARRAY, ARGUMENTS[ARRAY], (), 25),
    "a shorter array": (ARRAY, ARGUMENTS[ARRAY], (), 23),
    "a longer tensor": (TENSOR, ARGUMENTS[TENSOR], (), 500),
    "a longer raw image": (RGB, b"", (1, 4, 4), 49),
    "a shorter raw image": (RGB, b"", (1, 400, 400), 48),
    "an image of a third mode": (RGB, b"", (2, 4, 4), 48),
    "a JPEG without pixels": (RGB, b"", (0, 0, 4), 48),
    "a longer yuv420 image": (OURS, YUV420, (4, 4, 1, 0), 57),
    "a yuv420 image of colour 2": (OURS, YUV420, (4, 4, 2, 0), 56),
    "a shorter dct image": (OURS, DCT, (64, 64, 1, 0), 19),
    "a dct image of a second table": (OURS, DCT, (4, 4, 0, 1), 20),
    "a dct image without pixels": (OURS, DCT, (0, 4, 0, 0), 20),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_row_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    kind, arguments, row, size = LIES[lie]
    path = tmp_path / "x.beton"
    path.write_bytes(betons.pack_file([(b"x", kind, arguments)], [[(row, size)]]))
    with pytest.raises(FailureError, match="field x: a region that does not fit its row"):
        read_tables(path)
    assert not verify(path, Report()).whole


def with_empty_bytes() -> bytearray:
    """Two samples of a raw image and bytes; the second's bytes are empty."""
    fields = [(b"image", RGB, b""), (b"note", BYTES, b"")]
    image = ((1, 4, 4), 48)
    return betons.pack_file(fields, [[image, ((4,), 4)], [image, ((0,), 0)]])


def test_empty_bytes_excuse_no_other_field_and_lead_nowhere(tmp_path: Path) -> None:
    path, content = tmp_path / "x.beton", with_empty_bytes()
    first = betons.first_page([RGB, BYTES], 2)
    second, bytes_ = 24 + 2 * 1041 + 29, 24 + 2 * 1041 + 29 + 13
    for pointer in (0, first, first + 48, 2**64 - 4096):
        struct.pack_into("<Q", content, bytes_, pointer)
        path.write_bytes(content)
        assert read_tables(path).metadata["note"].tolist() == [(first + 48, 4), (0, 0)]
    struct.pack_into("<Q", content, second + 5, first)  # the first sample's image
    path.write_bytes(content)
    with pytest.raises(FailureError, match="a sample without its region"):
        read_tables(path)


def test_two_fields_of_a_sample_do_not_share_a_region(tmp_path: Path) -> None:
    path, image = tmp_path / "x.beton", ((1, 4, 4), 48)
    content = betons.pack_file([(b"image", RGB, b""), (b"mask", RGB, b"")], [[image, image]])
    path.write_bytes(content)
    read_tables(path)
    first, row = betons.first_page([RGB, RGB], 1), 24 + 2 * 1041
    struct.pack_into("<Q", content, row + 13 + 5, first)  # the mask's pointer: to the image
    path.write_bytes(content)
    with pytest.raises(FailureError, match="two fields with one region"):
        read_tables(path)


UNFIT_ARRAYS = {
    "no JSON": (b"\xff\xfe", (2,)),
    "deep JSON": (b"[" * 700, (2,)),
    "an object": (b'[["", "|O"]]', (2,)),
    "two columns": (b'[["a", "<f4"], ["b", "<f4"]]', (2,)),
    "a named column": (b'[["a", "<f4"]]', (2,)),
    "a subarray": (b'[["", "<f4", [3]]]', (2,)),
    "Python": (b'[["", "(1,)f4, f4"]]', (2,)),
    "no such type": (b'[["", "<f3"]]', (2,)),
    "no bytes": (b'[["", "|S0"]]', (2,)),
    "all zeros": (b'[["", "<f4"]]', ()),
    "a zero": (b'[["", "<f4"]]', (2, 0, 3)),
    "2^64 bytes": (b'[["", "<f4"]]', (2**31, 2**31)),
    "2^66 bytes, which is 4 in 64 bits": (b'[["", "<f4"]]', (2**32 + 1, 2**32 - 1)),
}


@pytest.mark.parametrize("case", UNFIT_ARRAYS)
def test_arguments_of_no_array_are_named(tmp_path: Path, case: str) -> None:
    description, shape = UNFIT_ARRAYS[case]
    arguments = betons.array_arguments(shape, description)
    path = tmp_path / "x.beton"
    for kind in (ARRAY, TENSOR):
        path.write_bytes(betons.pack_file([(b"x", kind, arguments)], [[((), 8)]]))
        with pytest.raises(FailureError, match=r"field x: .*its arrays") as error:
            read_tables(path)
        assert not isinstance(error.value, UnknownFieldError)


@pytest.mark.parametrize("length", [0, 761, 2**64 - 1])
def test_a_dtype_of_no_possible_length_is_named(length: int) -> None:
    arguments = bytearray(ARGUMENTS[ARRAY].ljust(1024, b"\0"))
    arguments[256:264] = length.to_bytes(8, "little")
    with pytest.raises(FailureError, match=f"1 to 760 bytes, got {length:,}"):
        sizes.read_array(bytes(arguments))


def test_arrays_are_read_as_ffcv_reads_them() -> None:
    from ffcv.fields import NDArrayField

    for name in ("<f4", ">f8", "|b1", "<i2", "|u1", "<c16", "|S7", "<U3", "|V12", "<f2", "<M8[ns]"):
        written = NDArrayField(np.dtype(name), (3, 1, 7)).to_binary().tobytes()
        read = NDArrayField.from_binary(np.frombuffer(written, np.uint8))
        assert sizes.read_array(written) == (read.dtype, read.shape) == (np.dtype(name), (3, 1, 7))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 65_535) | st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 127, 65_535]),
    width=st.integers(1, 65_535) | st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 129, 65_535]),
    colour=st.integers(0, 1),
)
def test_sizes_are_those_of_the_kernels(height: int, width: int, colour: int) -> None:
    rows = np.array([(height, width, colour, 0, 0)], FORM_ROW)
    size = yuv420_bytes(height, width, colour)
    assert sizes.form_bounds(b"yuv420\0\0", rows) == (size, size)
    assert sizes.form_bounds(b"dct", rows)[0] == 5 * count_all_groups(height, width, colour)
    raw, jpeg = np.array([(1, width, height, 0), (0, width, height, 0)], RGB_ROW)[:, None]
    assert sizes.rgb_bounds(raw) == (3 * height * width,) * 2
    assert sizes.rgb_bounds(jpeg) == (1, 2**64 - 1)


def test_fields_of_unknown_classes_may_have_any_size() -> None:
    rows = np.zeros(3, FORM_ROW)
    assert FieldInfo("x", OURS, b"theirs".ljust(1024, b"\0")).size_bounds(rows) == (1, 2**64 - 1)
    with pytest.raises(UnknownFieldError, match="its class is not known"):
        _ = FieldInfo("x", OURS, b"theirs".ljust(1024, b"\0")).form


def test_impossible_qualities_and_sides_are_named_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    for form in (b"dct", b"yuv420"):
        for quality, side in ((0, 0), (101, 0), (255, 0), (90, 65_536)):
            arguments = betons.form_arguments(form, 1, quality, side)
            fields = [(b"image", OURS, arguments), (b"label", INT, b"")]
            path.write_bytes(betons.pack_file(fields, [[((1, 1, 0, 0), 33), ((0,), None)]]))
            with pytest.raises(FailureError, match=r"its (quality|max_resolution) must be"):
                read_image_tables(path)
            (problem,) = verify(path, Report(), decode=True).problems
            assert "field image: its" in problem
