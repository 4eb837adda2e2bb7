"""One epoch of a Loader: a thread that makes its batches, and the iterator that hands them out."""

import _thread
import logging
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

from resnet_ffcv.buffers import Lease, Slot, Slots
from resnet_ffcv.errors import FailureError
from resnet_ffcv.first_reads import FirstReads
from resnet_ffcv.kernels import status
from resnet_ffcv.kernels.batches import Limits
from resnet_ffcv.kernels.compiling import compiling_until
from resnet_ffcv.pipelines import Batch, DamagedError, Plan, run
from resnet_ffcv.stock import Compiler
from resnet_ffcv.storage import ReadAhead, Storage
from resnet_ffcv.threads import EpochThread, is_epoch_thread

SECONDS_UNHEARD = 10.0  # a garbage collector waits no longer for a thread that may wait for it
SECONDS_SILENT = 30.0  # until a wait for the next batch, or for the end, is reported
SECONDS_LOST = 1.0  # until a thread's end is noticed if an interrupt lost the news of it

logger = logging.getLogger("resnet_ffcv")


@dataclass(frozen=True)
class Settings:
    """What batches are made from, and how; the names are those of Loader's arguments."""

    fname: str
    storage: Storage
    plan: Plan
    fields: Mapping[str, Any]
    slots: Slots
    key: np.uint64  # of the epoch's random numbers
    num_workers: int
    batches_ahead: int
    by_page: bool  # whether the order keeps to few pages of the file at a time
    os_cache: bool
    copy: bool | None
    on_error: str
    limits: Limits
    first_reads: FirstReads | None


@dataclass
class Progress:
    """How far an epoch has come, by the batches that the caller has got."""

    batches: int = 0
    is_whole: bool = False  # no batch is left
    damaged: dict[int, str] = field(default_factory=dict)  # samples that were left out, and why


@dataclass
class Made:
    """A batch that is ready."""

    outputs: tuple[Any, ...]
    number: int  # of the batch in its epoch, from 1
    damaged: dict[int, str]  # samples that were left out of it, and why
    lease: Lease | None = None  # on the memory that the outputs are in
    on_device: Any = None  # CUDA's event: it has been copied there


class Producer:
    """Makes the batches of an epoch, `batches_ahead` before they are asked for.

    Two queues connect its thread with the callers: `asked` gets None for each batch that may be
    made, and anything else when nobody wants more; `ready` gets the batches and, once the thread
    has ended, its error or None.
    """

    def __init__(self, settings: Settings, batches: Sequence[np.ndarray]) -> None:
        self.settings, self.batches = settings, batches
        self.unsaid: dict[int, str] = {}  # damaged samples of batches that were left out altogether
        self.asked: SimpleQueue[Any] = SimpleQueue()
        self.ready: SimpleQueue[Made | BaseException | None] = SimpleQueue()
        for _ in range(settings.batches_ahead):
            self.asked.put(None)
        self.making = 0  # which batch the thread is at
        self.is_ended = False
        self.epoch: weakref.ref[Epoch] | None = None
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
        self.thread = EpochThread(self.ready)
        self.process = os.getpid()

    @property
    def is_running(self) -> bool:
        return self.thread.is_running

    def start(self, epoch: "Epoch") -> None:
        """Starts the thread, which ends by itself when nobody refers to `epoch` any more.

        `put` is C code: it tells the thread even if an interrupt stops every finalizer in Python.
        """
        self.epoch = weakref.ref(epoch, self.asked.put)
        self.thread.start(self._run)

    def take(self) -> Made | None:
        """The next batch; None after the last one, or if the epoch was ended.

        Raises:
            what went wrong in the thread; once.
            FailureError: this process was forked from the one that has the thread.
        """
        if self.process != os.getpid():
            raise FailureError(
                "an epoch cannot continue in a forked process; call iter() on the Loader there"
            )
        if self.is_ended:
            return None
        # Asked for before it is taken: an interrupt in between costs a batch, but nobody waits for
        # an item that was lost.
        self.asked.put(None)
        made = self._wait()
        if isinstance(made, Made):
            return made
        self.ready.put(None)  # for other threads that wait for a batch
        try:
            if isinstance(made, StopIteration):  # which would end the caller's loop
                raise RuntimeError("a transform raised StopIteration") from made
            if made is not None:
                raise made
        finally:
            del made  # whose traceback holds this frame
        return None

    def _wait(self) -> Made | BaseException | None:
        """What the thread makes next; a long wait is reported, again whenever it has doubled."""
        begin, seconds = time.monotonic(), SECONDS_SILENT
        while True:
            try:
                return self.ready.get(timeout=seconds)
            except Empty:
                seconds = time.monotonic() - begin
                logger.warning("%s", self._describe_wait(seconds))

    def _describe_wait(self, seconds: float) -> str:
        samples = self.batches[self.making][:3].tolist() if self.batches else []
        return (
            f"{self.settings.fname}: waiting for {seconds:.0f} s for the batch of samples "
            f"{', '.join(map(str, samples))}, ...; the disk or a transform may hang"
        )

    def end(self, seconds: float | None = None) -> None:
        """Ends the thread, and waits for it: one left behind can abort the process at its exit.

        A garbage collector may call this in any thread; those of epochs wait for none.
        """
        if self.process != os.getpid():
            return
        self.is_ended = True
        self.asked.put(None)
        begin, report = time.monotonic(), SECONDS_SILENT
        while True:
            waited = time.monotonic() - begin
            waits = self.is_running and not is_epoch_thread()
            waits = waits and (seconds is None or waited < seconds)
            if waits and waited >= report:
                report = 2 * waited
                logger.warning("%s", self._describe_wait(waited))
            try:
                self.ready.get(timeout=SECONDS_LOST if waits else 0)  # nobody wants what was made
            except Empty:
                if not waits:
                    break
        self.ready.put(None)  # for other threads that wait for a batch

    def _run(self) -> None:
        if self.is_ended:
            return
        settings = self.settings
        Compiler.set_num_threads(settings.num_workers)  # numba's, of this thread
        reading = ReadAhead(
            settings.storage, self.batches, by_page=settings.by_page, keep=settings.os_cache
        )
        with compiling_until(lambda: self.is_ended), reading:
            self._make_all(reading)

    def _make_all(self, reading: ReadAhead) -> None:
        for place, indices in enumerate(self.batches):
            if self.asked.get() is not None or self.is_ended:
                return
            self.making = place
            made = self._make(place + 1, indices)
            reading.decoded(indices)
            if made is None:
                self.asked.put(None)  # nothing was made, so the next batch may be
            else:
                self.ready.put(made)
            del made  # its memory is free when the caller lets go of it

    def _make(self, number: int, indices: np.ndarray) -> Made | None:
        """The batch of these samples; None where all of them were left out."""
        damaged, self.unsaid = self.unsaid, {}
        slots = self.settings.slots
        slot = slots.take()
        try:
            while len(indices):
                try:
                    return self._decode(number, indices, slot, damaged)
                except DamagedError as error:
                    bad = error.statuses != status.WHOLE
                    causes = [status.MEANING[code] for code in error.statuses[bad].tolist()]
                    damaged |= dict(zip(indices[bad].tolist(), causes, strict=True))
                    if self.settings.on_error == "raise":
                        raise self._failure(damaged) from None
                    indices = indices[~bad]
        finally:
            slots.put(slot)
        self.unsaid |= damaged
        return None

    def _decode(
        self, number: int, indices: np.ndarray, slot: Slot, damaged: dict[int, str]
    ) -> Made:
        settings = self.settings
        batch = Batch(
            indices, settings.storage, settings.key, settings.num_workers, settings.limits,
            settings.first_reads,
        )  # fmt: skip
        with torch.cuda.stream(self.stream):  # of None it is no context at all
            outputs = run(settings.plan, settings.fields, batch, slot)
        made = Made(outputs, number, damaged)
        if self.stream is not None:
            made.on_device = slot.copied = self.stream.record_event()
        if settings.copy:
            made.outputs = tuple(_copy(output) for output in outputs)
        elif settings.copy is False:
            made.lease = slot.lend()
        return made

    def _failure(self, damaged: dict[int, str]) -> FailureError:
        first, cause = min(damaged.items())
        others = f" (and {len(damaged) - 1} others of its batch)" if len(damaged) > 1 else ""
        limits = (status.MEANING[code] for code in (status.TOO_LARGE, status.TOO_MUCH_WORK))
        what, mend = "is damaged", "write the file again"
        if cause in limits:
            what, mend = "is too large", "raise that limit"
        return FailureError(
            f"{self.settings.fname}: sample {first} {what}{others}: {cause}; {mend}, or leave such "
            "samples out with on_error=skip"
        )


