"""The Loader's promises: order, resume, ranks, held batches, errors, ends; and FFCV's pipelines."""

import gc
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from betons import spoil, write_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from observing import epoch_threads

from resnet_ffcv import Loader
from resnet_ffcv.beton import read_tables
from resnet_ffcv.buffers import Slots
from resnet_ffcv.decoders import CenterCrop, PadCrop, RandomResizedCrop, WholeImage
from resnet_ffcv.epochs import Producer
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.orders import quasi_random_order, random_order, share
from resnet_ffcv.stock import IntDecoder, OrderOption, Squeeze, ToTensor, TraversalOrder
from resnet_ffcv.storage import ReadAhead, Storage

SAMPLES = 64  # in the file of the fixture `sample_folder`
SEQUENTIAL, RANDOM, QUASI = OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM


@pytest.fixture(scope="module")
def path(sample_folder: Path) -> Path:
    return sample_folder / "train.beton"


def make(path: Path, batch_size: int = 20, **options: Any) -> Loader:
    """Labels alone, which say what a batch holds; or the given pipelines."""
    options = {"num_workers": 1, "order": RANDOM, "seed": 3, "drop_last": False, **options}
    pipelines = {"image": None, "label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    return Loader(path, batch_size, **{"pipelines": pipelines, **options})


def image_loader(path: Path, batch_size: int = 20, **options: Any) -> Loader:
    decoder = options.pop("decoder", None) or RandomResizedCrop((24, 24), flip=0.5)
    pipelines = {"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    return make(path, batch_size, pipelines=pipelines, **options)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose labels are the samples' indices; raw images of 24 x 20 in pages of 8 MiB."""
    return write_noise(tmp_path_factory.mktemp("numbered"), "raw", (103, 20, 24))


def numbers(epoch: Any) -> list[int]:
    return [int(label) for batch in epoch for label in batch[-1]]


# Order ----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    samples=st.integers(0, 200),
    batch_size=st.integers(1, 30),
    world_size=st.integers(1, 7),
    drop_last=st.booleans(),
    start=st.integers(0, 220),
)
def test_shares_hold_each_sample_once(
    samples: int, batch_size: int, world_size: int, drop_last: bool, start: int
) -> None:
    shares = [
        share(samples, batch_size, rank, world_size, drop_last=drop_last, start=start)
        for rank in range(world_size)
    ]
    found = [list(range(a, b)) for bounds in shares for a, b in bounds.tolist()]
    rest = max(0, samples - start)
    whole = rest // (batch_size * world_size) * batch_size * world_size
    expected = range(start, start + (whole if drop_last else rest))
    assert sorted(i for part in found for i in part) == list(expected)
    sizes = [len(part) for part in found]
    assert all(1 <= size <= batch_size for size in sizes)
    counts = {len(bounds) for bounds in shares}
    assert max(counts) - min(counts) <= 1
    # After each global batch, what all ranks have is a beginning of the order.
    for step in range(min(counts)):
        seen = sorted(i for bounds in shares for a, b in bounds[: step + 1] for i in range(a, b))
        assert seen == list(range(start, start + len(seen)))


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 60), world_size=st.integers(1, 4), drop_last=st.booleans(),
    order=st.sampled_from([SEQUENTIAL, RANDOM, QUASI]),
)  # fmt: skip
def test_ranks_together_show_each_sample_once(
    numbered: Path, batch_size: int, world_size: int, drop_last: bool, order: Any
) -> None:
    options = {"world_size": world_size, "drop_last": drop_last, "order": order}
    if drop_last and batch_size * world_size > 103:
        return
    ranks = [make(numbered, batch_size, rank=rank, **options) for rank in range(world_size)]
    epochs = [[batch[-1].tolist() for batch in loader] for loader in ranks]
    assert [len(epoch) for epoch in epochs] == [len(loader) for loader in ranks]
    shown = [n for epoch in epochs for batch in epoch for n in batch]
    whole = 103 // (batch_size * world_size) * batch_size * world_size
    assert len(shown) == len(set(shown)) == (whole if drop_last else 103)
    states = [loader.state_dict() for loader in ranks]
    assert states[0] == {**states[-1], "epoch": 1, "samples": 0}


