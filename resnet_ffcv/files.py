"""Files that appear whole or not at all."""

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import create_file, open_regular, temporary_path


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a file that appears as `path` when it is complete and on the disk.

    Raises:
        FailureError: the disk is full, or the folder cannot be written to; nothing is left.
    """
    part = temporary_path(path, "part")
    try:
        write_new(part, write)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise FailureError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()


def write_new(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a new file at `path`, which is on the disk afterwards.

    Raises:
        OSError: as `create_file` and `write`; the file may be there in part.
    """
    with os.fdopen(create_file(path), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def bypass_cache(handle: int) -> None:
    """Makes an open file skip the page cache, where the file system supports that.

    Large blocks would take longer to pass through it than to encode, and push out what others keep
    in it; and what is read back would come from it, not from the disk.
    """
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _use_cache(handle: int, error: OSError) -> None:
    """Ends `bypass_cache`, which refused a call by `error`; raises any other error."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
        raise error
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def write_at(handle: int, content: memoryview, offset: int) -> None:
    """Writes a buffer whole.

    To bypass the cache, its address, size and offset must be multiples of the disk's blocks; where
    they are not, it is written through the cache.
    """
    while content:
        try:
            count = os.pwrite(handle, content, offset)
        except OSError as error:
            _use_cache(handle, error)
            continue
        content, offset = content[count:], offset + count


def read_blocks(path: Path, size: int) -> Iterator[memoryview]:
    """A file in blocks of `size` bytes, a power of two of at least 4,096; the last may be shorter.

    A block is valid until the next one, which is read in the meantime.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    file = open_regular(path)
    handle = file.fileno()
    bypass_cache(handle)
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
        file.close()


def _read_at(handle: int, buffer: memoryview, offset: int) -> memoryview:
    """Fills the buffer from `offset` on; returns the part that the file had bytes for."""
    filled = 0
    while filled < len(buffer):
        try:
            count = os.preadv(handle, [buffer[filled:]], offset + filled)
        except OSError as error:
            _use_cache(handle, error)
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
