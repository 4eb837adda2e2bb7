"""Files that get their names together: whatever is found in place of a record, none is mixed."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv import publication
from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import UnsuitableFileError, temporary_path
from resnet_ffcv.publication import is_under_way, publish, record_path, recover


class Folder:
    """A .beton and its manifest, and others of the next write that wait."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.beton, self.manifest = folder / "a.beton", folder / "a.beton.json"
        self.kept, self.mean = folder / "a.beton.partial", folder / "a.beton.pixel_mean.npy"
        self.others = (self.mean, self.manifest)
        self.moves = []
        for path in (self.beton, self.manifest):
            path.write_text(f"old {path.name}")
            waiting = temporary_path(path, "new")
            waiting.write_text(f"newer {path.name}")
            self.moves.append((waiting, path))
        self.mean.write_text("of the old")

    def state(self) -> dict[str, str]:
        paths = (self.beton, *self.others)
        return {path.name: path.read_text().split()[0] for path in paths if path.exists()}

    def recover(self) -> str:
        words = recover(self.beton, self.kept, self.others)
        assert not is_under_way(self.beton)
        assert not [p for p in self.beton.parent.iterdir() if p.name.startswith(".")]
        return words


OLD = {"a.beton": "old", "a.beton.json": "old", "a.beton.pixel_mean.npy": "of"}
NEW = {"a.beton": "newer", "a.beton.json": "newer"}


def break_off(folder: Folder, monkeypatch: pytest.MonkeyPatch, call: int) -> bytes:
    """Publishes; the process "ends" at a rename or removal. Returns the record."""
    calls = 0

    def count(name: str) -> Callable[..., None]:
        original = getattr(os, name)

        def counted(*arguments: object, **options: object) -> None:
            nonlocal calls
            calls += 1
            if calls > call:
                raise OSError(5, "Input/output error")
            original(*arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(os, name, count(name))
        with pytest.raises((OSError, FailureError)):
            publish(folder.moves, [folder.mean])
    path = record_path(folder.beton)
    return path.read_bytes() if path.exists() else b""


def test_all_get_their_names(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    publish(folder.moves, [folder.mean])
    assert folder.state() == NEW
    assert folder.recover() == ""
    assert folder.state() == NEW


@pytest.mark.parametrize("call", range(8))
def test_what_is_broken_off_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    folder = Folder(tmp_path)
    record = break_off(folder, monkeypatch, call)
    state = folder.state()
    assert (state["a.beton"], state.get("a.beton.json", "gone")) != ("newer", "old")
    assert folder.recover() == ""
    assert folder.state() == (NEW if record else OLD)


@given(data=st.data())
def test_a_record_may_hold_anything(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Folder(tmp_path_factory.mktemp("folder"))
    with pytest.MonkeyPatch.context() as patched:
        record = break_off(folder, patched, 4)
    begin = data.draw(st.integers(0, len(record)))
    end = data.draw(st.integers(begin, len(record)))
    changed = record[:begin] + data.draw(st.binary(max_size=9)) + record[end:]
    before = folder.state()
    record_path(folder.beton).write_bytes(changed)
    words = folder.recover()
    assert folder.state() == (NEW if changed == record else before)
    assert bool(words) == (changed != record)


@pytest.mark.parametrize("source", ["../victim", "victim", "a.beton.json", ".a.beton.new"])
@pytest.mark.parametrize("target", ["a.beton", "a.beton.json", "../other", "other"])
def test_a_record_names_no_files_of_others(tmp_path: Path, source: str, target: str) -> None:
    folder = Folder(tmp_path / "folder")
    for place in ("victim", "folder/victim", "folder/.a.beton.new"):
        (tmp_path / place).write_text("mine")
    place = tmp_path / "folder" / source
    move = publication.Move(source, target, place.stat().st_size, place.stat().st_mtime_ns)
    write_record(folder, publication.Record([move], ["other"]))
    assert "did not match the files here" in publication.recover(
        folder.beton, folder.kept, folder.others
    )
    assert folder.state() == OLD
    for place in ("victim", "folder/victim", "folder/.a.beton.new"):
        assert (tmp_path / place).read_text() == "mine"


def write_record(folder: Folder, record: publication.Record) -> None:
    content = msgspec.json.encode(record)
    crc = publication.zlib.crc32(content)
    record_path(folder.beton).write_bytes(f"{crc:08x} ".encode() + content)


def test_a_file_that_was_lost_ends_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    assert break_off(folder, monkeypatch, 2)
    folder.moves[0][0].unlink()
    assert "did not match the files here" in folder.recover()
    assert folder.state() == OLD


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("a.beton")])
def test_what_is_no_file_is_no_record(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = Folder(tmp_path)
    make(record_path(folder.beton))
    with pytest.raises(UnsuitableFileError):
        recover(folder.beton, folder.kept, folder.others)
    assert folder.state() == OLD