def test_the_order_is_a_function_of_seed_and_epoch(numbered: Path) -> None:
    first, again, other = make(numbered), make(numbered), make(numbered, seed=4)
    epochs = [numbers(first), numbers(first)]
    again.next_epoch = 1
    assert numbers(again) == epochs[1] != epochs[0] != numbers(other)
    assert epochs[0] == np.random.default_rng((3, 0)).permutation(103).tolist()
    assert numbers(make(numbered, order=SEQUENTIAL)) == list(range(103))
    assert make(numbered, seed=None).seed != make(numbered, seed=None).seed
    assert make(numbered, seed=None, world_size=2).seed == 0


@settings(max_examples=50, deadline=None)
@given(samples=st.integers(1, 3000), per_page=st.integers(1, 40), seed=st.integers(0, 99))
def test_quasi_random_order_keeps_to_few_pages(samples: int, per_page: int, seed: int) -> None:
    pages = np.arange(samples) // per_page
    order = quasi_random_order(np.arange(samples), pages, seed, 1)
    assert sorted(order.tolist()) == list(range(samples))
    assert np.array_equal(order, quasi_random_order(np.arange(samples), pages, seed, 1))
    if samples > 200:
        assert not np.array_equal(order, quasi_random_order(np.arange(samples), pages, seed, 2))
    # A page's samples lie within as many places as 64 pages have.
    for page in np.unique(pages):
        places = np.flatnonzero(pages[order] == page)
        assert places.max() - places.min() < 64 * per_page
    assert np.array_equal(np.sort(random_order(pages, seed, 0)), pages)


# Resume ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_epoch_is_gone_on_with_by_others(numbered: Path, data: st.DataObject) -> None:
    order = data.draw(st.sampled_from([SEQUENTIAL, RANDOM, QUASI]))
    batch_size, world_size = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 3))
    ranks = [
        make(numbered, batch_size, order=order, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for loader in ranks:
        loader.next_epoch = 5
    steps = data.draw(st.integers(0, len(ranks[-1]) - 1))
    shown = [n for loader in ranks for n in numbers(itertools.islice(loader, steps))]
    states = [loader.state_dict() for loader in ranks]
    assert all(state == states[0] for state in states)
    step = batch_size * world_size
    assert (states[0]["epoch"], states[0]["samples"]) in [(5, steps * step), (6, 0)]
    others = data.draw(st.integers(1, 3))
    next_size = data.draw(st.integers(1, 20))
    for rank in range(others):
        loader = make(numbered, next_size, order=order, rank=rank, world_size=others, seed=99)
        loader.load_state_dict(states[0])
        shown += numbers(loader)
        assert loader.state_dict()["epoch"] == 6
    assert sorted(shown) == list(range(103))


def test_the_next_batches_are_the_same_after_resume(numbered: Path) -> None:
    whole = [(i.numpy().copy(), n.tolist()) for i, n in image_loader(numbered, 7)]
    for steps in range(1, 15):
        loader = image_loader(numbered, 7)
        list(itertools.islice(loader, steps))
        again = image_loader(numbered, 7, seed=11, num_workers=2)
        again.load_state_dict(loader.state_dict())
        rest = [(i.numpy().copy(), n.tolist()) for i, n in again]
        assert [n for _, n in rest] == [n for _, n in whole[steps:]]
        for (image, _), (expected, _) in zip(rest, whole[steps:], strict=True):
            assert np.array_equal(image, expected)


def test_an_epoch_that_still_runs_does_not_change_a_state_that_was_loaded(numbered: Path) -> None:
    loader = make(numbered, 8)
    older = iter(loader)
    next(older)
    state = loader.state_dict()
    next(older)
    loader.load_state_dict(state)
    next(older)
    assert loader.state_dict() == state
    loader.next_epoch = 5
    next(older)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (5, 0)


def test_a_forked_process_has_epochs_of_its_own_while_its_parents_run(numbered: Path) -> None:
    loader = image_loader(numbered, 2, batches_ahead=50)
    expected = numbers(image_loader(numbered, 2))
    for _ in range(5):
        loader.next_epoch = 0
        epoch = iter(loader)
        child = os.fork()  # in the middle of whatever the thread does
        if child == 0:
            signal.alarm(30)
            loader.next_epoch = 0
            os._exit(numbers(loader) != expected)
        assert os.waitpid(child, 0)[1] == 0
        assert numbers(epoch) == expected


def test_a_state_of_another_file_is_refused(numbered: Path, path: Path) -> None:
    state = make(numbered).state_dict()
    for other in (make(path), make(numbered, indices=range(50)), make(numbered, order=QUASI)):
        with pytest.raises(FailureError, match="saved with another file, order or choice"):
            other.load_state_dict(state)
    assert set(state) == {"seed", "epoch", "samples", "dataset"}


# Pixels ---------------------------------------------------------------------------------


def pixels_by_label(loader: Loader) -> dict[int, bytes]:
    return {
        int(n): image.numpy().tobytes()
        for images, labels in loader
        for image, n in zip(images, labels, strict=True)
    }


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"samples": 3},
        *(
            {"epoch": 0, "seed": 1, **wrong}
            for wrong in (
                {"samples": -1},
                {"samples": 104},
                {"samples": 3.5},
                {"epoch": -1},
                {"epoch": "x"},
                {"seed": None},
            )
        ),
    ],
)
def test_what_is_no_state_is_refused(numbered: Path, wrong: Any) -> None:
    loader = make(numbered)
    state = {**loader.state_dict(), **wrong} if wrong and "epoch" in wrong else wrong
    with pytest.raises(UsageError, match=r"a state (has|of)"):
        loader.load_state_dict(state)
    assert numbers(loader) == numbers(make(numbered))


