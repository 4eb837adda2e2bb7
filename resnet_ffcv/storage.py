"""A .beton in memory, as decoders are given it, and its reading ahead of them."""

import logging
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import numpy as np

from resnet_ffcv import faults
from resnet_ffcv.beton import Tables, identify
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels import paging
from resnet_ffcv.kernels.compiling import compiling_until
from resnet_ffcv.opening import open_regular
from resnet_ffcv.stock import Compiler
from resnet_ffcv.threads import EpochThread

logger = logging.getLogger("resnet_ffcv")

PROBES = 4  # samples of a batch, by which it is judged whether it lies in memory
BYTES_AHEAD = 1 << 28  # of samples' data that is asked for before it is decoded

State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Regions(NamedTuple):
    """Where samples' data of one field lies, for the m of n samples that have any.

    `numbers` int64 (m,), which of the n samples; `rows` int64 (m,), of the allocation table.
    """

    numbers: np.ndarray
    rows: np.ndarray


class Storage:
    """The mapped file of `tables`.

    The kernel's page cache holds it: several processes share it, and what is larger than memory is
    read again. A file that is cut, or that its disk fails to deliver, reads as zeros where
    faults.py is supported, else it ends the process; `check` tells of either.

    Raises:
        FailureError: the file is not the one that the tables were read from.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        opened = _open(tables.path)
        weakref.finalize(self, opened.close)
        self.handle = opened.fileno()
        found, expected = identify(os.fstat(self.handle)), tables.identity
        if found != expected:
            done = "was replaced" if found[:2] != expected[:2] else "changed"
            raise FailureError(f"{tables.path} {done} while it was opened; open it again")
        self.size = found[2]
        self.path = os.path.abspath(tables.path)  # the working directory may change
        self.named: tuple[int, int] | None = found[:2]  # the file at the path, when last looked
        mapping = mmap.mmap(self.handle, self.size, access=mmap.ACCESS_READ)
        self.file = np.frombuffer(mapping, np.uint8)
        self.address = self.file.ctypes.data
        self.find_fault = faults.watch(self.file)
        self.pointers = tables.pointers()

    def begin_epoch(self) -> None:
        """Checks the file; warns once if its path leads elsewhere by now.

        Raises:
            FailureError: see check.
        """
        faults.install()
        self.check()
        try:
            found = os.stat(self.path)
            named = (found.st_dev, found.st_ino)
        except OSError:
            named = None
        if named not in (self.named, self.tables.identity[:2]):
            logger.warning(
                "%s %s since it was opened; the open file is still read, so open the path again to "
                "read what is there now",
                self.tables.path,
                "was replaced by another file" if named else "was removed or renamed",
            )
        self.named = named

    def check(self) -> None:
        """What was read from the file so far is what was there when it was opened.

        Raises:
            FailureError: the file was written to, or a part could not be read, at any time since.
        """
        size, time = identify(os.fstat(self.handle))[2:]
        offset = self.find_fault()
        if offset is None and (size, time) == self.tables.identity[2:]:
            return
        reading = "" if offset is None else f" ({self._name(offset)} could not be read)"
        if size != self.size:
            done = f"was cut to {size:,}" if size < self.size else f"grew to {size:,}"
            what = f"{done} of {self.size:,} bytes since it was opened{reading}"
        elif time != self.tables.identity[3]:
            what = f"was written to since it was opened{reading}"
        else:
            what = f"could not be read at {self._name(offset or 0)}: its disk or network failed"
        raise FailureError(f"{self.tables.path} {what}; open it again when it is complete")

    def _name(self, offset: int) -> str:
        """What of the file lies at an offset."""
        tables = self.tables
        if not (tables.data_start <= offset < tables.data_end and len(tables.starts)):
            return "a table"
        row = int(np.searchsorted(tables.starts, np.uint64(offset), side="right")) - 1
        return f"sample {tables.samples[max(row, 0)]}"

    def regions(self, indices: np.ndarray) -> list[Regions]:
        """Where the data of samples, int64 (n,), lies, for each field that has data.

        Of empty bytes nothing is returned, wherever their pointer leads.
        """
        tables, found = self.tables, []
        for column in self.pointers if len(tables.starts) else []:
            pointers = column[indices]
            rows = np.minimum(np.searchsorted(tables.starts, pointers), len(tables.starts) - 1)
            theirs = (tables.starts[rows] == pointers) & (tables.samples[rows] == indices)
            found.append(Regions(np.flatnonzero(theirs), rows[theirs]))
        return found

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
        self.asked: np.ndarray = np.zeros(self._page(storage.size) + 1, bool)
        self.room: SimpleQueue[None] = SimpleQueue()  # an item for each batch it may ask for
        for _ in range(self._batches_ahead()):
            self.room.put(None)
        self.is_left = False
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.thread = EpochThread(self.ended)

    def __enter__(self) -> "ReadAhead":
        if self.storage.pointers and len(self.batches):
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
                storage = self.storage
                paging.drop(storage.handle, storage.address, storage.size, starts, sizes)

    def _page(self, offset: Any) -> Any:
        return offset // self.storage.tables.page_size

    def _batches_ahead(self) -> int:
        tables = self.storage.tables
        samples, bytes_ = len(tables.metadata), int(tables.sizes.sum())
        batch = max((len(batch) for batch in self.batches), default=1)
        return int(np.clip(BYTES_AHEAD * samples // max(1, bytes_ * batch), 2, 64))

    def _regions(self, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(starts, sizes) of the samples' data, int64 (m,), of each field."""
        tables = self.storage.tables
        return [
            (tables.starts[rows].astype(np.int64), tables.sizes[rows].astype(np.int64))
            for _, rows in self.storage.regions(batch)
        ]

    def _run(self) -> None:
        with compiling_until(lambda: self.is_left):
            self._ask_for_all()

    def _ask_for_all(self) -> None:
        for batch in self.batches:
            self.room.get()
            if self.is_left:
                return
            for starts, sizes in self._regions(batch):
                probes = starts[:: max(1, len(starts) // PROBES)].tolist()
                storage = self.storage
                if not all(_is_in_memory(storage.handle, offset) for offset in probes):
                    paging.will_need(storage.handle, storage.size, *self._to_ask(starts, sizes))

    def _to_ask(self, starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.by_page:
            return starts, sizes
        pages = np.unique(self._page(starts))
        new = pages[~self.asked[pages]]
        self.asked[new] = True
        page_size = self.storage.tables.page_size
        return new * page_size, np.full(len(new), page_size)


def _open(path: Path) -> IO[bytes]:
    try:
        return open_regular(path)
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}") from error


def _is_in_memory(handle: int, offset: int) -> bool:
    """Whether reading a byte of a file waits for no disk, as far as its file system can say.

    mincore, which asks the same of a mapping, says yes to all that is somebody else's.
    """
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it would have to wait, or does not know
        return False
