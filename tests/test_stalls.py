"""A long wait for a disk is reported."""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_ffcv import stalls
from resnet_ffcv.stalls import StallWatch, read_sleep


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[threading.Thread]:
    """A thread in the state D, as one that waits for a disk is.

    The C library's posix_spawn waits in vfork, which is in that state, until the child starts its
    program; this child first has to open a pipe to which nobody writes.
    """
    libc, pipe = ctypes.CDLL(None), tmp_path / "pipe"
    os.mkfifo(pipe)

    def wait() -> None:
        actions = ctypes.create_string_buffer(512)
        libc.posix_spawn_file_actions_init(actions)
        libc.posix_spawn_file_actions_addopen(actions, 9, os.fsencode(pipe), os.O_RDONLY, 0)
        arguments = (ctypes.c_char_p * 2)(b"true", None)
        pid = ctypes.c_int()
        libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, arguments, None)
        os.waitpid(pid.value, 0)

    thread = threading.Thread(target=wait)
    thread.start()
    yield thread
    writer = os.open(pipe, os.O_RDWR)
    thread.join(10)
    os.close(writer)
    assert not thread.is_alive()


def test_a_wait_in_one_call_is_reported_when_it_is_long_and_when_it_has_doubled(
    waiting: threading.Thread, caplog: pytest.LogCaptureFixture
) -> None:
    end = time.monotonic() + 10
    while read_sleep(waiting.native_id or 0) is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    watch = StallWatch(waiting)
    with caplog.at_level(logging.WARNING):
        for now in range(0, 130, 5):
            watch.look(float(now))
    assert [record.getMessage().split(" for a disk")[0] for record in caplog.records] == [
        "waiting for 30 s", "waiting for 60 s", "waiting for 120 s"
    ]  # fmt: skip


def test_a_thread_that_sleeps_or_runs_is_not_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = StallWatch()
    for now in range(0, 130, 5):
        watch.look(float(now))
    counts = iter(range(100))  # always in D, but of other calls
    monkeypatch.setattr(stalls, "read_sleep", lambda _: next(counts))
    for now in range(0, 130, 5):
        watch.look(float(now))
    assert not caplog.records
