"""One process at a time in a folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

from resnet_ffcv.errors import FailureError

LOCK_NAME = ".lock"  # only where the file system does not support flock
# What such file systems answer; EBADF is NFS's, which would need the folder open for writing.
NOT_SUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


@contextmanager
def lock_folder(folder: Path, busy: str) -> Iterator[None]:
    """Holds `folder` exclusively; the lock ends with the process, however that ends.

    The lock is flock on the folder itself, which leaves nothing behind. Some network file systems
    lack it; there, a file `.lock` names the holder, and counts no more once that process is gone
    from this machine.

    Args:
        folder: an existing folder.
        busy: the error's text if another process holds it.

    Raises:
        FailureError: another process holds it, or it cannot be locked.
    """
    with ExitStack() as held:
        try:
            _acquire(folder, busy, held)
        except OSError as error:
            reason = error.strerror or error
            raise FailureError(f"{folder} cannot be locked: {reason}") from error
        yield


def _acquire(folder: Path, busy: str, held: ExitStack) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FailureError(busy) from error
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        path = folder / LOCK_NAME
        try:
            held.enter_context(SoftFileLock(path, timeout=0))
        except Timeout as held_by_another:
            raise FailureError(
                f"{busy} ({path} says so; remove it if that process is gone)"
            ) from held_by_another