def test_pixels_do_not_depend_on_threads_batches_ranks_or_order(numbered: Path) -> None:
    expected = pixels_by_label(image_loader(numbered))
    for options in ({"batch_size": 3, "num_workers": 2}, {"order": SEQUENTIAL}, {"order": QUASI}):
        assert pixels_by_label(image_loader(numbered, **options)) == expected
    ranks = [pixels_by_label(image_loader(numbered, 9, rank=r, world_size=3)) for r in range(3)]
    assert ranks[0] | ranks[1] | ranks[2] == expected
    assert pixels_by_label(image_loader(numbered, seed=4)) != expected
    loader = image_loader(numbered)
    assert pixels_by_label(loader) == expected != pixels_by_label(loader)  # another epoch


def test_output_size_may_change_between_epochs(numbered: Path) -> None:
    decoder = PadCrop((20, 24), padding=4)
    loader = image_loader(numbered, decoder=decoder)
    running = iter(loader)
    next(running)
    decoder.output_size = (8, 9)
    assert {images.shape[1:] for images, _ in running} == {(20, 24, 3)}
    assert {images.shape[1:] for images, _ in loader} == {(8, 9, 3)}


# Batches that are held ------------------------------------------------------------------


def test_a_batch_stays_what_it_was_while_it_is_held(numbered: Path) -> None:
    decoder = WholeImage()
    expected = [
        images.numpy().copy()
        for images, _ in image_loader(numbered, 5, decoder=decoder, order=SEQUENTIAL)
    ]
    loader = image_loader(numbered, 5, decoder=decoder, order=SEQUENTIAL)
    for hold in (
        lambda x: x,
        lambda x: x[1:],
        lambda x: x.numpy()[1:],
        lambda x: x.permute(0, 3, 1, 2),
    ):
        held = [hold(images) for images, _ in loader]
        for part, whole in zip(held, expected, strict=True):
            assert np.array_equal(np.asarray(part), np.asarray(hold(torch.from_numpy(whole))))
        del held, part


def test_memory_is_used_again(numbered: Path) -> None:
    loader = image_loader(numbered, 2, batches_ahead=2)
    for _ in range(3):
        for _batch in loader:
            pass
    assert loader._slots is not None
    in_use = 2 + 3  # two ahead, one being made, the caller's, and the one that replaces it
    at_most = in_use + loader._slots.spare
    assert len(loader._slots.kept) <= at_most
    assert len({images.data_ptr() for images, _ in loader}) <= at_most
    held = list(loader)
    assert len({images.data_ptr() for images, _ in held}) == len(held) > at_most
    del held
    for _batch in loader:  # some of them are dropped at each batch
        pass
    assert len(loader._slots.kept) <= at_most


def test_copy(numbered: Path) -> None:
    loader = image_loader(numbered, 2, batches_ahead=1, copy=False)
    addresses = [images.data_ptr() for images in [b[0] for b in loader]]
    assert len(set(addresses)) <= 4 < len(addresses)  # held, and yet used again
    copies = list(image_loader(numbered, 2, copy=True))
    assert len({images.data_ptr() for images, _ in copies}) == len(copies)


