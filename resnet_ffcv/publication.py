"""Several files get their names together: a .beton, its manifest, its pixel mean.

The new files wait under temporary names. A record, `.NAME.publishing`, lists the renames; once it
is there, they are decided, and whoever comes next completes them. So a kill at any moment leaves:

| record | files under their names | what `recover` does |
| --- | --- | --- |
| none | all old | removes the files that wait |
| of the files here | old, new or gone, never a new .beton with an old manifest | renames the rest |
| damaged, or of other files | unknown | removes the record and the files that wait |

Everything here is done under the lock of the folder.
"""

import errno
import os
import stat
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from resnet_ffcv.files import sync_folder, write_whole
from resnet_ffcv.opening import TEMPORARY, find_temporary, open_own

MAX_BYTES = 1 << 16  # of a record


@dataclass(frozen=True)
class Move:
    """A rename, by names in the folder. `size` in bytes and `modified` in ns know the file."""

    source: str
    target: str
    size: int
    modified: int


@dataclass(frozen=True)
class Record:
    """Renames, in their order; names of files that do not belong to the new ones."""

    moves: list[Move]
    gone: list[str]


def record_path(path: Path) -> Path:
    """Where the record is while `path` is published."""
    return path.with_name(f".{path.name}.publishing")


def is_under_way(path: Path) -> bool:
    """Whether a publication of `path` was decided and not completed."""
    return os.path.lexists(record_path(path))


def publish(moves: Sequence[tuple[Path, Path]], gone: Sequence[Path]) -> None:
    """Renames files that are on the disk, all or none.

    Args:
        moves: (where a file is, its name), in one folder; first the one that the others belong to,
            last the one without which it is refused. What had these names is replaced.
        gone: names of files that do not belong to the new ones.

    Raises:
        FailureError, OSError: as it was, or with `is_under_way` to be completed by `recover`.
    """
    path = moves[0][1]
    for target in [*(target for _, target in moves), *gone]:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    record = Record([_move(source, target) for source, target in moves], [p.name for p in gone])
    content = msgspec.json.encode(record)
    sealed = f"{zlib.crc32(content):08x} ".encode() + content
    try:
        write_whole(record_path(path), lambda file: file.write(sealed))
    except BaseException:  # Ctrl-C too, which may come after the rename
        record_path(path).unlink(missing_ok=True)
        raise
    try:
        _complete(path, record)
    except OSError:
        _complete(path, record)  # what fails again is left to `recover`
    except BaseException:
        _complete(path, record)
        raise


def _move(source: Path, target: Path) -> Move:
    found = source.stat()
    return Move(source.name, target.name, found.st_size, found.st_mtime_ns)


def _complete(path: Path, record: Record) -> None:
    """Does what is left of the renames; may be called again and again."""
    waiting = [move for move in record.moves if not _is_of(path.with_name(move.target), move)]
    # An old manifest must not be seen next to a new .beton.
    stale = [move.target for move in waiting if move.target != path.name]
    for name in (*stale, *record.gone):
        path.with_name(name).unlink(missing_ok=True)
    for move in waiting:
        os.replace(path.with_name(move.source), path.with_name(move.target))
    sync_folder(path.parent)
    record_path(path).unlink(missing_ok=True)


def recover(path: Path, kept: Path, others: Sequence[Path]) -> str:
    """Completes a publication that was broken off, and removes the temporary files of others.

    Args:
        path: the file, and `others` those that are published with it.
        kept: the name under which a file waits that is not temporary.

    Returns:
        What to tell about a record that was of no use, or nothing.

    Raises:
        UnsuitableFileError: in place of the record there is a link, or no regular file.
        OSError: the folder cannot be read, or a rename fails.
    """
    words = ""
    if is_under_way(path):
        record = _read(path)
        if record is not None and _fits(path, kept, others, record):
            _complete(path, record)
        else:
            words = f"{record_path(path)} did not match the files here and was removed"
            record_path(path).unlink()
    for file in (path, *others, record_path(path)):
        for leftover in find_temporary(file):
            leftover.unlink(missing_ok=True)
    return words


def _read(path: Path) -> Record | None:
    """The record; None where it is damaged or something else."""
    with os.fdopen(open_own(record_path(path), os.O_RDONLY), "rb") as file:
        content = file.read(MAX_BYTES)
    if content[:9] != f"{zlib.crc32(content[9:]):08x} ".encode():
        return None
    with suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(content[9:], type=Record)
    return None


def _fits(path: Path, kept: Path, others: Sequence[Path], record: Record) -> bool:
    """Whether each file waits, or has its name already, and no other file is touched."""
    allowed = {file.name for file in (path, *others)}
    targets = [move.target for move in record.moves]
    if not targets or targets[0] != path.name or not {*targets, *record.gone} <= allowed:
        return False
    for move in record.moves:
        named = TEMPORARY.fullmatch(move.source)
        ours = named and named["name"] == move.target
        if not ours and (move.source, move.target) != (kept.name, path.name):
            return False
        places = (path.with_name(name) for name in (move.source, move.target))
        if not any(_is_of(place, move) for place in places):
            return False
        if path.with_name(move.target).is_dir():
            return False
    return True


def _is_of(place: Path, move: Move) -> bool:
    """Whether the file of a move is at this place."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    known = (found.st_size, found.st_mtime_ns) == (move.size, move.modified)
    return known and stat.S_ISREG(found.st_mode)
