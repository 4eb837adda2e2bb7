"""Ctrl-C at any instruction of a program that uses a Loader."""

import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numba
import pytest
from betons import write_noise
from numba.core import event
from observing import epoch_threads

import resnet_ffcv
from resnet_ffcv import Loader, epochs
from resnet_ffcv.stock import IntDecoder, Operation, OrderOption, State
from resnet_ffcv.threads import is_epoch_thread

PACKAGE = str(Path(resnet_ffcv.__file__).parent)
TRACED = {threading.__file__, queue.__file__, weakref.__file__}
TRIES = 750  # interrupts of each way to use a Loader, at most; spread over its instructions


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    path = write_noise(tmp_path, "raw", (12, 4, 4))
    pipelines = {"image": None, "label": [IntDecoder()]}
    return Loader(path, 3, 1, order=OrderOption.RANDOM, seed=1, pipelines=pipelines)


class Interrupt:
    """A trace function that raises KeyboardInterrupt at an instruction of the main thread.

    Counted are the instructions of the package, and of what the standard library does in Python for
    threads, queues and weak references.
    """

    def __init__(self, place: int) -> None:
        self.place, self.seen = place, 0

    def __call__(self, frame: FrameType, event: str, _: object) -> "Interrupt | None":
        if event == "call":
            name = frame.f_code.co_filename
            if not name.startswith(PACKAGE) and name not in TRACED:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.seen += 1
            if self.seen == self.place:
                raise KeyboardInterrupt
        return self


def interrupted(use: Callable[[Loader], None], loader: Loader, place: int) -> int:
    """Interrupts `use` at an instruction. Returns how many there were up to that."""
    interrupt = Interrupt(place)
    sys.settrace(interrupt)
    try:
        use(loader)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupt.seen


@pytest.fixture
def hangs_fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hang becomes an error, and an interrupt that no caller can hear says nothing."""

    def fail(*_: object) -> None:
        raise AssertionError("it hangs")

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(epochs, "_interrupt_later", lambda: None)
    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def close_early(loader: Loader) -> None:
    epoch = iter(loader)
    next(epoch)
    epoch.close()


def let_go(loader: Loader) -> None:
    epoch = iter(loader)
    next(epoch)
    del epoch


def read_all(loader: Loader) -> None:
    for _batch in loader:
        pass


def two_at_once(loader: Loader) -> None:
    for _batches in zip(loader, loader, strict=True):
        break


def numbers(loader: Loader) -> list[int]:
    return [int(n) for (batch,) in loader for n in batch[:, 0]]


def threads_end() -> bool:
    """Whether all do soon; where an interrupt stops a finalizer, nobody has waited for them."""
    end = time.monotonic() + 10
    while epoch_threads() and time.monotonic() < end:
        time.sleep(0.0005)
    return epoch_threads() == 0


@pytest.mark.parametrize("use", [close_early, let_go, read_all, two_at_once])
@pytest.mark.usefixtures("hangs_fail")
def test_an_interrupt_at_any_instruction_leaves_no_lock_and_no_thread(
    loader: Loader, use: Callable[[Loader], Any]
) -> None:
    expected = numbers(loader)
    instructions = interrupted(use, loader, -1)
    for place in range(1, instructions + 1, -(-instructions // TRIES)):
        signal.setitimer(signal.ITIMER_REAL, 20, 1)  # again while what it ends hangs, too
        interrupted(use, loader, place)
        assert threads_end(), f"instruction {place} of {instructions}"
        loader.next_epoch = 0
        assert numbers(loader) == expected, f"instruction {place} of {instructions}"


def test_a_finalizer_that_is_stopped_keeps_no_batches(loader: Loader) -> None:
    """weakref.finalize keeps its arguments for ever if an interrupt comes before it uses them."""
    epoch = iter(loader)
    next(epoch)
    producer, found = weakref.ref(epoch.producer), epoch._finalizer.peek()
    assert found is not None
    arguments = found[2]
    del epoch, found
    assert threads_end()
    assert producer() is None
    assert len(arguments) == 1


class Slow(Operation):
    """Adds 1 in a function of numba that is compiled at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = numba.njit(lambda labels: labels + 1)

    def generate_code(self) -> Callable[..., Any]:
        add = self.compiled

        def transform(labels: Any, _: Any) -> Any:
            return add(labels)

        return transform

    def declare_state_and_memory(self, previous: State) -> tuple[State, None]:
        return previous, None


def test_an_epoch_that_is_closed_does_not_wait_for_its_kernels_to_be_compiled(
    tmp_path: Path,
) -> None:
    slow = Slow()
    pipelines = {"image": None, "label": [IntDecoder(), slow]}
    loader = Loader(write_noise(tmp_path, "raw", (12, 4, 4)), 3, 1, pipelines=pipelines)
    begun, closed, steps = threading.Event(), threading.Event(), []

    class Waits(event.Listener):
        def on_start(self, event: event.Event) -> None:
            if is_epoch_thread():
                steps.append(event.data["name"])
                begun.set()
                closed.wait(20)

        def on_end(self, event: event.Event) -> None:
            pass

    with event.install_listener("numba:run_pass", Waits()):
        epoch = iter(loader)
        assert begun.wait(20)
        ending = threading.Thread(target=epoch.close)
        ending.start()
        while not epoch.producer.is_ended:
            time.sleep(0.001)
        closed.set()
        ending.join(20)
    assert not ending.is_alive()
    assert len(steps) <= 2, "numba went on"
    assert not slow.compiled.signatures
    assert numbers(loader) == [n + 1 for n in range(12)]
    assert slow.compiled.signatures
