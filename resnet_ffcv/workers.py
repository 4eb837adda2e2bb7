"""The processes that encode, for the writer.

Tasks and results go through memory that coordinator and worker share, and the pipe between them
carries but their sizes: a pipe copies 64 kB at a time, and fills up.
"""

import errno
import mmap
import os
import pickle
import resource
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, reduction
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv.beton import FORMS
from resnet_ffcv.config import ImageConfig, WriterConfig
from resnet_ffcv.content import add_pixels
from resnet_ffcv.encode import Stored, draw, encode, read
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels.moments import add_moments
from resnet_ffcv.manifest import MEAN_SIDE
from resnet_ffcv.opening import UnsuitableFileError
from resnet_ffcv.progress import Report

TASKS = 3  # of a worker at once: one it encodes, the others wait for it or for the coordinator
PLACE_BYTES = 8
LEAST_KEPT = 1 << 24  # bytes of a task's memory that are not given back
HANDLES = 8  # open files that a worker takes, at most
NO_MEMORY = "there is no memory to hand images over in; try fewer writer.workers"
OUT_OF_MEMORY = "out of memory; try fewer writer.workers"  # Python's error has no words
TOO_LARGE = "it takes more memory than there is"
ORDINARY = 1 << 28  # bytes: what an image of some 20 megapixels takes while it is encoded
OF_A_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
WAITS = 2**64 - 1  # where an image's place would stand: the worker has not begun
PATIENCE = 30.0  # seconds at one image after which the user is told; then twice as long, and so on
POLL = 5.0  # seconds between two looks at workers that do not answer
SHOWN = 3  # images that one line names
CLOSING = 1.0  # seconds; a worker in a call to a dead disk cannot even be killed


@dataclass(frozen=True)
class Task:
    """Images for a worker: their indices in the split, their items, and what to call them."""

    split: str
    indices: list[int]
    items: list[Path | np.ndarray]
    names: list[str]
    image: ImageConfig
    writer: WriterConfig


@dataclass
class Encoded:
    """What a worker makes of a task.

    `moments` int64 (2, 3) are the sums of each channel of the stored pixels and of its squares;
    `sums` int64 (height, width, 3) adds the images up, None where they are large or of different
    sizes. `failures` has the images that could not be stored, by their place in the task, and why;
    `images` the others. `fault` says what ended the task before its end.
    """

    images: list[Stored]
    moments: np.ndarray
    sums: np.ndarray | None
    failures: dict[int, str] = field(default_factory=dict)
    fault: str = ""


def prepare(image: ImageConfig) -> None:
    """Compiles what encode_task will need, so that not every worker does."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    if image.mode in FORMS or image.max_resolution:
        encode(pixels, replace(image, max_resolution=8), 0.0)
    add_moments(pixels, np.zeros((2, 3), np.int64))


def encode_task(task: Task, memory: "Memory") -> Encoded:
    """A worker's work; tells through `memory` which image it is at."""
    result = Encoded([], np.zeros((2, 3), np.int64), None)
    for place, (index, item) in enumerate(zip(task.indices, task.items, strict=True)):
        memory.tell(place)
        try:
            chance = draw(task.writer.seed, task.split, index)
            stored, pixels = encode(read(item), task.image, chance)
        except Exception as error:  # Pillow's plugins raise nearly anything
            of_the_image = is_of_the_image(error)
            failure = (
                f"{task.names[place]} cannot be stored: {explain(error, of_the_image=of_the_image)}"
            )
            if not of_the_image:
                result.fault = failure
                break
            if task.writer.on_error == "raise":
                result.fault = f"{failure}; writer.on_error=skip leaves such images out"
                break
            result.failures[place] = failure
            continue
        result.images.append(stored)
        add_moments(pixels, result.moments)
        if max(pixels.shape) <= MEAN_SIDE and len(result.images) == 1:
            result.sums = np.zeros(pixels.shape, np.int64)
        result.sums = add_pixels(result.sums, pixels)
    return result


