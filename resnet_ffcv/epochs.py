"""One epoch of a Loader: a thread that makes its batches, and the iterator that hands them out."""

import _thread
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resnet_ffcv.buffers import Slot, Slots
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.random import epoch_key
from resnet_ffcv.pipelines import Batch, DamagedError, run
from resnet_ffcv.stock import Compiler, OrderOption
from resnet_ffcv.storage import EpochThread, ReadAhead

if TYPE_CHECKING:
    from resnet_ffcv.loader import Loader

SECONDS_UNHEARD = 10.0  # that a collector waits for an epoch's thread, which may wait for it


@dataclass
class Made:
    """A batch that is ready."""

    outputs: tuple[Any, ...]
    number: int  # of the batch in its epoch, from 1
    slot: Slot
    damaged: dict[int, str]  # samples that were left out of it, and why
    on_device: Any = None  # CUDA's event: it has been copied there


class Producer:
    """Makes the batches of an epoch, `loader.batches_ahead` before they are asked for."""

    def __init__(
        self, loader: "Loader", slots: Slots, batches: Sequence[np.ndarray], epoch: int, start: int
    ) -> None:
        self.loader, self.slots, self.batches = loader, slots, batches
        self.epoch, self.start = epoch, start  # the samples of it that were handed out before
        self.key = np.uint64(epoch_key(loader.seed, epoch))
        self.unsaid: dict[int, str] = {}  # damaged samples of batches that were left out altogether
        self.handed_out: Slot | None = None  # of the batch that the caller has
        self.ready: deque[Made] = deque()
        self.changed = threading.Condition(threading.RLock())  # a collector may call `end` inside
        self.ended = self.finished = False
        self.error: BaseException | None = None
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
        self.thread = EpochThread(target=self._run, name="decode", daemon=True)
        self.process = os.getpid()

    @property
    def is_running(self) -> bool:
        return self.thread.is_alive()

    def take(self) -> Made | None:
        """The next batch; None behind the last, or where the epoch was ended.

        Raises:
            what went wrong with it; once.
            FailureError: another process was forked, which has no thread to make batches.
        """
        if self.process != os.getpid():
            raise FailureError("an epoch does not go on in a forked process; begin one there")
        with self.changed:
            while not (self.ready or self.finished):
                self.changed.wait()
            if self.ready:
                self.changed.notify_all()
                return self.ready.popleft()
            error, self.error = self.error, None  # its traceback holds all that called us
        if isinstance(error, StopIteration):  # which would end the caller's loop
            raise RuntimeError("a transform raised StopIteration") from error
        if error is not None:
            raise error
        return None

    def hand_out(self, slot: Slot | None) -> None:
        """The caller gets the batch in `slot`, and is done with the one before it, but for what it
        holds by references."""
        if self.handed_out is not None:
            self.handed_out.handed_out = False
        self.handed_out = slot

    def end(self, seconds: float | None = None) -> None:
        """Ends the thread, and waits for it: one left behind can abort the process at its exit.

        A garbage collector may call this in any thread; those of epochs wait for none.
        """
        if self.process != os.getpid():
            return
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        current = threading.current_thread()
        if self.thread.ident is not None and not isinstance(current, EpochThread):
            self.thread.join(seconds)
        while self.ready:
            self.ready.popleft().slot.handed_out = False
        self.hand_out(None)

    def _run(self) -> None:
        try:
            Compiler.set_num_threads(self.loader.num_workers)  # numba's, of this thread
            by_page = self.loader.order == OrderOption.QUASI_RANDOM
            reading = ReadAhead(
                self.loader.storage, self.batches, by_page=by_page, keep=self.loader.os_cache
            )
            with reading:
                for number, indices in enumerate(self.batches, 1):
                    if self.ended:
                        return
                    made = self._make(number, indices)
                    reading.decoded(indices)
                    if made is None:
                        continue
                    with self.changed:
                        self.ready.append(made)
                        self.changed.notify_all()
                        del made  # the slot is free when the caller lets go of it
                        while len(self.ready) >= self.loader.batches_ahead and not self.ended:
                            self.changed.wait()
        except BaseException as error:
            self.error = error
        finally:
            with self.changed:
                self.finished = True
                self.changed.notify_all()

    def _make(self, number: int, indices: np.ndarray) -> Made | None:
        """The batch of these samples; None where all of them were left out."""
        damaged, self.unsaid = self.unsaid, {}
        slot = self.slots.take()
        try:
            while len(indices):
                try:
                    return self._decode(number, indices, slot, damaged)
                except DamagedError as error:
                    bad = error.statuses != status.WHOLE
                    causes = [status.MEANING[code] for code in error.statuses[bad].tolist()]
                    damaged |= dict(zip(indices[bad].tolist(), causes, strict=True))
                    if self.loader.on_error == "raise":
                        raise self._failure(damaged) from None
                    indices = indices[~bad]
        finally:
            self.slots.put(slot)
        self.unsaid |= damaged
        return None

    def _decode(
        self, number: int, indices: np.ndarray, slot: Slot, damaged: dict[int, str]
    ) -> Made:
        loader = self.loader
        batch = Batch(
            indices, loader.storage, self.key, loader.num_workers, loader.limits,
            loader.first_reads,
        )  # fmt: skip
        with torch.cuda.stream(self.stream):  # of None it is no context at all
            outputs = run(loader.plan, loader.fields, batch, slot)
        made = Made(outputs, number, slot, damaged)
        if self.stream is not None:
            made.on_device = slot.copied = self.stream.record_event()
        if loader.copy:
            made.outputs = tuple(_copy(output) for output in outputs)
        slot.handed_out = loader.copy is False
        return made

    def _failure(self, damaged: dict[int, str]) -> FailureError:
        first, cause = min(damaged.items())
        others = f" (and {len(damaged) - 1} others of its batch)" if len(damaged) > 1 else ""
        return FailureError(
            f"{self.loader.fname}: sample {first} is damaged{others}: {cause}; write the file "
            "again, or leave such samples out with on_error=skip"
        )


