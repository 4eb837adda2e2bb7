"""A .beton in memory, as decoders are given it, and its reading ahead of them."""

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from resnet_ffcv.beton import Tables
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels import paging
from resnet_ffcv.stock import Compiler
from resnet_ffcv.threads import EpochThread

PROBES = 4  # samples of a batch, by which it is judged whether it lies in memory
BYTES_AHEAD = 1 << 28  # of samples' data that is asked for before it is decoded

State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Storage:
    """The mapped file of `tables`.

    The kernel's page cache holds it: several processes share it, and what is larger than memory is
    read again.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.handle = os.open(tables.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)
        found = os.fstat(self.handle)
        if (found.st_dev, found.st_ino) != tables.identity:
            raise FailureError(f"{tables.path} was replaced while it was opened; open it again")
        self.size = found.st_size
        mapping = mmap.mmap(self.handle, self.size, access=mmap.ACCESS_READ)
        self.file = np.frombuffer(mapping, np.uint8)
        self.address = self.file.ctypes.data

    def check(self) -> None:
        """Raises FailureError where the file became shorter: reading its mapping would end the
        process.
        """
        size = os.fstat(self.handle).st_size
        if size < self.size:
            raise FailureError(
                f"{self.tables.path} was cut to {size:,} of {self.size:,} bytes since it was opened"
            )

    def state(self, key: np.uint64) -> State:
        """What stages are given: the file (bytes,), regions' starts and sizes (FFCV's), and a key,
        uint64 (1,), of the epoch, to draw random numbers from."""
        return self.file, self.tables.starts, self.tables.sizes, np.array([key])

    @staticmethod
    def compile_reader() -> Callable[..., Any]:
        """`memory_read` of FFCV's own decoders: (pointer, state) -> a region's bytes, or none."""

        def read(pointer, state):  # type: ignore[no-untyped-def]
            place = np.searchsorted(state[1], pointer)
            if place == len(state[1]) or state[1][place] != pointer:
                return state[0][:0]
            return state[0][pointer : pointer + state[2][place]]

        compiled: Callable[..., Any] = Compiler.compile(read)
        return compiled


class ReadAhead:
    """Has the kernel read the batches to come while others are decoded.

    Each field's data is asked for by sample; for an order that keeps to few pages of the file at a
    time, by page. Batches that are in memory already cost next to nothing.
    """

    def __init__(
        self, storage: Storage, batches: Sequence[np.ndarray], *, by_page: bool, keep: bool
    ) -> None:
        self.storage, self.batches, self.by_page, self.keep = storage, batches, by_page, keep
        self.pointers = storage.tables.pointers()
        self.asked: np.ndarray = np.zeros(self._page(storage.size) + 1, bool)
        self.room: SimpleQueue[None] = SimpleQueue()  # an item for each batch it may ask for
        for _ in range(self._batches_ahead()):
            self.room.put(None)
        self.is_left = False
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.thread = EpochThread(self.ended)

    def __enter__(self) -> "ReadAhead":
        if self.pointers and len(self.batches):
            self.thread.start(self._run)
        return self

    def __exit__(self, *raised: object) -> None:
        self.is_left = True
        self.room.put(None)
        error = self.ended.get() if self.thread.has_begun else None
        if error is not None and raised[0] is None:
            raise error

    def decoded(self, batch: np.ndarray) -> None:
        """A batch was decoded: one more may be asked for, and without `keep` it is dropped."""
        self.room.put(None)
        if not self.keep:
            for starts, sizes in self._regions(batch):
                paging.drop(self.storage.handle, self.storage.address, starts, sizes)

    def _page(self, offset: Any) -> Any:
        return offset // self.storage.tables.page_size

    def _batches_ahead(self) -> int:
        tables = self.storage.tables
        samples, bytes_ = len(tables.metadata), int(tables.sizes.sum())
        batch = max((len(batch) for batch in self.batches), default=1)
        return int(np.clip(BYTES_AHEAD * samples // max(1, bytes_ * batch), 2, 64))

    def _regions(self, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(starts, sizes) of the samples' data, int64 (n,), of each field."""
        tables, found = self.storage.tables, []
        for column in self.pointers if len(tables.sizes) else []:  # all may be empty
            starts = column[batch]
            places = np.minimum(np.searchsorted(tables.starts, starts), len(tables.sizes) - 1)
            found.append((starts.astype(np.int64), tables.sizes[places].astype(np.int64)))
        return found

    def _run(self) -> None:
        for batch in self.batches:
            self.room.get()
            if self.is_left:
                return
            for starts, sizes in self._regions(batch):
                probes = starts[:: max(1, len(starts) // PROBES)].tolist()
                if not all(_is_in_memory(self.storage.handle, offset) for offset in probes):
                    paging.will_need(self.storage.handle, *self._to_ask(starts, sizes))

    def _to_ask(self, starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.by_page:
            return starts, sizes
        pages = np.unique(self._page(starts))
        new = pages[~self.asked[pages]]
        self.asked[new] = True
        page_size = self.storage.tables.page_size
        return new * page_size, np.full(len(new), page_size)


def _is_in_memory(handle: int, offset: int) -> bool:
    """Whether reading a byte of a file waits for no disk, as far as its file system can say.

    mincore, which asks the same of a mapping, says yes to all that is somebody else's.
    """
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it would have to wait, or does not know
        return False
