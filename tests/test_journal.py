"""Whatever became of a journal or of what it tells of, a resumed write gives a clean write's bytes.

Pages are small here and images are encoded in this process, so that a write takes milliseconds.
"""

import functools
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ffcv import beton, tasks, writer
from resnet_ffcv import journal as journal_module
from resnet_ffcv.config import ImageConfig, OutputConfig, WriteConfig, WriterConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.progress import Report
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.workers import Encoded, Memory, Task, encode_task
from resnet_ffcv.writer import Draft, Job

IMAGES, STOPPED_AT, PAGE = 60, 45, 1 << 15
NAMES = ("train.beton", "train.beton.json", "train.beton.pixel_mean.npy")


@functools.cache
def encode_once(indices: tuple[int, ...], mode: str) -> Encoded:
    task = next(make_job(Path(), mode).tasks(np.array(indices)))
    memory = Memory()
    try:
        return encode_task(task, memory)
    finally:
        memory.close()


class Pool:
    """Workers' place is taken by this process; each task is encoded once for all writes."""

    def encode(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Encoded]]:
        for task in tasks:
            yield task, encode_once(tuple(task.indices), str(task.image.mode))


class Stop(Report):
    """Ends the write when so many images are done; keeps what it says."""

    def __init__(self, left: float = float("inf")) -> None:
        self.left, self.said = left, ""

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said += text + "\n"


def make_job(folder: Path, mode: str) -> Job:
    items = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    source = Source("mine", ["a", "b"], {"train": Split(items, np.arange(IMAGES) % 2)})
    config = WriteConfig(
        output=OutputConfig(str(folder)), image=ImageConfig(mode=mode),
        writer=WriterConfig(resume=True),
    )  # fmt: skip
    return Job(source, "train", np.arange(IMAGES), config)


def write(folder: Path, report: Stop | None = None, mode: str = "raw") -> str:
    """Writes, or resumes; returns what was said."""
    report = report or Stop()
    draft = Draft(make_job(folder, mode), folder / "train.beton", report)
    if not draft.is_published():
        writer._write_with_sufficient_pages(draft, Pool(), report)  # type: ignore[arg-type]
    return report.said


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton, "DEFAULT_PAGE_SIZE", PAGE)
    monkeypatch.setattr(tasks, "TASK_ARRAYS", 4)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_a_journal_may_grow_with_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, partial, expected = stopped_and_expected("raw")
    longest = max(map(len, journal.split(b"\n")))
    monkeypatch.setattr(journal_module, "MOST_FIXED", longest + 1)  # of a line, not of all
    monkeypatch.setattr(journal_module, "MOST_PER_IMAGE", 0)
    (tmp_path / "train.beton.partial.journal").write_bytes(journal)
    (tmp_path / "train.beton.partial").write_bytes(partial)
    assert len(journal) > 2 * longest
    assert "resuming" in write(tmp_path)
    assert digests(tmp_path) == expected


@functools.cache
def stopped_and_expected(mode: str) -> tuple[bytes, bytes, list[str]]:
    """(journal and .partial of a write that was stopped, digests of one that was not)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, mode=mode)
        expected = digests(folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pytest.raises(KeyboardInterrupt):
            write(folder, Stop(STOPPED_AT), mode)
        journal = (folder / "train.beton.partial.journal").read_bytes()
        assert journal.count(b"\n") >= 2
        return journal, (folder / "train.beton.partial").read_bytes(), expected


def resume(journal: bytes, partial: bytes, mode: str = "raw") -> str:
    """Resumes, and compares what comes of it with a clean write; returns what was said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.beton.partial.journal").write_bytes(journal)
        (folder / "train.beton.partial").write_bytes(partial)
        said = write(folder, mode=mode)
        assert digests(folder) == stopped_and_expected(mode)[2]
        return said


def seal(lines: list[bytes]) -> bytes:
    """A journal of these lines of JSON, each after the CRC-32 of all up to it."""
    crc, content = 0, b""
    for line in lines:
        crc = zlib.crc32(line, crc)
        content += f"{crc:08x} ".encode() + line + b"\n"
    return content


def lines_of(journal: bytes) -> list[bytes]:
    return [line[9:] for line in journal.splitlines()]


@pytest.mark.parametrize("mode", ["raw", "jpg", "dct"])
def test_a_whole_journal_is_believed(mode: str) -> None:
    journal, partial, _ = stopped_and_expected(mode)
    assert seal(lines_of(journal)) == journal
    assert "resuming" in resume(journal, partial, mode)


@pytest.mark.parametrize("mode", ["raw", "jpg", "dct"])
@settings(max_examples=40)
@given(data=st.data())
def test_any_bytes_of_a_journal_may_change(mode: str, data: st.DataObject) -> None:
    journal, partial, _ = stopped_and_expected(mode)
    begin = data.draw(st.integers(0, len(journal)))
    end = data.draw(st.one_of(st.just(begin), st.integers(begin, min(begin + 99, len(journal)))))
    put = data.draw(st.binary(max_size=9))
    resume(journal[:begin] + put + journal[end:], partial, mode)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), max_size=6), st.booleans())
