"""numba's cache of machine code, with a checksum in front of each file.

numba unpickles whatever it finds and runs the machine code inside. Here a file is unpickled only if
it is what was written: one that is cut, changed, unfinished or unreadable counts as missing, and
its kernel is compiled again.
"""

import functools
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler import CompileResult

from resnet_ffcv.opening import create_file, read_file, temporary_path

logger = logging.getLogger("resnet_ffcv")

LIMIT = 1 << 26  # bytes of a file; the largest kernels take about one megabyte
SEAL_BYTES = hashlib.sha256().digest_size


class SealedFiles(IndexDataCacheFile):  # type: ignore[misc]  # numba has no types
    """The index of one function, signature -> data file, and its data files.

    A seal also covers the names of file and folder, so that a copy elsewhere counts as missing. An
    entry repeats its signature: two processes that compile at once may give two signatures the same
    data file, as neither waits for the other.
    """

    def load(self, key: Any) -> Any:
        stored, data = super().load(key) or (None, None)
        return data if stored == key else None

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def _load_index(self) -> dict[Any, str]:
        stamp, overloads = self._load_data(self._index_name) or (None, {})
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._save_data(self._index_name, (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        with suppress(OSError):
            content = read_file(self._data_path(name), LIMIT)
            seal, pickled = content[:SEAL_BYTES], content[SEAL_BYTES:]
            if seal == self._seal(name, pickled):
                return pickle.loads(pickled)
        return None

    def _save_data(self, name: str, data: Any) -> None:
        path, pickled = Path(self._data_path(name)), self._dump(data)
        unfinished = temporary_path(path, "part")
        try:
            with open(create_file(unfinished, mode=0o600), "wb") as file:
                file.write(self._seal(name, pickled) + pickled)
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise

    def _seal(self, name: str, pickled: bytes) -> bytes:
        place = os.path.join(os.path.basename(self._cache_path), name)
        return hashlib.sha256(os.fsencode(place) + b"\0" + pickled).digest()


class SealedCache(FunctionCache):  # type: ignore[misc]  # numba has no types
    """Keeps the machine code of one function in a folder; see numba's class.

    Nothing that goes wrong in the folder is an error: without it, the function is compiled.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        code, version = function.__code__, sys.version_info
        name = f"{Path(code.co_filename).stem}.{function.__qualname__}-{code.co_firstlineno}"
        name += f".py{version.major}{version.minor}{sys.abiflags}"
        self._py_func = function
        self._cache_path = str(folder)
        self._cache_file = SealedFiles(self._cache_path, name, _hash_file(code.co_filename))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        try:
            data = self._cache_file.load(self._index_key(sig, target_context.codegen()))
            return None if data is None else CompileResult._rebuild(target_context, *data)
        except Exception as error:  # such as a class that another version of NumPy lacks
            logger.info("%s is compiled again: %r", self._py_func.__qualname__, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if data.lifted or data.library.has_dynamic_globals:  # numba cannot load these again
            return
        try:
            self._cache_file.save(self._index_key(sig, data.codegen), data._reduce())
        except OSError as error:
            _warn_unkept(self._cache_path, error.strerror or str(error))


@functools.cache
def _hash_file(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


@functools.cache
def _warn_unkept(folder: str, reason: str) -> None:
    """Once for each reason, not for each kernel."""
    logger.warning(
        "compiled kernels cannot be kept in %s: %s; the next start compiles them again; "
        "RESNET_FFCV_CACHE names another folder",
        folder,
        reason,
    )
