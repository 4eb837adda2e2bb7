"""Threads that no signal can leave half started, locked or waited for without end.

Python raises KeyboardInterrupt between any two instructions of the main thread. Locks that are
handled in Python (threading.Condition, Event, Semaphore, Thread.start and Thread.join) can then
stay locked for ever: the interrupt may come after a lock was acquired and before the `with` that
would release it. So threads are started here by one call of C, and everything is handed over by
queue.SimpleQueue, whose `put` and `get` no signal can divide.
"""

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from threading import local
from typing import Any

_local = local()


class EpochThread:
    """A thread that lives as long as an epoch of a Loader.

    Args:
        ended: gets the exception that the thread's function raised, or None, when it has ended.
    """

    def __init__(self, ended: "SimpleQueue[Any]") -> None:
        self.ended = ended
        self.has_begun = self.has_ended = False

    @property
    def is_running(self) -> bool:
        return self.has_begun and not self.has_ended

    def start(self, run: Callable[[], None]) -> None:
        """Starts the thread. `run` must first check whether its work is still wanted.

        An interrupt may come after the thread was started and before `has_begun` is set here. So
        whoever ends it withdraws the work first and reads `has_begun` afterwards: a thread that has
        not begun by then will find nothing to do, and need not be waited for.
        """
        _thread.start_new_thread(self._live, ([run],))
        self.has_begun = True

    def _live(self, runs: list[Callable[[], None]]) -> None:
        self.has_begun = _local.is_of_epoch = True
        try:
            runs.pop()()  # so that this frame keeps no reference to what has run
        except BaseException as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self.has_ended = True
        self.ended.put(error)


def is_epoch_thread() -> bool:
    """Whether the calling thread is an epoch's."""
    return getattr(_local, "is_of_epoch", False)
