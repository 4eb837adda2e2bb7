"""Files that appear whole or not at all."""

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import create_file, temporary_path


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a file that appears as `path` when it is complete and on the disk.

    Raises:
        FailureError: the disk is full, or the folder cannot be written to; nothing is left.
    """
    part = temporary_path(path, "part")
    try:
        with os.fdopen(create_file(part), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise FailureError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()


def set_aside(path: Path) -> Path:
    """Where a file is while another gets its name."""
    return path.with_name(f".{path.name}.old")


def replace_all(moves: Sequence[tuple[Path, Path]], gone: Sequence[Path] = ()) -> None:
    """Gives files that are on the disk their names; what had these is removed, and so is `gone`.

    Where it fails, everything is as it was. After a kill between two steps the older files are
    where `set_aside` says, until the first of the new ones has its name.

    Args:
        moves: (where a file is, its name), in one folder.
        gone: names of files that do not belong to the new ones.
    """
    done: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        done.append((source, target))  # before: Ctrl-C may come right behind the system's call
        os.replace(source, target)

    names = [*(name for _, name in moves), *gone]
    try:
        for path in reversed(names):
            if path.exists():
                move(path, set_aside(path))
        for source, target in moves:
            move(source, target)
        sync_folder(moves[0][1].parent)
    except BaseException:  # Ctrl-C too
        for source, target in reversed(done):
            if not source.exists():  # it was moved
                os.replace(target, source)
        raise
    for path in names:
        set_aside(path).unlink(missing_ok=True)


def open_past_cache(path: Path, flags: int) -> int:
    """os.open, for large blocks that need not pass through the page cache.

    There they would cost more than to be encoded, and push out what others keep in it; and what is
    read back would come from it, not from the disk.
    """
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)  # the file system knows no other way


def _through_cache(handle: int, error: OSError) -> None:
    """From now on; where that was the way already, raises the error."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
        raise error
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def write_at(handle: int, content: memoryview, offset: int) -> None:
    """Writes a buffer whole.

    Past the cache, its address, size and offset are multiples of the disk's blocks; where that is
    not enough, the cache serves.
    """
    while content:
        try:
            count = os.pwrite(handle, content, offset)
        except OSError as error:
            _through_cache(handle, error)
            continue
        content, offset = content[count:], offset + count


def read_blocks(path: Path, size: int) -> Iterator[memoryview]:
    """A file in blocks of `size` bytes, a power of two from 4,096, the last as long as it is.

    A block is valid until the next one; that is read meanwhile.
    """
    handle = open_past_cache(path, os.O_RDONLY)
    buffers = [memoryview(mmap.mmap(-1, size)) for _ in range(2)]  # their addresses are multiples
    try:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(_read_at, handle, buffers[0], 0)
            for number in itertools.count(1):
                block = coming.result()
                is_last = len(block) < size
                if not is_last:
                    coming = reader.submit(_read_at, handle, buffers[number % 2], number * size)
                if block:
                    yield block
                if is_last:
                    return
    finally:
        os.close(handle)


def _read_at(handle: int, buffer: memoryview, offset: int) -> memoryview:
    """What the file has from `offset`, as much as fits."""
    filled = 0
    while filled < len(buffer):
        try:
            count = os.preadv(handle, [buffer[filled:]], offset + filled)
        except OSError as error:
            _through_cache(handle, error)
            continue
        if count == 0:
            break
        filled += count
    return buffer[:filled]


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
