"""The processes that encode, for the writer."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np

from resnet_ffcv.config import ImageConfig
from resnet_ffcv.encode import Stored, draw, encode, read
from resnet_ffcv.errors import FailureError
from resnet_ffcv.kernels.moments import add_moments

MEAN_SIDE = 256  # pixels a side up to which a mean of each place is kept


@dataclass(frozen=True)
class Task:
    """Images for a worker: their indices in the split, their items, and what to call them."""

    split: str
    indices: list[int]
    items: list[Path | np.ndarray]
    names: list[str]


@dataclass
class Encoded:
    """What a worker makes of a task.

    `moments` int64 (2, 3) are the sums of each channel of the stored pixels and of its squares;
    `sums` int64 (height, width, 3) adds the images up, None where they are large or of different
    sizes.
    """

    images: list[Stored]
    moments: np.ndarray
    sums: np.ndarray | None


def encode_task(task: Task, image: ImageConfig, seed: int) -> Encoded:
    """A worker's work. Raises FailureError with the image's name and what is wrong with it."""
    result = Encoded([], np.zeros((2, 3), np.int64), None)
    for index, item, name in zip(task.indices, task.items, task.names, strict=True):
        try:
            stored, pixels = encode(read(item), image, draw(seed, task.split, index))
        except Exception as error:  # Pillow's plugins raise nearly anything
            raise FailureError(f"{name} cannot be stored: {error}") from error
        result.images.append(stored)
        add_moments(pixels, result.moments)
        if max(pixels.shape) <= MEAN_SIDE and len(result.images) == 1:
            result.sums = np.zeros(pixels.shape, np.int64)
        result.sums = add_pixels(result.sums, pixels)
    return result


def add_pixels(sums: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    """The sum of two arrays of pixels; None where one is None or their sizes differ."""
    if sums is None or more is None or sums.shape != more.shape:
        return None
    total: np.ndarray = sums + more
    return total


class Pool:
    """Worker processes; results come in the order of the tasks.

    They are not forked: a fork of a process with threads may hang.
    """

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, not by each worker
        self.executor = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_start_worker
        )

    def close(self) -> None:
        """Ends the workers; waits for those that encode."""
        self.executor.shutdown(wait=True, cancel_futures=True)

    def encode(self, tasks: Iterator[Task], image: ImageConfig, seed: int) -> Iterator[Encoded]:
        """Encodes tasks, a bounded number of them ahead of the caller.

        Raises:
            FailureError: of an image, or of a worker that was killed.
        """
        ahead: deque[tuple[Task, Future[Encoded]]] = deque()
        for task in tasks:
            ahead.append((task, self.executor.submit(encode_task, task, image, seed)))
            if len(ahead) > 2 * self.workers:
                yield _result(*ahead.popleft())
        while ahead:
            yield _result(*ahead.popleft())


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; only the coordinator answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_coordinator, daemon=True).start()


def _end_with_coordinator() -> None:
    # A worker holds both ends of the queue it waits on, and would wait for a dead coordinator for
    # ever.
    coordinator = parent_process()
    if coordinator is not None:
        connection.wait([coordinator.sentinel])
        os._exit(1)


def _result(task: Task, future: "Future[Encoded]") -> Encoded:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise FailureError(
            "a worker was killed, for lack of memory perhaps, at or after "
            f"{task.names[0]}; try fewer writer.workers"
        ) from error
