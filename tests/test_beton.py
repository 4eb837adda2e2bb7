"""The format's tables, against files packed by hand and by FFCV itself."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import betons
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ffcv import beton
from resnet_ffcv.errors import FailureError

PAGE = 4096


def pack(images: list[bytes], page: int = PAGE) -> bytearray:
    """A file of JPEG regions by `struct` alone: sample i has width 10 + i, height 20, label -i."""
    first = -(-(24 + 2 * 1041 + 24 * len(images)) // page) * page
    data, pointers = bytearray(), []
    for image in images:
        if len(data) % page + len(image) > page:
            data += bytes(-len(data) % page)
        pointers.append(first + len(data))
        data += image
    data += bytes(-len(data) % page)
    head = struct.pack("<HHIQQ", 2, 2, page, len(images), first + len(data))
    for kind, name in ((2, b"image"), (1, b"label")):
        head += struct.pack("<B16s1024x", kind, name)
    for place, pointer in enumerate(pointers):
        head += struct.pack("<BHHQ3xq", 0, 10 + place, 20, pointer, -place)
    table = b"".join(
        struct.pack("<QQQ", place, pointer, len(image))
        for place, (pointer, image) in enumerate(zip(pointers, images, strict=True))
    )
    return bytearray(head + bytes(first - len(head)) + data + table)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, PAGE), min_size=1, max_size=40))
def test_every_region_is_found(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    images = [bytes([1 + place % 250]) * size for place, size in enumerate(sizes)]
    path = tmp_path_factory.getbasetemp() / "packed.beton"
    path.write_bytes(pack(images))
    tables = beton.read_image_tables(path)
    content = path.read_bytes()
    found = [
        content[start : start + size]
        for start, size in (tables.region(place) for place in range(len(images)))
    ]
    assert found == images
    assert tables.metadata["label"].tolist() == [-place for place in range(len(images))]
    assert tables.metadata["image"]["width"].tolist() == [10 + p for p in range(len(images))]


def test_a_file_by_ffcv_itself(tmp_path: Path) -> None:
    path = tmp_path / "stock.beton"
    program = f"""if 1:
        import numpy as np
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
        class Images:
            def __len__(self): return 30
            def __getitem__(self, i): return np.full((8, 9, 3), i, np.uint8), i * 7
        fields = {{"image": RGBImageField(write_mode="raw"), "label": IntField()}}
        DatasetWriter({str(path)!r}, fields, num_workers=1).from_indexed_dataset(Images())
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50, capture_output=True)
    tables = beton.read_image_tables(path)
    content = path.read_bytes()
    assert tables.metadata["label"].tolist() == [7 * place for place in range(30)]
    for place in range(30):
        start, size = tables.region(place)
        assert content[start : start + size] == bytes([place]) * (8 * 9 * 3)
    assert bytes(beton.describe_fields(None)) == content[24 : 24 + 2 * 1041]


# Offsets in the file below: the first row of the table, its columns, the first metadata row.
IMAGES = [b"a" * 4000, b"b" * 90, b"c" * 3000]
FIRST, METADATA = PAGE, 24 + 2 * 1041
TABLE = FIRST + 2 * PAGE


def put(form: str, offset: int, value: int):  # type: ignore[no-untyped-def]
    return lambda content: struct.pack_into(form, content, offset, value)


