"""Machine code is kept, and never served where something that made it has changed."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import resnet_ffcv
from resnet_ffcv.kernels import compiling

PROGRAM = """
import sys
import numpy as np
from resnet_ffcv.kernels import colour, compiling
image = np.full((2, 2, 3), 200, np.uint8)
luma = colour.split_colour(image)[0][0, 0]
print(luma, compiling.CACHE, sum(colour.split_colour.stats.cache_hits.values()))
"""


def run(tree: Path, cache: Path, **environment: str) -> tuple[int, str, int, str]:
    """(luma of gray 200, folder of the cache, whether it was hit, what was said)."""
    env = {**os.environ, "PYTHONPATH": str(tree), "RESNET_FFCV_CACHE": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env,
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    luma, folder, hits = done.stdout.split()
    return int(luma), folder, int(hits), done.stderr


def test_an_edit_another_cpu_a_second_start_and_damage(tmp_path: Path) -> None:
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    package = tree / "resnet_ffcv"
    shutil.copytree(Path(resnet_ffcv.__file__).parent, package)
    luma, folder, hits, said = run(tree, cache)
    assert (luma, hits) == (200, 0)
    assert "compiling" in said
    assert folder.startswith(str(cache))
    assert run(tree, cache) == (200, folder, 1, "")  # a second start compiles nothing

    for number, path in enumerate(sorted(Path(folder).iterdir())):
        content = bytearray(path.read_bytes())
        content[number * 7919 % len(content)] ^= 1 << number % 8
        path.write_bytes(content)
    assert run(tree, cache)[:3] == (200, folder, 0)
    assert run(tree, cache) == (200, folder, 1, "")

    other_cpu = run(tree, cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert (other_cpu[0], other_cpu[2]) == (200, 0)
    assert other_cpu[1] != folder

    # A helper in another file than the function that is called.
    file = package / "kernels" / "vector.py"
    text = file.read_text()
    edited = text.replace(
        "return self._new(self.builder.ashr(", "return self._new(self.builder.shl("
    )
    assert edited != text
    file.write_text(edited)
    luma, other, hits, _ = run(tree, cache)
    assert luma != 200
    assert (other != folder, hits) == (True, 0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; the user's cache folder is in `tmp_path`, too."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("RESNET_FFCV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


NAME = f"kernels-{compiling.sources_digest()}"


def test_kernels_are_kept_where_the_user_says(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = temporary.parent / "home"
    assert compiling.choose_cache_folder() == temporary.parent / "cache" / "resnet_ffcv" / NAME
    for unset in ("", "relative"):  # which the standard tells us to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", str(home))
        assert compiling.choose_cache_folder() == home / ".cache" / "resnet_ffcv" / NAME
    monkeypatch.setenv("RESNET_FFCV_CACHE", str(temporary.parent / "own"))
    assert compiling.choose_cache_folder() == temporary.parent / "own" / NAME
    assert not caplog.messages
    assert not [*temporary.iterdir()]


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "others may write to": open_to_all,
    "chosen is not a folder": Path.touch,
    "nowhere: No such file or directory": lambda path: path.symlink_to("/proc/nowhere"),
}


@pytest.mark.parametrize("words", UNUSABLE)
def test_a_folder_that_cannot_be_used_is_named_and_another_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    chosen, other = temporary.parent / "chosen", temporary / f"resnet_ffcv-{os.geteuid()}"
    UNUSABLE[words](chosen)
    monkeypatch.setenv("RESNET_FFCV_CACHE", str(chosen))
    for _ in range(2):  # the second start finds the same
        assert compiling.choose_cache_folder() == other / NAME
        said = caplog.messages.pop()
        assert said.startswith(f"compiled kernels are not kept in {chosen}: ")
        assert words in said
        assert f"; {other / NAME} is used instead; RESNET_FFCV_CACHE can name a folder" in said
        caplog.clear()
    assert [*temporary.iterdir()] == [other]


def test_where_no_folder_is_safe_nothing_is_kept_or_left(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = temporary / f"resnet_ffcv-{os.geteuid()}"
    open_to_all(other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(other))
    assert compiling.choose_cache_folder() is None
    (said,) = caplog.messages
    assert "; each start compiles them again; RESNET_FFCV_CACHE can name a folder" in said
    assert not [*other.iterdir()]
    monkeypatch.setattr(compiling, "CACHE", None)
    assert compiling.kernel(double)(4) == 8
    assert "; the next start does so again" in caplog.messages[-1] or len(caplog.messages) == 1
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    assert compiling.choose_cache_folder() is None  # as with a full disk


def double(x: int) -> int:
    return 2 * x


def test_a_user_without_a_home_gets_a_temporary_folder(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nothing names one
    monkeypatch.chdir(temporary.parent)
    expected = temporary / f"resnet_ffcv-{os.geteuid()}" / NAME
    assert compiling.choose_cache_folder() == expected
    assert "this user has no home folder" in caplog.text
    assert not Path("~").exists()


def test_workers_do_not_repeat_what_their_parent_said(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all(temporary.parent / "chosen")
    monkeypatch.setenv("RESNET_FFCV_CACHE", str(temporary.parent / "chosen"))
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert compiling.choose_cache_folder() is not None
    assert not caplog.messages