def _copy(output: Any) -> Any:
    return output.clone() if isinstance(output, torch.Tensor) else np.copy(output)


def _end_unheard(producer: Producer) -> None:
    """Ends an epoch that nobody holds any more, from where the interpreter swallows exceptions.

    A Ctrl-C that comes meanwhile is sent again, to where it is heard.
    """
    try:
        producer.end(SECONDS_UNHEARD)
    except KeyboardInterrupt:
        producer.end(SECONDS_UNHEARD)
        threading.Timer(0.05, _thread.interrupt_main).start()


class Epoch:
    """Iterator over an epoch's batches. `close` ends it, as does letting go of it."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        # Also when the interpreter exits.
        self._finalizer = weakref.finalize(self, _end_unheard, producer)
        try:
            producer.thread.start()
        except BaseException:  # Ctrl-C while it starts
            self.close()
            raise

    def close(self) -> None:
        """Ends the epoch's threads; what comes next is StopIteration."""
        self._finalizer.detach()
        self.producer.end()

    def __iter__(self) -> "Epoch":
        return self

    def __next__(self) -> tuple[Any, ...]:
        producer, loader = self.producer, self.producer.loader
        producer.hand_out(None)
        try:
            made = producer.take()
        except BaseException:
            self.close()
            raise
        if made is None:
            loader.damaged |= producer.unsaid
            if not producer.ended:
                loader.note_progress(producer, None)
            self.close()
            raise StopIteration
        if made.on_device is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(made.on_device)
            for output in made.outputs:
                if isinstance(output, torch.Tensor) and output.is_cuda:
                    output.record_stream(stream)
        producer.hand_out(made.slot)
        loader.damaged |= made.damaged
        loader.note_progress(producer, made.number)
        return made.outputs
