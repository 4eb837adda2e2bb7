"""The command, in processes of its own: results, exit codes, and what is left after a signal."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_ffcv import beton

ROOT = Path(beton.__file__).parent.parent
COMMAND = [sys.executable, "write_datasets.py"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_sample_is_written_and_described(tmp_path: Path) -> None:
    ended = run(f"--output.folder={tmp_path}", "--writer.limit=300", "--writer.workers=1")
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    result = json.loads(line)
    assert result["files"] == {s: str(tmp_path / f"{s}.beton") for s in ("train", "val")}
    assert result["images"] == 600
    sizes = [os.stat(path).st_size for path in result["files"].values()]
    assert result["bytes"] == sum(sizes)
    assert result["seconds"] > 0
    for word in ("train.beton", "300", f"{sizes[0]:,}", "images/s"):
        assert word in ended.stderr
    told = run("--info", result["files"]["train"])
    assert told.returncode == 0
    info = json.loads(told.stdout)
    assert (info["images"], info["jpegs"], info["classes"][0]) == (300, 0, "airplane")
    for word in ("300 raw", "32 to 32", "mode=raw", "airplane", "8,388,608"):
        assert word in told.stderr


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [*COMMAND, f"--output.folder={tmp_path}", "--writer.limit=300"]
    shown = b""
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:  # fmt: skip
        os.close(theirs)
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1 << 16):
                shown += part
        os.close(ours)
    assert process.returncode == 0, shown.decode()
    for word in ("write train.beton", "check val.beton", "300/300", "images/s", "pages/s"):
        assert word in shown.decode()


def test_folders_with_a_file_of_keys(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    folder = make_folder(
        {f"{split}/{kind}/{place}.jpg": noise(place, 90, 70, "JPEG")
         for split in ("train", "test") for kind in "ab" for place in range(3)}
        | {"train/a/Thumbs.db": b"", "train/a/notes.txt": b""}
    )  # fmt: skip
    recipe = tmp_path / "write.yaml"
    recipe.write_text(
        f"source: {{name: imagefolder, path: {folder}}}\noutput: {{folder: {tmp_path / 'out'}}}\n"
        "image: {max_resolution: 50}\n"
    )
    ended = run("--config", str(recipe), "--image.quality=70")
    assert ended.returncode == 0, ended.stderr
    assert "ignored 2 files with unsupported extensions" in ended.stderr
    tables = beton.read_image_tables(tmp_path / "out/val.beton")
    # The default would be JPEG at the source's 90 pixels; at 50 it is raw.
    assert set(tables.metadata["image"]["mode"]) == {beton.RAW}
    assert set(tables.metadata["image"]["width"]) == {50}
    assert tables.metadata["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_info_of_a_file_without_a_manifest(tmp_path: Path) -> None:
    assert run(f"--output.folder={tmp_path}", "--writer.limit=5").returncode == 0
    (tmp_path / "val.beton.json").unlink()
    told = run("--info", str(tmp_path / "val.beton"))
    assert told.returncode == 0
    assert "none; FFCV writes none" in told.stderr
    assert json.loads(told.stdout)["classes"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--source.name=imagefolder"], 2, "needs source.path"),
        (["--source.name=imagefolder", "--source.path=/nowhere"], 2, "/nowhere: no such folder"),
        (["--source.name=imagefolder", "--source.path=/dev/null"], 2, "/dev/null: not a folder"),
        (["--source.name=imagenett"], 2, "source.name='imagenett' is not one of sample"),
        (["--image.qualty=3"], 2, "did you mean image.quality"),
        (["--image.quality=101"], 2, "image.quality='101' is not"),
        (["--output.folder=/dev/null"], 1, "/dev/null cannot be made"),
        (["--info", "/nowhere.beton"], 2, "/nowhere.beton: no such file"),
        (["--info", "tests"], 2, "--info tests: not a regular file"),
        (["--verfy", "x"], 2, "unknown key verfy; did you mean verify?"),
        (["--info", "LICENSE"], 1, "LICENSE is no .beton file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, words: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip().count("\n") == 0


def test_a_corrupt_image_is_one_line(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> None:
    good = noise(0, 30, 30, "JPEG")
    folder = make_folder({"train/a/1.jpg": good, "train/a/2.jpg": good[:-50], "val/a/1.jpg": good})
    ended = run("--source.name=imagefolder", f"--source.path={folder}",
                f"--output.folder={tmp_path / 'out'}")  # fmt: skip
    assert ended.returncode == 1
    assert f"error: {folder}/train/a/2.jpg cannot be stored" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "out").iterdir()) == []


# Signals --------------------------------------------------------------------------------


@pytest.fixture
def long_write(
    make_folder: Callable[..., Path], tmp_path: Path, noise: Any
) -> Callable[[], subprocess.Popen[str]]:
    """Starts a write of many PNGs, as the leader of a process group of its own."""
    content = noise(0, 500, 400)
    files = {f"{split}/a/{p:03}.png": content for split in ("train", "val") for p in range(250)}
    folder = make_folder(files)

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "--source.name=imagefolder", f"--source.path={folder}", "--image.mode=raw",
             f"--output.folder={tmp_path / 'out'}", "--writer.workers=2"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        wait_for(lambda: bool(list(tmp_path.glob("out/.train.beton.*.part"))))
        return process

    return start


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def group_is_gone(group: int) -> bool:
    """Whether no process of the group runs; one that ended and was not waited for does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(found) == group and state != "Z":
            return False
    return True


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGINT, False, 130), (signal.SIGTERM, False, 143)],
)
def test_a_signal_leaves_nothing(
    long_write: Callable[[], subprocess.Popen[str]],
    tmp_path: Path,
    number: signal.Signals,
    whole_group: bool,
    code: int,
) -> None:
    process = long_write()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.wait(20) == code
    out, errors = process.communicate()
    assert out == ""
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []
    wait_for(lambda: group_is_gone(process.pid))


def test_after_a_kill_workers_end_and_the_next_run_succeeds(
    long_write: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = long_write()
    process.kill()
    process.communicate()
    (left,) = (tmp_path / "out").iterdir()
    assert fnmatch(left.name, ".train.beton.*.part")
    wait_for(lambda: group_is_gone(process.pid))
    again = long_write()
    assert again.wait(50) == 0
    again.communicate()
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["train.beton", "train.beton.json", "val.beton", "val.beton.json"]
    found = beton.read_image_tables(tmp_path / "out/val.beton")
    assert np.array_equal(found.metadata["label"], np.zeros(250))