DAMAGE = {
    "unfinished": (put("<Q", 16, 0), "its writing was not finished"),
    "another version": (put("<H", 0, 3), "no .beton file of version 2"),
    "page size": (put("<I", 4, 3000), "no .beton file"),
    "more samples than bytes": (put("<Q", 8, 2**60), "header is damaged"),
    "table beyond the end": (put("<Q", 16, 2**40), "cut short"),
    "fields": (put("<B", 24 + 1, ord("I")), "has the fields Image, label"),
    "field type": (put("<B", 24, 1), "has 3 regions, it must have 0"),
    "unknown type": (put("<B", 24, 77), "field image: its type, 77, is not known"),
    "unknown form": (put("<B", 24, 255), "its class is not known"),
    "three fields": (put("<H", 2, 3), "is damaged"),
    "10 bytes cut": (lambda content: content.__delitem__(slice(-10, None)), "cut short"),
    "a row cut": (lambda content: content.__delitem__(slice(-24, None)), "has 2 regions"),
    "a row added": (lambda content: content.extend(bytes(24)), "has 4 regions, it must have 3"),
    "region before the pages": (put("<Q", TABLE + 8, 100), "a region outside the pages"),
    "region behind the pages": (put("<Q", TABLE + 24 + 8, TABLE), "a region outside the pages"),
    "region beyond 2**63": (put("<Q", TABLE + 8, 2**64 - 5), "a region outside the pages"),
    "size of 2**63": (put("<Q", TABLE + 16, 2**63 - 1), "is damaged"),
    "empty region": (put("<Q", TABLE + 24 + 16, 0), "an empty region"),
    "across a page": (put("<Q", TABLE + 24 + 16, 200), "across a page's end"),
    "overlap": (put("<Q", TABLE + 16, 4050), "overlapping regions"),
    "no such sample": (put("<Q", TABLE, 3), "a region of no sample"),
    "another sample's region": (put("<Q", METADATA + 5 + 24, FIRST), "a sample without its region"),
    "a region of another": (put("<Q", TABLE, 1), "a sample without its region"),
    "pointer of nothing": (put("<Q", METADATA + 5, FIRST + 1), "a sample without its region"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    content = pack(IMAGES)
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    beton.read_image_tables(path)  # whole as yet
    damage, words = DAMAGE[kind]
    damage(content)
    path.write_bytes(content)
    with pytest.raises(FailureError, match=words) as error:
        beton.read_image_tables(path)
    assert str(path) in str(error.value)


def test_no_shorter_file_opens(tmp_path: Path) -> None:
    content = pack(IMAGES)
    path = tmp_path / "x.beton"
    borders = {0, 24, 24 + 1041, METADATA, FIRST, FIRST + PAGE, TABLE, len(content)}
    cuts = {border + step for border in borders for step in (-25, -24, -1, 0, 1, 24)}
    for cut in sorted(c for c in cuts if 0 <= c < len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(FailureError):
            beton.read_image_tables(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"gone\.beton: No such file"):
        beton.read_image_tables(tmp_path / "gone.beton")


def test_names_of_fields_are_printable_ascii_of_one_to_sixteen_letters(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    for name in (b"a", b"a b", b"x" * 16, b"~"):
        path.write_bytes(betons.pack_file([(name, betons.INT, b"")], [[((3,), None)]]))
        (field,) = beton.read_tables(path).fields
        assert field.name == name.decode()
    for name in (b"", b"\0a", b"a\0b", b"\x1b[31m", b"\xe9", b"a\nb", b"\x7f", b"\xff" * 16):
        path.write_bytes(betons.pack_file([(name, betons.INT, b"")], [[((3,), None)]]))
        with pytest.raises(FailureError, match="field 0 has the name b'") as error:
            beton.read_tables(path)
        assert str(error.value).isprintable()


def test_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    fields = [(b"a", betons.INT, b""), (b"a", betons.FLOAT, b"")]
    (tmp_path / "x.beton").write_bytes(betons.pack_file(fields, [[((3,), None), ((3,), None)]]))
    with pytest.raises(FailureError, match="two fields with the name a"):
        beton.read_tables(tmp_path / "x.beton")


def test_more_fields_than_can_be_read_are_named(tmp_path: Path) -> None:
    def packed(count: int) -> bytes:
        fields = [(str(number).encode(), betons.INT, b"") for number in range(count)]
        return bytes(betons.pack_file(fields, [[((3,), None)] * count]))

    path = tmp_path / "x.beton"
    path.write_bytes(packed(beton.MAX_FIELDS))
    assert len(beton.read_tables(path).fields) == 1_000
    path.write_bytes(packed(beton.MAX_FIELDS + 1))
    with pytest.raises(FailureError, match="has 1,001 fields, at most 1,000"):
        beton.read_tables(path)


@pytest.mark.parametrize("page", [0, 1, 2048, 4095, 4097, 2**31 + 4096, 2**32 - 1])
def test_absurd_sizes_of_pages_are_refused(tmp_path: Path, page: int) -> None:
    content = pack(IMAGES)
    struct.pack_into("<I", content, 4, page)
    (tmp_path / "x.beton").write_bytes(content)
    with pytest.raises(FailureError, match=r"no \.beton file"):
        beton.read_tables(tmp_path / "x.beton")


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    for fields in ([(b"x", betons.INT, b"")], [(b"x", betons.BYTES, b"")]):
        (tmp_path / "x.beton").write_bytes(betons.pack_file(fields, []))
        with pytest.raises(FailureError, match="it has no samples"):
            beton.read_tables(tmp_path / "x.beton")


def test_tables_beyond_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, samples = tmp_path / "sparse.beton", 2**40  # 8 TB of rows, of holes
    content = betons.pack_file([(b"x", betons.INT, b"")], [[((3,), None)]])
    struct.pack_into("<QQ", content, 8, samples, 2**43 + 4096)
    with path.open("wb") as file:
        file.write(content[:PAGE])
        file.truncate(2**43 + 4096)
    with pytest.raises(FailureError, match=r"its tables need 8,796\.1 GB of memory"):
        beton.read_tables(path)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(beton, "check_regions", fail)
    path.write_bytes(pack(IMAGES))
    with pytest.raises(FailureError, match=r"its tables need 0\.0 GB of memory"):
        beton.read_tables(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.beton"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/")):
        with pytest.raises(FailureError, match=f"{path}: is not a regular file"):
            beton.read_tables(path)