def is_of_the_image(error: Exception) -> bool:
    """Whether an image is at fault, not the machine: a disk that is gone would leave all out.

    Of a lack of memory it is where there is still enough for an ordinary image.
    """
    if isinstance(error, OSError):
        return error.errno is None or error.errno in OF_A_FILE  # Pillow's own have no number
    return not isinstance(error, MemoryError) or _has_memory(ORDINARY)


def _has_memory(size: int) -> bool:
    try:
        mmap.mmap(-1, size).close()
    except (OSError, MemoryError):
        return False
    return True


def explain(error: Exception, *, of_the_image: bool = True) -> str:
    """What went wrong with an image, without its path."""
    if isinstance(error, MemoryError):
        return TOO_LARGE if of_the_image else OUT_OF_MEMORY
    if isinstance(error, UnsuitableFileError):
        return f"it {error.strerror}"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


class Memory:
    """Memory that a worker gets at its start and shares from then on.

    It has no name, in /dev/shm or elsewhere, that a killed process could leave behind.
    """

    def __init__(self) -> None:
        self.handle = os.memfd_create("resnet-ffcv")

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.handle)

    def __setstate__(self, state: Any) -> None:
        self.handle = state.detach()

    def close(self) -> None:
        os.close(self.handle)

    def put(self, content: object) -> None:
        with self._open("wb") as file:
            pickle.dump(content, file, pickle.HIGHEST_PROTOCOL)
            if file.tell() < LEAST_KEPT < os.fstat(self.handle).st_size:
                file.truncate(LEAST_KEPT)  # a large image's memory is given back

    def get(self) -> Any:
        with self._open("rb") as file:
            return pickle.load(file)

    def _open(self, mode: str) -> Any:
        file = os.fdopen(self.handle, mode, closefd=False)
        file.seek(PLACE_BYTES)
        return file

    def tell(self, place: int) -> None:
        """Leaves a number in front of the content."""
        os.pwrite(self.handle, place.to_bytes(PLACE_BYTES, "little"), 0)

    def told(self) -> int:
        return int.from_bytes(os.pread(self.handle, PLACE_BYTES, 0), "little")


@dataclass
class Handed:
    """A task that a worker has, and the memory it lies in; then, when it is done, its result."""

    task: Task
    worker: "Worker"
    memory: int
    done: bool = False

    def result(self) -> Encoded:
        """What the worker made of it; its memory serves the next task."""
        try:
            encoded: Encoded = self.worker.memories[self.memory].get()
        except MemoryError as error:
            raise FailureError(
                f"{self.task.names[0]} and those that follow: {NO_MEMORY}"
            ) from error
        self.worker.free.append(self.memory)
        if encoded.fault:
            raise FailureError(encoded.fault)
        return encoded


class Worker:
    """A process that encodes.

    It is forked by multiprocessing's fork server, which has one thread; a fork of this process,
    which may have many, could hang.
    """

    def __init__(self, context: Any) -> None:
        self.memories: list[Memory] = []
        self.unanswered: deque[Handed] = deque()
        self.seen_at, self.since = "", 0.0  # an image, and when it was first seen to be at it
        self.patience = PATIENCE
        self.pipe, its_end = context.Pipe()
        self.process = context.Process(target=work, args=(its_end, self.memories), daemon=True)
        try:
            for _ in range(TASKS):
                self.memories.append(Memory())
            self.process.start()
        except BaseException:
            self.close()
            raise
        finally:
            its_end.close()  # so that the pipe ends with the worker
        self.free = list(range(TASKS))

    def hand(self, task: Task) -> Handed:
        handed = Handed(task, self, self.free.pop())
        memory = self.memories[handed.memory]
        memory.tell(WAITS)
        try:
            memory.put(task)
        except (OSError, MemoryError) as error:
            raise FailureError(f"{NO_MEMORY} ({error})") from error
        self.unanswered.append(handed)
        try:
            self.pipe.send(handed.memory)
        except OSError:
            raise self.failure() from None
        return handed

    def receive(self) -> None:
        """Takes the answer to its first task; waits for it."""
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            raise self.failure() from None
        self.unanswered.popleft().done = True

    def failure(self) -> FailureError:
        """What to say of a worker that ended."""
        self.process.join(1)
        code, where = self.process.exitcode, self._where()
        if code == -signal.SIGKILL:
            return FailureError(
                f"a worker was killed {where}, for lack of memory perhaps; try fewer writer.workers"
            )
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return FailureError(f"a worker ended {where} ({how})")

    def _where(self) -> str:
        """Which image it is at; it has a task."""
        at = self.unanswered[0]
        place = self.memories[at.memory].told()
        return f"before {at.task.names[0]}" if place == WAITS else f"at {at.task.names[place]}"

    def look(self, now: float) -> str:
        """What to tell of a worker that has been at one image for too long; else nothing."""
        where = self._where() if self.unanswered else ""
        if where != self.seen_at:
            self.seen_at, self.since, self.patience = where, now, PATIENCE
        waited = now - self.since
        if not where or waited < self.patience:
            return ""
        self.patience *= 2
        return f"{where} for {waited:.0f} s"

    def close(self) -> None:
        """Gives back what it took; kills its process, which has nothing that anyone would miss."""
        if self.process.pid is not None:
            self.process.kill()
            self.process.join(CLOSING)
        self.pipe.close()
        for memory in self.memories:
            memory.close()