# Ends and errors ------------------------------------------------------------------------


def test_a_break_ends_the_threads(numbered: Path) -> None:
    loader = image_loader(numbered, 2)
    for _ in range(20):
        for _batch in loader:
            break
    assert epoch_threads() == 0
    epoch = iter(loader)
    next(epoch)
    assert epoch_threads() > 0
    epoch.close()
    assert epoch_threads() == 0
    assert list(epoch) == []


def test_epochs_and_loaders_at_once(numbered: Path) -> None:
    loader = image_loader(numbered, 10, num_workers=2)
    expected = [numbers(loader), numbers(loader)]
    loader.next_epoch = 0
    pairs = list(zip(loader, loader, image_loader(numbered, 10, seed=8), strict=True))
    assert [numbers([pair[place] for pair in pairs]) for place in (0, 1)] == expected
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(numbers(image_loader(numbered, 10))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected[0]] * 3


def test_an_operation_serves_one_loader_at_a_time(numbered: Path, path: Path) -> None:
    decoder = RandomResizedCrop((8, 8))
    first, second = image_loader(numbered, 2, decoder=decoder), image_loader(path, decoder=decoder)
    epoch = iter(first)
    with pytest.raises(UsageError, match=r"RandomResizedCrop that serves .*; make one for each"):
        iter(second)
    epoch.close()
    assert len(list(second)) == len(second)


