"""A disk that is full, as /dev/full is: what is said, and that nothing is left; blocks of files."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_ffcv import files
from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import bypass_cache, read_blocks, write_at, write_whole
from resnet_ffcv.runs import Run


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it: from then on there is no room for new files."""
    return lambda: monkeypatch.setattr(
        files, "create_file", lambda _: os.open("/dev/full", os.O_WRONLY)
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    path = tmp_path / "figures"
    write_whole(path, lambda file: file.write(b"1 2 3"))
    fill_disk()
    with pytest.raises(FailureError, match="figures could not be written: No space left on device"):
        write_whole(path, lambda file: file.write(b"4 5 6"))
    assert path.read_bytes() == b"1 2 3"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_and_the_log_say_that_the_disk_is_full(
    tmp_path: Path, fill_disk: Callable[[], None]
) -> None:
    run = Run(tmp_path, [])
    fill_disk()
    with pytest.raises(FailureError, match="last could not be written: No space left on device"):
        run.save_checkpoint("last", {"weights": torch.zeros(100_000)})
    assert run.last_checkpoint is None
    with pytest.raises(FailureError, match=r"log\.jsonl could not be written: No space left"):
        run.log({"epoch": 1, "step": 1})


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 12287, 3 * 4096])
def test_blocks_are_the_files_bytes(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    blocks = [bytes(block) for block in read_blocks(tmp_path / "file", 4096)]
    assert b"".join(blocks) == content
    assert all(len(block) == 4096 for block in blocks[:-1])


@pytest.mark.parametrize("direct", [True, False])
def test_what_the_disk_takes_in_blocks_alone_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)  # as where a file system knows no such thing
    handle = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    bypass_cache(handle)
    page = memoryview(mmap.mmap(-1, 8192))
    page[:] = os.urandom(8192)
    write_at(handle, page, 0)
    write_at(handle, page[1:100], 8192)  # neither address nor size is of a block
    os.close(handle)
    assert (tmp_path / "file").read_bytes() == bytes(page) + bytes(page[1:100])


def test_a_write_that_stops_halfway_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, content, at: pwrite(handle, content[:4096], at)
    )
    handle = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    bypass_cache(handle)
    page = memoryview(mmap.mmap(-1, 5 * 4096))
    page[:] = os.urandom(5 * 4096)
    write_at(handle, page, 0)
    os.close(handle)
    assert (tmp_path / "file").read_bytes() == bytes(page)
