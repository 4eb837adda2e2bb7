"""Opening files whose names others can foresee or whose content others wrote.

A name that can be foreseen may be a link somebody left there; a path from a manifest, a recipe or a
folder of images may be a pipe that never ends. So every file that is written is opened by
`create_file` or `open_own`, and every small file that is read whole by `read_file`.
"""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

from resnet_ffcv.errors import FailureError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>part|new)", re.DOTALL)


class UnsuitableFileError(OSError):
    """The path leads to something other than the plain file it should be; `strerror` says what."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(None, reason, os.fspath(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def create_file(path: Path, flags: int = os.O_WRONLY, mode: int = 0o666) -> int:
    """Opens a new file; what had its name, a link included, is removed first. Returns the handle.

    Raises:
        OSError: as `os.open`; FileExistsError where somebody else makes one at the same moment.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_own(path: Path, flags: int) -> int:
    """Opens a file that this program wrote earlier, to read, change or append. Returns the handle.

    Raises:
        UnsuitableFileError: a link, a file with a second name elsewhere, or no regular file.
        OSError: as `os.open`.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        if path.is_symlink():
            raise UnsuitableFileError(path, "is a symbolic link") from None
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise UnsuitableFileError(path, "is not a regular file")
        if found.st_nlink > 1:
            raise UnsuitableFileError(path, "has a second name (a hard link)")
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file, or a link to one, to read; never waits for a pipe or a device.

    Raises:
        UnsuitableFileError: no regular file.
        OSError: as `open`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UnsuitableFileError(path, "is not a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UnsuitableFileError: no regular file, or a larger one.
        OSError: as `open` and `read`.
    """
    with open_regular(path) as file:
        # Not `limit` at once: Python asks for that much memory before it reads.
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= limit else b""
        if len(content) > size:  # it grew, or is of /proc, where no size is known
            content += file.read(limit + 1 - len(content))
    if max(size, len(content)) > limit:
        raise UnsuitableFileError(path, f"has more than {limit:,} bytes")
    return content


def temporary_path(path: Path, kind: str) -> Path:
    """A hidden name next to `path` that nobody can foresee, for a file on its way to that name.

    Args:
        kind: part (being written) or new (waits for its name).
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def find_temporary(path: Path) -> list[Path]:
    """The regular files that `temporary_path(path, ...)` has named, as a killed process leaves
    them, and temporary files of these. Whoever removes them must hold the lock of their folder."""
    found = []
    for entry in os.scandir(path.parent):
        name = entry.name
        while named := TEMPORARY.fullmatch(name):
            name = named["name"]
        if name == path.name != entry.name and entry.is_file(follow_symlinks=False):
            found.append(path.with_name(entry.name))
    return sorted(found)


def refuse_links_out(folder: Path) -> None:
    """Raises FailureError if a link anywhere in `folder` leads out of it, or a part is unreadable.

    A folder from somebody else may hold links to files of the user, which would be overwritten.
    """

    def refuse(error: OSError) -> NoReturn:
        raise FailureError(f"{error.filename} cannot be read: {error.strerror}") from error

    root = folder.resolve()
    for place, folders, files in os.walk(folder, onerror=refuse):
        for name in (*folders, *files):
            path = Path(place, name)
            # Not path.resolve(), which raises RuntimeError at a link to itself.
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise FailureError(
                    f"{path} is a link that leads out of {folder}; replace it by what it leads to"
                )
