"""A folder has one holder at a time, on file systems with flock and without it."""

import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from resnet_ffcv.errors import FailureError
from resnet_ffcv.locks import LOCK_NAME, lock_folder


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def _flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock as it is here, or as file systems answer that lack it."""
    if request.param is not None:

        def refuse(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_flock")
def test_a_folder_is_held_once_and_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path, "busy"):
            with pytest.raises(FailureError, match="busy"), lock_folder(tmp_path, "busy"):
                pass
            (tmp_path / "other").mkdir(exist_ok=True)
            with lock_folder(tmp_path / "other", "busy"):
                pass
        assert not (tmp_path / LOCK_NAME).exists()


def test_other_errors_of_the_file_system_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(FailureError, match="cannot be locked: Input/output error"),
        lock_folder(tmp_path, "busy"),
    ):
        pass
    with (
        pytest.raises(FailureError, match="none cannot be locked: No such file"),
        lock_folder(tmp_path / "none", "busy"),
    ):
        pass


def _hold(folder: Path, said: "multiprocessing.connection.Connection") -> None:
    with lock_folder(folder, "busy"):
        said.send(True)
        signal.pause()


@pytest.mark.usefixtures("_flock")
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # it inherits how flock answers
    ours, its = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, its))
    process.start()
    assert ours.recv()
    with pytest.raises(FailureError, match="busy"), lock_folder(tmp_path, "busy"):
        pass
    process.kill()
    process.join()
    with lock_folder(tmp_path, "busy"):
        pass