def test_lines_may_be_lost_doubled_or_moved(order: list[int], sealed: bool) -> None:
    journal, partial, _ = stopped_and_expected("raw")
    lines = lines_of(journal)
    chosen = [place for place in order if place < len(lines)]
    whole = journal.splitlines(keepends=True)
    mixed = seal([lines[i] for i in chosen]) if sealed else b"".join(whole[i] for i in chosen)
    resume(mixed, partial)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=150)
@given(data=st.data())
def test_sealed_lines_may_say_anything(data: st.DataObject) -> None:
    """One value of one line is another one, of any kind, and all seals are right."""
    journal, partial, _ = stopped_and_expected("raw")
    lines = [json.loads(line) for line in lines_of(journal)]
    line = data.draw(st.sampled_from(lines))
    (inner,) = (value for value in line.values() if value is not None)
    key = data.draw(st.sampled_from(sorted(inner)))
    value = inner[key]
    near = st.integers(-2, 2).map(lambda n: value + n) if isinstance(value, int) else JSON
    changed = data.draw(JSON | near)
    inner[key] = changed
    resume(seal([json.dumps(each).encode() for each in lines]), partial)


def edit(change: Callable[[dict[str, Any], list[dict[str, Any]]], object]) -> bytes:
    """The journal, sealed again after `change(head, entries)`."""
    lines = [json.loads(line) for line in lines_of(stopped_and_expected("raw")[0])]
    change(lines[0]["head"], [line["entry"] for line in lines[1:]])
    return seal([json.dumps(line).encode() for line in lines])


@pytest.mark.parametrize("size", [0, -1, 1, PAGE // 2, PAGE - 1, PAGE + 1, 2 * PAGE, 2**31, 2**62])
def test_pages_of_another_size_are_not_believed(size: int) -> None:
    journal = edit(lambda head, _: head.update(page_size=size))
    assert "resuming" not in resume(journal, stopped_and_expected("raw")[1])


DOUBTS: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], object]] = {
    "labels": lambda _, entries: flip(entries[0], "rows", 16),
    "padding of a row": lambda _, entries: flip(entries[0], "rows", 13),
    "height": lambda _, entries: flip(entries[0], "rows", 3),
    "place in a row": lambda _, entries: flip(entries[0], "rows", 5),
    "place in the table": lambda _, entries: flip(entries[0], "allocations", 8),
    "number of a sample": lambda _, entries: flip(entries[0], "allocations", 0),
    "sum of a place": lambda _, entries: flip(entries[0]["sums"], "data", 0),
    "no sums": lambda _, entries: entries[0].update(sums=None),
    "more damaged than images": lambda _, entries: entries[0].update(damaged=999),
    "a name that was not skipped": lambda _, entries: entries[0].update(skipped=["x"]),
    "sums without squares": lambda _, entries: entries[0]["moments"][1].__setitem__(0, 0),
}


def flip(values: dict[str, Any], key: str, place: int) -> None:
    import base64

    content = bytearray(base64.b64decode(values[key]))
    content[place] ^= 1
    values[key] = base64.b64encode(content).decode()


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_sealed_line_that_cannot_be_true_is_not_believed(doubt: str) -> None:
    journal = edit(DOUBTS[doubt])
    assert "cannot be resumed" in resume(journal, stopped_and_expected("raw")[1])


@settings(max_examples=40)
@given(data=st.data())
def test_pages_may_be_damaged(data: st.DataObject) -> None:
    journal, partial, _ = stopped_and_expected("raw")
    place = data.draw(st.integers(0, len(partial) - 1))
    resume(journal, partial[:place])
    resume(journal, partial[:place] + bytes([partial[place] ^ 255]) + partial[place + 1 :])


@pytest.mark.parametrize("name", ["train.beton.partial", "train.beton.partial.journal"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder"])
def test_what_leads_elsewhere_is_refused_and_left_alone(
    tmp_path: Path, name: str, kind: str
) -> None:
    journal, partial, _ = stopped_and_expected("raw")
    folder, victim = tmp_path / "out", tmp_path / "victim"
    folder.mkdir()
    content = journal if name.endswith("journal") else partial
    victim.write_bytes(content)
    (folder / "train.beton.partial").write_bytes(partial)
    (folder / "train.beton.partial.journal").write_bytes(journal)
    (folder / name).unlink()
    make: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(victim),
        "dangling link": lambda path: path.symlink_to(tmp_path / "new"),
        "hard link": lambda path: path.hardlink_to(victim),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }
    make[kind](folder / name)
    before = sorted(os.listdir(folder))
    with pytest.raises(FailureError, match=f"{name} (is|has) .*; remove it"):
        write(folder)
    assert victim.read_bytes() == content
    assert sorted(os.listdir(folder)) == before
    assert not (tmp_path / "new").exists()