def _copy(output: Any) -> Any:
    return output.clone() if isinstance(output, torch.Tensor) else np.copy(output)


def _end_unheard(reference: "weakref.ref[Producer]") -> None:
    """Ends an epoch that nobody refers to any more, where the interpreter swallows exceptions.

    A Ctrl-C that arrives meanwhile is sent again, to where it is heard. The reference is weak
    because weakref.finalize keeps it for ever if an interrupt comes before it calls this.
    """
    producer = reference()
    if producer is None:
        return
    try:
        producer.end(SECONDS_UNHEARD)
    except KeyboardInterrupt:
        producer.end(SECONDS_UNHEARD)
        _thread.start_new_thread(_interrupt_later, ())


def _interrupt_later() -> None:
    time.sleep(0.05)
    _thread.interrupt_main()


class Epoch:
    """Iterator over an epoch's batches. `close` ends it, as does letting go of it."""

    def __init__(self, producer: Producer, progress: Progress) -> None:
        self.producer, self.progress = producer, progress
        self._lease: Lease | None = None  # on the batch that the caller has
        # Also when the interpreter exits.
        self._finalizer = weakref.finalize(self, _end_unheard, weakref.ref(producer))
        try:
            producer.start(self)
        except BaseException:  # Ctrl-C while it starts
            self.close()
            raise

    def close(self) -> None:
        """Ends the epoch's threads; what comes next is StopIteration."""
        self.producer.end()
        self._lease = None
        self._finalizer.detach()

    def __iter__(self) -> "Epoch":
        return self

    def __next__(self) -> tuple[Any, ...]:
        try:
            return self._next()
        except BaseException:  # Ctrl-C, too: a batch may be lost, so there must not be a next one
            self.close()
            raise

    def _next(self) -> tuple[Any, ...]:
        producer, progress = self.producer, self.progress
        self._lease = None
        made = producer.take()
        if made is None:
            progress.damaged |= producer.unsaid
            progress.is_whole = progress.is_whole or not producer.is_ended
            raise StopIteration
        if made.on_device is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(made.on_device)
            for output in made.outputs:
                if isinstance(output, torch.Tensor) and output.is_cuda:
                    output.record_stream(stream)
        self._lease = made.lease
        progress.damaged |= made.damaged
        progress.batches = made.number  # last: no interrupt comes between this and the return
        return made.outputs
