"""Folders that nobody else can change: what is taken, tried against what another user can do."""

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ffcv.errors import FailureError
from resnet_ffcv.private import make_private

ME, OTHER, GROUP = 23456, 12345, 34567  # GROUP is of both

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")


@contextmanager
def user(number: int) -> Iterator[None]:
    """This process as another user, for file permissions."""
    earlier = os.getgroups()
    os.setgroups([])
    os.setegid(GROUP)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(earlier)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's that everybody may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077, 0o777])
def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    earlier = os.umask(mask)
    try:
        if mask == 0o777 and os.geteuid() != 0:
            (tmp_path / "a").mkdir()
            (tmp_path / "a").chmod(0o700)
        made = make_private(tmp_path / "a" / "b")
    finally:
        os.umask(earlier)
    assert made == tmp_path / "a" / "b"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert not (tmp_path / "a").stat().st_mode & 0o077
    assert make_private(made) == made


def test_a_folder_that_others_may_read_is_closed(tmp_path: Path) -> None:
    tmp_path.joinpath("a").mkdir(mode=0o755)
    made = make_private(tmp_path / "a")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_says_how_to_mend_it(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(mode)
    owner = pwd.getpwuid(os.geteuid()).pw_name
    words = f"others may write to {folder} .owner {owner}, mode {mode:04o}.; `chmod go-w {folder}`"
    with pytest.raises(FailureError, match=words):
        make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    if mode & stat.S_ISVTX:
        assert make_private(folder / "b") == folder / "b"
    else:
        with pytest.raises(FailureError, match=words):
            make_private(folder / "b" / "c")
        assert not (folder / "b").exists()


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(FailureError, match=f"belongs to {pwd.getpwuid(real).pw_name}"):
        make_private(tmp_path)


def test_links_of_ones_own_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert make_private(tmp_path / "link" / "a") == tmp_path / "there" / "a"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "there" / "link").symlink_to(tmp_path / "open")
    with pytest.raises(FailureError, match=f"others may write to {tmp_path / 'open'}"):
        make_private(tmp_path / "link" / "link")


@pytest.mark.parametrize("kind", ["file", "pipe", "dangling", "loop"])
def test_what_is_no_folder_is_an_oserror(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    {
        "file": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to(tmp_path / "file" / "x"),
        "loop": lambda: path.symlink_to(path),
    }[kind]()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=kind if kind != "dangling" else "file"):
        make_private(path / "a")


@as_root
def test_a_link_of_somebody_else_is_refused(open_folder: Path) -> None:
    target, link = open_folder / "target", open_folder / "link"
    target.mkdir(mode=0o755)
    os.chown(target, ME, GROUP)
    link.symlink_to(target)
    with user(ME):
        assert make_private(link / "a") == target / "a"  # root's link
    os.lchown(link, OTHER, GROUP)
    with (
        user(ME),
        pytest.raises(FailureError, match=f"link is a link that belongs to user {OTHER}"),
    ):
        make_private(link / "b")


owners = st.sampled_from([0, ME, ME, OTHER])
modes = st.sampled_from([0o700, 0o711, 0o755, 0o775, 0o777, 0o1777, 0o1775])


@as_root
@given(st.lists(st.tuples(owners, modes), min_size=1, max_size=4))
@settings(max_examples=150)
def test_nobody_else_can_change_what_is_taken(parts: list[tuple[int, int]]) -> None:
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        root.chmod(0o755)
        place, made = root, []
        for number, (owner, mode) in enumerate(parts):
            place = place / str(number)
            place.mkdir()
            place.chmod(mode)
            os.chown(place, owner, GROUP)
            made.append(place)
        with user(ME):
            try:
                taken = make_private(place / "a" / "b")
            except (FailureError, PermissionError):
                return
        made += [taken.parent, taken]
        with user(OTHER):
            for place in made[::-1]:
                for change in (  # a sticky folder above may get files, which nobody looks for
                    lambda _: (taken / "planted").touch(),
                    lambda place: place.rename(place.with_name("moved")),
                    lambda place: place.chmod(0o777),
                ):
                    with suppress(PermissionError):
                        change(place)
                        pytest.fail(f"{place} was changed")
    finally:
        shutil.rmtree(root)


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777, 0o1777])
def test_who_came_first_to_a_shared_folder_changes_nothing(open_folder: Path, mode: int) -> None:
    open_folder.chmod(0o1777)
    planted = open_folder / "kernels"
    planted.mkdir()
    planted.chmod(mode)
    os.chown(planted, OTHER, GROUP)
    for path in (planted, planted / "a"):
        with user(ME), pytest.raises((FailureError, PermissionError), match="kernels"):
            make_private(path)