def test_an_error_reaches_the_caller(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = image_loader(numbered)

    def fail(*_: Any) -> None:
        raise RuntimeError("no such window")

    monkeypatch.setattr(RandomResizedCrop, "choose_windows", fail)
    with pytest.raises(RuntimeError, match="no such window"):
        numbers(loader)
    assert epoch_threads() == 0


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A file by us in mode jpg of which the samples 20 and 57 are destroyed."""
    path = write_noise(tmp_path, "jpg", (103, 20, 24))
    spoil(path, 20, 57)
    return path


@pytest.mark.parametrize("order", [SEQUENTIAL, RANDOM])
def test_damaged_samples(damaged: Path, order: Any) -> None:
    loader = image_loader(damaged, 10, order=order)
    with pytest.raises(FailureError, match=r"train\.beton: sample (20|57) is damaged: its JPEG"):
        numbers(loader)
    skipping = image_loader(damaged, 10, order=order, on_error="skip")
    good = sorted(set(range(103)) - {20, 57})
    assert sorted(numbers(skipping)) == good
    assert skipping.damaged == dict.fromkeys([20, 57], "its JPEG is damaged")
    assert skipping.state_dict()["epoch"] == 1
    alone = image_loader(damaged, 1, order=order, on_error="skip")
    assert sorted(numbers(alone)) == good
    assert alone.damaged == skipping.damaged
    kept = skipping.filter("image", lambda image: image.max() >= 0)
    assert sorted(kept.indices.tolist()) == good


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_pixels": 20 * 24 - 1}, "it has more pixels than max_pixels allows"),
        ({"max_memory": 1_000}, "decoding it takes more memory than max_memory allows"),
    ],
)
def test_samples_that_ask_for_more_than_the_limits(
    numbered: Path, limit: dict[str, int], words: str
) -> None:
    with pytest.raises(FailureError, match=rf"sample \d+ .*{words}"):
        numbers(image_loader(numbered, 10, **limit))
    skipping = image_loader(numbered, 10, on_error="skip", **limit)
    assert numbers(skipping) == []
    assert skipping.damaged == dict.fromkeys(range(103), words)
    again = skipping.filter("label", lambda label: label < 50)
    assert (again.limits, len(again.indices)) == (skipping.limits, 50)
    assert len(numbers(image_loader(numbered, 10, max_pixels=20 * 24))) == 103


def test_too_little_memory_names_the_file_and_the_samples(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(RandomResizedCrop, "decode", fail)
    loader = image_loader(numbered, 10, order=SEQUENTIAL)
    words = r"train\.beton: not enough memory for a batch with the samples 0, 1, 2, 3, 4, \.\.\.;"
    with pytest.raises(FailureError, match=words):
        numbers(loader)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_errors_and_breaks_leave_nothing_behind(damaged: Path) -> None:
    gc.collect()
    before = open_files()
    seen = []
    for _ in range(5):
        loader = image_loader(damaged, 10)
        seen.append(weakref.ref(loader))
        with pytest.raises(FailureError, match="is damaged"):
            numbers(loader)
    del loader
    gc.collect()
    assert [ref() for ref in seen] == [None] * 5
    assert open_files() == before
    for copy in (None, False):
        loader = image_loader(damaged, 10, on_error="skip", copy=copy)
        for _ in range(20):
            for _batch in loader:
                break
        del _batch
        assert loader._slots is not None
        assert len(loader._slots.kept) <= 7


def test_an_epoch_that_was_ended_is_not_at_its_end(numbered: Path) -> None:
    loader = make(numbered, 10)
    epoch = iter(loader)
    for place, _ in enumerate(epoch):
        if place == 2:
            epoch.close()
    state = loader.state_dict()
    assert (state["epoch"], state["samples"]) == (0, 30)


def test_an_epoch_in_a_cycle_may_be_collected_anywhere(numbered: Path) -> None:
    for _ in range(20):
        epoch = iter(image_loader(numbered, 2))
        next(epoch)
        cycle: list[Any] = [epoch]
        cycle.append(cycle)
        del epoch, cycle
        gc.collect()
    assert epoch_threads() == 0


def test_ctrl_c_while_a_break_ends_the_threads_is_heard(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = itertools.count(1)
    end = Producer.end

    def interrupted(producer: Producer, seconds: float | None = None) -> None:
        if next(ends) == 1:
            raise KeyboardInterrupt
        end(producer, seconds)

    monkeypatch.setattr(Producer, "end", interrupted)
    for _ in image_loader(numbered, 2):
        break
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
    assert epoch_threads() == 0


def test_an_epoch_ends_by_itself_when_nobody_refers_to_it(numbered: Path) -> None:
    """As when an interrupt keeps its finalizer from being called."""
    for taken, in_cycle in itertools.product((0, 1, 5), (False, True)):
        epoch = iter(make(numbered, 2))
        thread = epoch.producer.thread
        list(itertools.islice(epoch, taken))
        epoch._finalizer.detach()
        if in_cycle:
            epoch.itself = epoch  # type: ignore[attr-defined]
        del epoch
        gc.collect()
        wait_until(lambda thread=thread: thread.has_ended)  # type: ignore[misc]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_batches_are_made_than_batches_ahead(numbered: Path, ahead: int) -> None:
    epoch = iter(make(numbered, 5, batches_ahead=ahead))
    for taken in range(4):
        wait_until(lambda: epoch.producer.ready.qsize() == ahead)
        time.sleep(0.005)
        assert epoch.producer.making + 1 == taken + ahead
        next(epoch)


def test_batches_that_are_left_out_take_no_places_of_others(damaged: Path) -> None:
    loader = image_loader(
        damaged, 1, order=SEQUENTIAL, on_error="skip", batches_ahead=2, indices=[20] * 30 + [3, 57]
    )
    assert numbers(loader) == [3]
    assert sorted(loader.damaged) == [20, 57]


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_is_raised_once_and_ends_the_epoch_for_all(damaged: Path, threads: int) -> None:
    epoch = iter(image_loader(damaged, 1, order=SEQUENTIAL))
    found: list[Any] = []

    def read() -> None:
        try:
            for batch in epoch:
                found.extend(numbers([batch]))
        except FailureError as error:
            found.append(error)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert sum(isinstance(one, FailureError) for one in found) == 1
    assert sorted(one for one in found if isinstance(one, int)) == list(range(20))
    assert list(epoch) == []


def test_an_error_of_reading_ahead_reaches_the_caller(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room to read ahead")

    monkeypatch.setattr(ReadAhead, "_to_ask", fail)
    monkeypatch.setattr("resnet_ffcv.storage._is_in_memory", lambda *_: False)
    with pytest.raises(MemoryError, match="no room to read ahead"):
        numbers(image_loader(numbered))
    assert epoch_threads() == 0


@pytest.mark.parametrize("ending", [False, True])
def test_a_long_wait_names_the_file_and_the_samples(
    numbered: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ending: bool,
) -> None:
    hangs, reported = threading.Event(), []
    decode = CenterCrop.decode

    def hanging(self: Any, field: Any, column: Any, indices: Any, *more: Any) -> Any:
        if indices[0] == 40:
            hangs.wait(60)
        return decode(self, field, column, indices, *more)

    class Reporter(logging.Handler):
        def emit(self, _record: Any) -> None:
            reported.append(time.monotonic())
            if len(reported) == 3:
                hangs.set()

    monkeypatch.setattr(CenterCrop, "decode", hanging)
    monkeypatch.setattr("resnet_ffcv.epochs.SECONDS_SILENT", 0.02)
    monkeypatch.setattr("resnet_ffcv.epochs.SECONDS_LOST", 0.01)
    loader = image_loader(numbered, 20, decoder=CenterCrop((8, 8)), order=SEQUENTIAL)
    reporter = Reporter()
    logging.getLogger("resnet_ffcv").addHandler(reporter)
    try:
        epoch = iter(loader)
        got = numbers(itertools.islice(epoch, 2))
        if ending:
            epoch.close()
        got += numbers(epoch)
    finally:
        logging.getLogger("resnet_ffcv").removeHandler(reporter)
    assert got == list(range(40 if ending else 103))
    assert len(reported) == len(caplog.records) == 3
    assert reported[2] - reported[1] > 1.5 * (reported[1] - reported[0])
    for record in caplog.records:
        assert re.fullmatch(
            rf"{numbered}: waiting for \d+ s for the batch of samples 40, 41, 42, ...; .*",
            record.getMessage(),
        )


def test_a_lent_slot_is_used_again_when_its_lease_ends() -> None:
    slots = Slots([], 4, spare=3, respect_holders=False)
    slot = slots.take()
    lease = slot.lend()
    slots.put(slot)
    assert slots.take() is not slot
    del lease
    assert slots.take() is slot


def test_slots_of_many_threads_are_never_given_twice() -> None:
    slots = Slots([], 4, spare=3, respect_holders=True)
    taken: set[int] = set()

    def use() -> None:
        for _ in range(3000):
            slot = slots.take()
            assert id(slot) not in taken
            taken.add(id(slot))
            taken.remove(id(slot))
            slots.put(slot)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(use) for _ in range(8)]:
            done.result()
    assert len(slots.kept) <= 8 + 3


def test_an_order_of_another_length_is_refused(numbered: Path) -> None:
    class Twice(TraversalOrder):  # type: ignore[misc]
        def sample_order(self, _epoch: int) -> np.ndarray:
            return np.tile(self.indices, 2)

    with pytest.raises(UsageError, match="206 samples where all ranks have 103"):
        iter(make(numbered, order=Twice))


def test_a_file_cut_while_it_is_open(damaged: Path) -> None:
    loader = image_loader(damaged)
    with damaged.open("r+b") as file:
        file.truncate(9_000_000)
    with pytest.raises(FailureError, match=r"was cut to 9,000,000 of .* since it was opened"):
        iter(loader)


def test_a_transforms_stop_iteration_is_an_error(numbered: Path) -> None:
    class Stopping(torch.nn.Module):
        def forward(self, _images: Any) -> Any:
            return next(iter(()))

    pipelines = {"image": None, "label": [IntDecoder(), ToTensor(), Stopping()]}
    with pytest.raises(RuntimeError, match="a transform raised StopIteration"):
        list(make(numbered, pipelines=pipelines))


def test_an_epoch_does_not_go_on_in_a_forked_process(numbered: Path) -> None:
    epoch = iter(make(numbered, 2))
    next(epoch)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            next(epoch)
        except FailureError as error:
            os.write(theirs, str(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as said:
        assert "cannot continue in a forked process" in said.read()
    os.waitpid(child, 0)
    assert len(list(epoch)) == 51


def test_an_order_of_the_users_goes_on_with_the_states_seed(numbered: Path) -> None:
    class Drawn(TraversalOrder):  # type: ignore[misc]
        def __init__(self, loader: Loader) -> None:
            super().__init__(loader)
            self.drawn = np.random.default_rng(loader.seed).permutation(self.indices)

        def sample_order(self, _epoch: int) -> np.ndarray:
            return self.drawn

    loader, again = (make(numbered, 10, order=Drawn, seed=seed) for seed in (1, 2))
    epoch = iter(loader)
    first = numbers([next(epoch) for _ in range(3)])
    again.load_state_dict(loader.state_dict())
    assert sorted(first + numbers(again)) == list(range(103))


def test_holding_many_batches_costs_no_more_for_each(numbered: Path) -> None:
    """Slots that are held are not looked through one by one."""
    loader = make(numbered, 1)
    held = [batch for _ in range(4) for batch in loader]
    assert len(held) == 412
    assert loader._slots is not None
    looked = 0

    class Counting(type(loader._slots.kept)):  # type: ignore[misc]
        def popleft(self) -> Any:
            nonlocal looked
            looked += 1
            return super().popleft()

    loader._slots.kept = Counting(loader._slots.kept)
    more = list(loader)
    assert looked <= 16 * (len(more) + 5)
    assert sorted(numbers(held)) == sorted(list(range(103)) * 4)


def test_operations_need_no_hash(numbered: Path) -> None:
    @dataclass
    class Unhashed(ToTensor):  # type: ignore[misc]
        name: str = "same"

        def __post_init__(self) -> None:
            super().__init__()

    loaders = [
        make(numbered, pipelines={"image": None, "label": [IntDecoder(), Unhashed()]})
        for _ in range(2)
    ]
    epochs = [iter(loader) for loader in loaders]
    assert sorted(numbers(epochs[0])) == sorted(numbers(epochs[1])) == list(range(103))


def test_numbas_threads_stay_the_callers(numbered: Path) -> None:
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        list(make(numbered, num_workers=2))
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_a_file_replaced_while_it_is_opened(numbered: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(numbered, tmp_path))
    tables = read_tables(path)
    path.rename(tmp_path / "older")
    shutil.copy(numbered, path)
    with pytest.raises(FailureError, match="was replaced while it was opened"):
        Storage(tables)


WRONG = [
    ({"batch_size": 0}, "batch_size=0: wanted is a whole number from 1"),
    ({"indices": [0, 103]}, "indices from 0 to 103: the file has samples 0 to 102"),
    ({"indices": [-1]}, "indices from -1"), ({"indices": [0.5]}, "wanted are whole numbers"),
    ({"batch_size": 1.5}, "batch_size=1.5: wanted is a whole number"),
    ({"batches_ahead": 1.5}, "batches_ahead=1.5: wanted is a whole number"),
    ({"batch_size": 60, "world_size": 2, "drop_last": True}, "no batch of 60 for each of 2 ranks"),
    ({"rank": 2, "world_size": 2}, "rank=2: wanted is from 0, below world_size=2"),
    ({"seed": -1}, "seed=-1"), ({"on_error": "ignore"}, "on_error='ignore': wanted is raise or"),
    ({"order": "random"}, "order='random': wanted is an OrderOption"),
    ({"distributed": True}, "distributed=True wants"),
    ({"batch_size": 200, "drop_last": True}, "103 samples give no batch of 200"),
    ({"indices": []}, "0 samples give no batch"),
    ({"max_pixels": 0}, "max_pixels=0"), ({"max_pixels": 2**62}, "max_pixels="),
    ({"max_memory": 1.5}, "max_memory=1.5"), ({"max_memory": None}, "max_memory=None"),
    ({"verify": True}, "verify=True: wanted is None or once"),
    ({"pipelines": {"image": "x"}}, "the pipeline of image is no list"),
    ({"pipelines": {"picture": [ToTensor()]}}, "pipeline picture: the file has the f"),
    ({"pipelines": {"image": [ToTensor(), 3]}}, "pipeline image: 3 is no operation"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_cannot_be_is_refused(numbered: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(numbered, **options)


def test_filter_and_indices(numbered: Path) -> None:
    loader = image_loader(numbered, 8, indices=range(50, 103), order=SEQUENTIAL)
    even = loader.filter("label", lambda label: label % 2 == 0)
    assert numbers(even) == list(range(50, 103, 2))
    bright = loader.filter("image", lambda image: image[0, 0, 0] > 128)
    expected = [int(n) for images, labels in image_loader(numbered, 8, indices=range(50, 103),
                order=SEQUENTIAL) for i, n in zip(images, labels, strict=True)
                if i[0, 0, 0] > 128]  # fmt: skip
    assert numbers(bright) == expected
    assert numbers(make(numbered, indices=[5, 5, 7], order=SEQUENTIAL)) == [5, 5, 7]
    with pytest.raises(UsageError, match="has image, label"):
        loader.filter("name", bool)


def test_a_pipelines_list_stays_as_it_was(numbered: Path) -> None:
    pipeline = [CenterCrop((8, 8)), ToTensor()]
    before = list(pipeline)
    for _ in range(2):
        loader = make(numbered, pipelines={"image": pipeline, "label": None})
        assert {images.shape[1:] for (images,) in loader} == {(8, 8, 3)}
    assert pipeline == before


def test_pages_may_be_dropped_from_the_cache(numbered: Path) -> None:
    expected = pixels_by_label(image_loader(numbered))
    loader = image_loader(numbered, os_cache=False)
    assert pixels_by_label(loader) == expected
    loader.next_epoch = 0
    assert pixels_by_label(loader) == expected


# The process ----------------------------------------------------------------------------


def run_script(script: str, path: Path, timeout: float = 300, **options: Any) -> Any:
    head = f"""
import torch
torch.set_num_threads(5)
from resnet_ffcv import Loader
from resnet_ffcv.decoders import RandomResizedCrop
from resnet_ffcv.stock import IntDecoder, ToTensor
loader = Loader({str(path)!r}, 2, num_workers=1, seed=0,
    pipelines={{"image": [RandomResizedCrop((200, 200)), ToTensor()]}})
"""
    return subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, timeout=timeout,
        **options,
    )  # fmt: skip


def test_torchs_threads_stay_the_users(path: Path) -> None:
    ended = run_script(
        "seen = {torch.get_num_threads()}\n"
        "for epoch in range(2):\n"
        "    for batch in loader: seen.add(torch.get_num_threads())\n"
        "print(seen | {torch.get_num_threads()})",
        path,
        check=True,
    )
    assert ended.stdout == "{5}\n"


@pytest.mark.parametrize("left", ["it = iter(loader); next(it)", "for b in loader: raise KeyError",
                                  "its = [iter(loader) for _ in range(3)]"])  # fmt: skip
def test_the_interpreter_ends_while_batches_are_made(path: Path, left: str) -> None:
    ended = run_script(left, path)
    assert ended.returncode == (1 if "raise" in left else 0), ended.stderr
    assert "Fatal" not in ended.stderr


def test_ctrl_c_while_waiting_for_a_batch(path: Path) -> None:
    script = (
        "import os, signal, threading, time\n"
        "from resnet_ffcv import decoders\n"
        "decoders.RandomResizedCrop.decode = lambda *a: time.sleep(0.3) or 1 / 0\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "began = time.time()\n"
        "try: next(iter(loader))\n"
        "except KeyboardInterrupt: print(time.time() - began)"
    )
    ended = run_script(script, path)
    assert float(ended.stdout) < 1, ended.stderr
    assert ended.returncode == 0


def test_threads_are_those_the_process_may_use(path: Path) -> None:
    ended = run_script(
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        f"one = Loader({str(path)!r}, 2, pipelines={{'image': None}})\n"
        "print(one.num_workers, len(list(one)))",
        path,
        check=True,
    )
    assert ended.stdout == "1 32\n"


def test_a_process_on_one_cpu_ends_after_a_fork() -> None:
    script = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import resnet_ffcv.stock\n"
        "child = os.fork()\n"
        "if child: print(os.waitpid(child, 0)[1])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert ended.stdout == b"0\n", ended.stderr


GLOO = """
import sys
from torch import distributed
from resnet_ffcv import Loader
from resnet_ffcv.stock import IntDecoder, OrderOption
rank, file, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
loader = Loader(path, 10, 1, order=OrderOption.RANDOM, distributed=True, drop_last=False,
                pipelines={"image": None, "label": [IntDecoder()]})
print(*[int(n) for _ in range(2) for (batch,) in loader for n in batch[:, 0]])
distributed.destroy_process_group()
"""


def test_two_processes_share_an_epoch(numbered: Path, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GLOO, str(rank), str(tmp_path / "store"), str(numbered)],
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    shown = [[int(n) for n in rank.communicate(timeout=100)[0].split()] for rank in ranks]
    halves = [len(numbers) // 2 for numbers in shown]
    assert sum(halves) == 103
    for epoch in range(2):
        both = [n for half, numbers in zip(halves, shown, strict=True)
                for n in numbers[half * epoch : half * (epoch + 1)]]  # fmt: skip
        assert sorted(both) == list(range(103))
    assert shown[0][: halves[0]] != shown[0][halves[0] :]
