"""How kernels are compiled, and where the machine code is kept.

numba's cache notices another CPU and a changed function, but not a changed function of another
file: it would load old machine code. So ours is in a folder named by a hash of all that made it.
Folders of earlier versions stay: other installations may use them.
"""

import hashlib
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import event
from numba.core.registry import cpu_target

from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels.sealing import SealedCache
from resnet_ffcv.private import make_private

Function = TypeVar("Function", bound=Callable[..., Any])

logger = logging.getLogger("resnet_ffcv")

MARKER = "__resnet_ffcv_kernel__"


def target() -> tuple[str, str, str]:
    """(triple, CPU, features) that numba compiles for; NUMBA_CPU_NAME is respected."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, cpu, features


def sources_digest() -> str:
    """Hash of the sources of all kernels, the compiler's version and its target."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((numba.__version__, llvmlite.__version__, target())).encode())
    return digest.hexdigest()[:16]


def choose_cache_folder() -> Path | None:
    """A folder for machine code that nobody but this user can change.

    It is in RESNET_FFCV_CACHE or the user's cache folder; where that cannot be, in a folder of the
    user's among the temporary ones; None where neither can, and nothing is kept.
    """
    name, chosen = f"kernels-{sources_digest()}", _chosen_folder()
    try:
        return _make_folder(chosen, name)
    except (OSError, FailureError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.errno:
            reason = f"{error.filename}: {error.strerror}"
    try:
        folder = _make_folder(f"{tempfile.gettempdir()}/resnet_ffcv-{os.geteuid()}", name)
    except (OSError, FailureError):
        folder = None
    if multiprocessing.parent_process() is None:  # else the parent has said it
        logger.warning(
            "compiled kernels are not kept in %s: %s; %s; RESNET_FFCV_CACHE can name a folder "
            "that only you can change",
            chosen,
            reason,
            f"{folder} is used instead" if folder else "each start compiles them again",
        )
    return folder


def _chosen_folder() -> str:
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    return os.environ.get("RESNET_FFCV_CACHE") or f"{home}/resnet_ffcv"


def _make_folder(base: str, name: str) -> Path:
    if base.startswith("~"):  # there is no home
        raise FailureError("this user has no home folder")
    folder = make_private(Path(base, name))
    if not os.access(folder, os.W_OK):
        raise FailureError(f"{folder} cannot be written")
    return folder


CACHE = choose_cache_folder()


def kernel(function: Function) -> Function:
    """Decorator: compiled at the first call, without the GIL, checks of bounds or fast-math."""
    compiled: Function = _compile(function, parallel=False)
    return compiled


def inlined_kernel(function: Function) -> Function:
    """`kernel` that becomes a part of its caller, not one more function that is compiled together
    with all that it calls, which takes seconds for large ones.
    """
    inlined: Function = numba.njit(nogil=True, error_model="numpy", inline="always")(function)
    return inlined


def threaded_kernel(function: Function) -> Function:
    """`kernel`, but `numba.prange` in it runs on numba's threads."""
    compiled: Function = _compile(function, parallel=True)
    return compiled


def _compile(function: Function, parallel: bool) -> Any:
    compiled = numba.njit(nogil=True, error_model="numpy", parallel=parallel)(function)
    if CACHE:
        compiled._cache = SealedCache(function, CACHE)  # numba's own: njit(cache=True)
    setattr(compiled, MARKER, True)
    return compiled


class _Announcer(event.Listener):  # type: ignore[misc]  # numba has no types
    """Says once that kernels are being compiled, so that a first start is not taken for a hang."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said and hasattr(event.data["dispatcher"], MARKER):
            self.said = True
            kept = "they are kept for the next start" if CACHE else "the next start does so again"
            logger.warning("compiling image kernels for this CPU, for a minute or more; %s", kept)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcer())


class _StoppedError(BaseException):  # numba would take an Exception for its own
    """Nobody wants the kernel any more."""


class _Stopper(event.Listener):  # type: ignore[misc]
    """Raises _StoppedError before numba's next step in the thread that made this."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over, self.thread = is_over, get_ident()

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if get_ident() == self.thread and self.is_over():
            raise _StoppedError

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def compiling_until(is_over: Callable[[], bool]) -> Iterator[None]:
    """Leaves the context early if this thread compiles a kernel in it when `is_over()`.

    Compiling all kernels takes a minute, each of numba's steps a few seconds at most. A kernel that
    was given up is compiled at its next call.
    """
    try:
        with event.install_listener("numba:run_pass", _Stopper(is_over)):
            yield
    except _StoppedError:
        pass
