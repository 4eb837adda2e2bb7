"""Damaged, cut, swapped and unwritable entries of the kernel cache."""

import errno
import itertools
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability import cache
from resnet_ffcv.kernels import sealing
from resnet_ffcv.kernels.sealing import SealedCache


def formula(x: int) -> int:
    return 3 * x + 1


def other(x: int) -> int:
    return 5 * x + 2


def start(folder: Path, function: Callable[..., Any] = formula) -> Any:
    """The function as a new process has it: nothing is compiled yet."""
    compiled = numba.njit(function)
    compiled._cache = SealedCache(function, folder)
    return compiled


def hits(compiled: Any) -> int:
    return sum(compiled.stats.cache_hits.values())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "kernels"
    folder.mkdir()
    assert start(folder)(7) == 22
    assert start(folder)(7.5) == 23.5
    assert sorted(path.suffix for path in folder.iterdir()) == [".nbc", ".nbc", ".nbi"]
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "kernels"))


def check_is_mended(folder: Path) -> None:
    """The result is right; what is damaged was not loaded, and is replaced."""
    first = start(folder)
    assert (first(7), hits(first)) == (22, 0)
    second = start(folder)
    assert (second(7), hits(second)) == (22, 1)


def index_and_data(folder: Path) -> tuple[Path, Path]:
    """The index, and the machine code for int64."""
    (index,) = folder.glob("*.nbi")
    (data,) = folder.glob("*.1.nbc")
    return index, data


def test_whole_entries_are_loaded(folder: Path) -> None:
    for argument, result in ((7, 22), (7.5, 23.5)):
        compiled = start(folder)
        assert (compiled(argument), hits(compiled)) == (result, 1)


@pytest.mark.parametrize("number", [0, 1])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_is_loaded(filled: Path, number: int, place: float, bit: int) -> None:
    path = index_and_data(filled)[number]
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[int(place * len(content))] ^= 1 << bit
    path.write_bytes(flipped)
    try:
        assert load(filled) is None
    finally:
        path.write_bytes(content)
    assert load(filled) is not None


def load(folder: Path) -> Any:
    """What the cache has for int64, without compiling."""
    compiled = start(folder)
    return compiled._cache.load_overload((numba.int64,), compiled.targetctx)


@pytest.mark.parametrize("number", [0, 1])
@given(share=st.floats(0, 1, exclude_max=True), rest=st.binary(max_size=50))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_cut_or_garbled_file_is_loaded(
    filled: Path, number: int, share: float, rest: bytes
) -> None:
    path = index_and_data(filled)[number]
    content = path.read_bytes()
    changed = content[: int(share * len(content))] + rest
    path.write_bytes(changed)
    try:
        assert (load(filled) is None) == (changed != content)
    finally:
        path.write_bytes(content)


