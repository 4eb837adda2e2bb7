"""Folders that nobody else can change, as code that is loaded from one requires."""

import os
import pwd
import stat
from pathlib import Path

from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import UnsuitableFileError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: str | os.PathLike[str]) -> Path:
    """Makes a folder with mode 0700, and its missing parents; returns its path without links.

    Like ssh's StrictModes, it takes only what nobody else can change: the folder must belong to
    this user; each folder above it, and each link on the way, to this user or root, and nobody else
    may write there. A sticky folder such as /tmp may be above, as others cannot touch our entries.

    Raises:
        FailureError: somebody else can change it; says who, and how to mend it.
        OSError: it cannot be made.
    """
    user = os.geteuid()
    # Whoever owns / can do anything. It need not look like root, as in a container of a user's own.
    trusted = {0, user, os.lstat("/").st_uid}
    path = Path(os.path.abspath(folder))
    for part in (*path.parents[::-1], path):
        if part.is_symlink() and (owner := part.lstat().st_uid) not in trusted:
            raise FailureError(f"{part} is a link that belongs to {_name(owner)}")
    path = Path(os.path.realpath(path))
    # From / downwards: once nobody else can change a folder, what was found in it stays true.
    for part in (*path.parents[::-1], path):
        found = _make(part)
        owner, mode = found.st_uid, stat.S_IMODE(found.st_mode)
        if owner not in trusted or (part == path and owner != user):
            raise FailureError(f"{part} belongs to {_name(owner)}")
        if mode & OTHERS_WRITE and (part == path or not mode & stat.S_ISVTX):
            raise FailureError(
                f"others may write to {part} (owner {_name(owner)}, mode {mode:04o}); "
                f"`chmod go-w {part}` forbids it"
            )
    if mode & 0o777 != stat.S_IRWXU:
        path.chmod(stat.S_IRWXU)
    return path


def _make(folder: Path) -> os.stat_result:
    try:
        found = folder.lstat()
    except FileNotFoundError:
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsuitableFileError(folder, "is not a folder")
    return found


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