def work(pipe: "connection.Connection[int, int]", memories: list[Memory]) -> None:
    """The life of a worker."""
    # Ctrl-C reaches the whole process group; only the coordinator answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            number = pipe.recv()
            memory = memories[number]
            encoded = encode_task(memory.get(), memory)
            try:
                memory.put(encoded)
            except (OSError, MemoryError):
                memory.put(Encoded([], encoded.moments, None, fault=NO_MEMORY))
            pipe.send(number)
        except (EOFError, OSError):  # the coordinator was killed
            return


class Pool:
    """Workers; results come in the order of the tasks.

    Args:
        workers: how many; None for one on each core allowed.
        report: is told of workers that make no progress.
    """

    def __init__(self, workers: int | None, report: Report) -> None:
        self.report = report
        count = workers or len(os.sched_getaffinity(0))
        _allow_handles(HANDLES * count)
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, not by each worker
        self.workers: list[Worker] = []
        try:
            for _ in range(count):
                self.workers.append(Worker(context))
        except OSError as error:
            self.close()
            raise FailureError(
                f"worker {len(self.workers) + 1} of {count} cannot be started: {error.strerror}; "
                "try fewer writer.workers"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers, whatever they do."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.close()

    def encode(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Encoded]]:
        """Encodes tasks, TASKS of each worker ahead of the caller; to be taken to its end.

        Raises:
            FailureError: of an image, or of a worker that was killed.
        """
        handed: deque[Handed] = deque()
        while True:
            for worker in self._idlest():
                task = next(tasks, None)
                if task is None:
                    break
                handed.append(worker.hand(task))
            if not handed:
                return
            while not handed[0].done:
                self._receive()
            first = handed.popleft()
            yield first.task, first.result()

    def _idlest(self) -> Iterator[Worker]:
        """Workers that can take a task, the one with the fewest first, until none can."""
        while True:
            free = [worker for worker in self.workers if worker.free]
            if not free:
                return
            yield min(free, key=lambda worker: len(worker.unanswered))

    def _receive(self) -> None:
        pipes: dict[Any, Worker] = {w.pipe: w for w in self.workers if w.unanswered}
        ready = connection.wait(pipes, POLL)
        for pipe in ready:
            pipes[pipe].receive()
        if not ready:
            self._say_who_hangs()

    def _say_who_hangs(self) -> None:
        now = time.monotonic()
        stuck = [words for words in (worker.look(now) for worker in self.workers) if words]
        if stuck:
            more = f" and {len(stuck) - SHOWN:,} more" if len(stuck) > SHOWN else ""
            self.report.say(
                f"waiting for {len(stuck)} of {len(self.workers)} workers, "
                f"{', '.join(stuck[:SHOWN])}{more}: stopped, or the disk does not answer"
            )


def _allow_handles(count: int) -> None:
    """Raises the process's limit of open files, where it may, to have so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256 if hard == resource.RLIM_INFINITY else min(count + 256, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
