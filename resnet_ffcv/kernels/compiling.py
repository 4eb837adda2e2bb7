"""How kernels are compiled, and where the machine code is kept.

numba's own cache notices another CPU and a changed function, but not a changed function of another
file: it would serve old machine code. So ours lies in a folder named by a hash of all that made it.
"""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import event
from numba.core.registry import cpu_target

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


def choose_cache_folder() -> Path:
    """RESNET_FFCV_CACHE or the user's cache folder; a temporary one where it cannot be written.

    Machine code is loaded from it: a temporary folder that is another user's is not taken.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    base = Path(os.environ.get("RESNET_FFCV_CACHE") or Path(home) / "resnet_ffcv")
    name = f"kernels-{sources_digest()}"
    try:
        (base / name).mkdir(parents=True, exist_ok=True)
        if os.access(base / name, os.W_OK):
            return base / name
    except OSError:
        pass
    shared = Path(tempfile.gettempdir()) / f"resnet_ffcv-{os.getuid()}"
    try:
        shared.mkdir(mode=0o700, exist_ok=True)
        found = shared.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not found.st_mode & 0o077
        ):
            return shared / name
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="resnet_ffcv-")) / name


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
    earlier = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(CACHE)  # read when the dispatcher is made, below
    try:
        options = {"nogil": True, "error_model": "numpy", "cache": True, "parallel": parallel}
        compiled = numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = earlier
    setattr(compiled, MARKER, True)
    return compiled


class _Announcer(event.Listener):  # type: ignore[misc]  # numba has no types
    """Says once that kernels are being compiled, so that a first start is not taken for a hang."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said and hasattr(event.data["dispatcher"], MARKER):
            self.said = True
            logger.warning(
                "compiling image kernels for this CPU, for a minute or more; they are kept for the "
                "next start"
            )

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcer())