BREAKS: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "the seal alone": lambda path: path.write_bytes(path.read_bytes()[:32]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "endless": lambda path: os.truncate(path, 1 << 40),
    "missing": Path.unlink,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "numba's own": lambda path: path.write_bytes(path.read_bytes()[32:]),
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("words", BREAKS)
def test_a_damaged_entry_is_compiled_again_and_replaced(
    folder: Path, words: str, number: int
) -> None:
    BREAKS[words](index_and_data(folder)[number])
    check_is_mended(folder)


class Payload:
    """Pickled code."""

    ran = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return mark, ()


def mark() -> None:
    Payload.ran = True


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("seal", [b"", bytes(32), b"\xff" * 32])
def test_nothing_is_unpickled_whose_seal_does_not_fit(
    folder: Path, number: int, seal: bytes
) -> None:
    pickled = pickle.dumps(Payload())
    pickle.loads(pickled)
    assert Payload.ran  # it would run
    Payload.ran = False
    index_and_data(folder)[number].write_bytes(seal + pickled)
    check_is_mended(folder)
    assert not Payload.ran


def test_an_entry_in_another_place_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    ints, floats = sorted(folder.glob("*.nbc"))
    kept = ints.read_bytes()
    ints.write_bytes(floats.read_bytes())
    check_is_mended(folder)
    ints.write_bytes(kept)
    assert hits(start(folder)) == 0
    elsewhere = Path(shutil.copytree(folder, tmp_path / "kernels-of-another-version"))
    check_is_mended(elsewhere)


def test_two_processes_may_give_two_signatures_one_file(folder: Path) -> None:
    # Each reads the index, compiles for a while, and takes the first free number.
    for path in folder.iterdir():
        path.unlink()
    start(folder)(7)
    index, data = index_and_data(folder)
    kept = index.read_bytes()
    index.unlink()
    start(folder)(7.5)
    assert index_and_data(folder) == (index, data)
    index.write_bytes(kept)  # of int64, for the file that holds the code for float64
    check_is_mended(folder)
    floats = start(folder)
    assert floats(7.5) == 23.5


def test_an_entry_that_cannot_be_rebuilt_is_compiled_again(folder: Path) -> None:
    kept = start(folder)._cache
    key = kept._index_key((numba.int64,), start(folder).targetctx.codegen())
    for content in (Payload, ("not", "a", "result"), (), 1, b"\x7fELF"):
        kept._cache_file.save(key, content)
        check_is_mended(folder)


def test_functions_do_not_share_entries(folder: Path) -> None:
    assert start(folder, other)(7) == 37
    for function, result in ((other, 37), (formula, 22)):
        compiled = start(folder, function)
        assert (compiled(7), hits(compiled)) == (result, 1)


CALLS = [("create_file", sealing), ("replace", os), ("open", sealing)]


@pytest.mark.parametrize(("name", "module"), CALLS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_takes_nothing_costs_the_entry_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    name: str, module: Any, number: int,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    sealing._warn_unkept.cache_clear()
    with monkeypatch.context() as changed:
        changed.setattr(module, name, fail, raising=False)
        for argument in (7, 7.5):
            assert start(tmp_path)(argument) == 3 * argument + 1
    assert [*tmp_path.iterdir()] == []
    (said,) = caplog.messages
    assert said.startswith(f"compiled kernels cannot be kept in {tmp_path}: {os.strerror(number)};")
    check_is_mended(tmp_path)


@pytest.mark.parametrize("call", range(4))
def test_a_write_that_ends_half_way_leaves_nothing_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls, replace = itertools.count(), os.replace

    def stop(source: Any, target: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as changed:
        changed.setattr(os, "replace", stop)
        for argument in (7, 7.5):
            try:
                start(tmp_path)(argument)
            except KeyboardInterrupt:
                break
    assert not [*tmp_path.glob(".*")]
    for argument in (7, 7.5):
        assert start(tmp_path)(argument) == 3 * argument + 1


def test_a_missing_folder_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sealing._warn_unkept.cache_clear()
    assert start(tmp_path / "gone" / "kernels")(7) == 22
    assert "No such file or directory" in caplog.text
    assert logging.getLevelName(caplog.records[0].levelno) == "WARNING"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_code_of_another_user_does_not_run() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        cache.make(folder / "both", 0o1777, 0)
        assert cache.spring(cache.TRAPS[0], folder / "both") == ""
        # What is planted would run: it does where the victim has put it there.
        own, ran = folder / "own", folder / "both" / "ran"
        cache.make(own, 0o700)
        kept, variables = own / cache.NAME, {"HOME": str(own), "RESNET_FFCV_CACHE": str(own)}
        cache.as_user(cache.VICTIM, cache.PLANT, str(kept), str(ran), **variables)
        for path in (own, kept):
            path.chmod(0o700)
        ended = cache.as_user(cache.VICTIM, cache.LOAD, **variables)
        assert ended.stdout == f"{kept} 0\n"
        assert f"uid={cache.VICTIM}" in ran.read_text()
    finally:
        shutil.rmtree(folder)
