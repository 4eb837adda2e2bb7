"""FFCV's Loader with its worst failures kept from the training: threads, errors, early ends.

The one module that imports ffcv (1.0.2); what others need of it, they take from here. Importing
ffcv, making a Loader and each `iter()` set torch's thread count for the whole process
(`ffcv/pipeline/compiler.py:17`); here torch's count stays the user's.
"""

from collections.abc import Generator, Sequence
from queue import Empty, Full
from typing import Any

import numba
import torch

_threads = torch.get_num_threads()
import ffcv.loader  # noqa: E402  # the import sets torch's threads to 1
from ffcv.fields.base import ARG_TYPE, Field  # noqa: E402
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.transforms import Squeeze, ToDevice, ToTensor  # noqa: E402

torch.set_num_threads(_threads)

__all__ = [
    "ARG_TYPE",
    "AllocationQuery",
    "Compiler",
    "Field",
    "Loader",
    "OrderOption",
    "SimpleRGBImageDecoder",
    "IntDecoder",
    "Squeeze",
    "ToDevice",
    "ToTensor",
]


def _set_decoding_threads(cls: type, count: int) -> None:
    """`Compiler.set_num_threads` for numba's threads alone, and never more than numba has."""
    cls.num_threads = min(count, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(cls.num_threads)  # type: ignore[attr-defined]


Compiler.set_num_threads = classmethod(_set_decoding_threads)


class _Epoch(EpochIterator):  # type: ignore[misc]  # ffcv has no types
    """One epoch. An error of the decoding thread reaches the caller, where FFCV waits for ever."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error
            while not self.terminate_event.is_set():
                try:
                    self.output_queue.put(None, timeout=0.5)
                    return
                except Full:
                    continue

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise

    def end(self) -> None:
        """Stops the thread and waits for it; a thread left behind can abort the process at exit."""
        self.close()
        while self.is_alive():
            try:  # it may wait for room in the queue
                self.output_queue.get(timeout=0.05)
            except Empty:
                continue


class Loader(ffcv.loader.Loader):  # type: ignore[misc]
    """`ffcv.loader.Loader` of a file written by write_datasets.py, or by FFCV.

    Takes FFCV's arguments. `iter()` yields FFCV's batches, each valid until the next one is asked
    for; `break` ends the decoding thread. The order of epoch e is a function of (seed, e) alone;
    set `next_epoch` to go on from there. Random decoders and transforms of FFCV ignore the seed.
    """

    reader: Any
    next_epoch: int
    code: Any
    indices: Sequence[int]

    def __iter__(self) -> Generator[Any, None, None]:
        Compiler.set_num_threads(self.num_workers)
        # FFCV cuts the order to whole batches where drop_last is set.
        order = self.next_traversal_order()[: len(self) * self.batch_size]
        self.next_epoch += 1
        epoch = _Epoch(self, order)
        try:
            yield from epoch
        finally:
            epoch.end()
