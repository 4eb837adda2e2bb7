"""Links, pipes, devices and files that are too large are refused at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole
from resnet_ffcv.opening import (
    UnsuitableFileError,
    create_file,
    find_temporary,
    open_own,
    open_regular,
    read_file,
    refuse_links_out,
    temporary_path,
)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_new_file_replaces_a_link_and_leaves_its_target_alone(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    make(victim, path)
    os.close(create_file(path))
    assert victim.read_text() == "mine"
    assert path.stat().st_ino != victim.stat().st_ino


@pytest.mark.parametrize("make", [os.symlink, os.link])
@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_APPEND, os.O_RDWR, os.O_RDONLY])
def test_a_file_of_ours_is_not_opened_through_a_link(
    tmp_path: Path, make: Callable[[Path, Path], None], flags: int
) -> None:
    (tmp_path / "victim").write_text("mine")
    make(tmp_path / "victim", tmp_path / "file")
    with pytest.raises(UnsuitableFileError, match="link"):
        open_own(tmp_path / "file", flags)


def test_a_file_of_ours_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one ")
    with os.fdopen(open_own(tmp_path / "file", os.O_WRONLY | os.O_APPEND), "a") as file:
        file.write("two")
    assert (tmp_path / "file").read_text() == "one two"


@pytest.mark.parametrize("open_it", [open_regular, lambda path: open_own(path, os.O_RDONLY)])
def test_what_is_no_file_is_refused_without_waiting(
    tmp_path: Path, open_it: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UnsuitableFileError, match="is not a regular file"):
            open_it(path)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(UnsuitableFileError, match="file has more than 4 bytes"):
        read_file(path, 4)
    os.truncate(path, 1 << 42)  # a sparse file of 4 TB
    with pytest.raises(UnsuitableFileError, match="more than 5 bytes"):
        read_file(path, 5)


def test_handles_of_refused_files_are_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(UnsuitableFileError):
            open_regular(tmp_path / "pipe")
        with pytest.raises(UnsuitableFileError):
            open_own(tmp_path / "pipe", os.O_RDONLY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_temporary_files_are_known_by_their_whole_name(tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    ours = [temporary_path(path, kind) for kind in ("part", "new")]
    for file in ours:
        file.touch()
    for name in (
        ".train.beton.part", ".train.beton.old", ".train.beton-2.0123456789abcdef.part",
        ".train.beton.0123456789ABCDEF.part", ".train.beton.0123456789abcdef.bak",
        ".train.beton.json.0123456789abcdef.part",
    ):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / ".train.beton.0000000000000000.part").mkdir()
    (tmp_path / ".train.beton.0000000000000000.new").symlink_to(path)
    assert find_temporary(path) == sorted(ours)


def test_two_writes_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write_outer(file: object) -> None:
        write_whole(path, lambda inner: inner.write(b"inner"))
        file.write(b"outer")  # type: ignore[attr-defined]

    write_whole(path, write_outer)
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_which_links_may_hide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "hidden").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "hidden":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root
    with pytest.raises(FailureError, match="hidden cannot be read: Permission denied"):
        refuse_links_out(tmp_path / "run")


def test_only_links_that_lead_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best").symlink_to("last")
    (run / "gone").symlink_to("nothing")
    (run / "loop").symlink_to("loop")
    refuse_links_out(run)
    for target in ("../../victim", str(tmp_path / "victim"), "../../run2", "/etc"):
        link = run / "checkpoints" / "link"
        link.symlink_to(target)
        with pytest.raises(FailureError, match="link is a link that leads out of"):
            refuse_links_out(run)
        link.unlink()
