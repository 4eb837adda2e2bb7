"""Set-up as far as it can be tried without root and network: what it refuses, and the lock file."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What the script itself calls; no compiler, no pkg-config, no apt-get.
TOOLS = "bash cat dirname env find flock grep id mkdir mktemp printf rm sed sha256sum tail uname"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and `bin` with the programs it may find."""
    folder = tmp_path / "check out"
    (folder / "tools").mkdir(parents=True)
    (folder / "bin").mkdir()
    for name in ("tools/setup.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in TOOLS.split():
        found = shutil.which(name)
        assert found, name
        (folder / "bin" / name).symlink_to(found)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def set_up(folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "tools" / "setup.sh")],
        env={"PATH": str(folder / "bin"), "PYTHON": python, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_apt_it_names_both_ways(checkout: Path) -> None:
    ended = set_up(checkout)
    assert ended.returncode == 1
    assert "there is no apt-get here" in ended.stderr
    assert "apt-get install --no-install-recommends libopencv-core-dev" in ended.stderr
    assert "conda install -c conda-forge libopencv" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_without_root_it_says_so(checkout: Path) -> None:
    program(checkout, "apt-get", "echo it was run >&2; exit 1")
    (checkout / "bin" / "id").unlink()
    program(checkout, "id", "echo 1000")
    ended = set_up(checkout)
    assert ended.returncode == 1
    assert "only root can install them" in ended.stderr
    assert "it was run" not in ended.stderr


@pytest.mark.parametrize(
    ("version", "words"), [("3.10", "3.11 or newer is needed"), ("3.99", "not yet built")]
)
def test_a_python_that_does_not_fit_is_refused(checkout: Path, version: str, words: str) -> None:
    program(checkout, "python", f"printf '%s\\n' /opt/python {version} /opt /opt/include")
    ended = set_up(checkout, "python")
    assert ended.returncode == 1
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_python_that_is_not_there_is_one_line(checkout: Path) -> None:
    ended = set_up(checkout, "python3.77")
    assert ended.returncode == 1
    assert ended.stderr.startswith("setup: cannot run python3.77")
    assert ended.stderr.count("\n") == 1


def locked() -> dict[str, str]:
    """Name -> version of every line of the lock file; several versions, one a Python."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)==([^ ;]+)( ; .+)?", x) for x in lines if x[:1] != "#"]
    assert all(found)
    return {match[1]: match[2] for match in found if match}


def test_the_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[A-Za-z0-9-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    assert names <= set(locked())


def test_the_lock_has_one_opencv_without_windows() -> None:
    assert [name for name in locked() if name.startswith("opencv")] == ["opencv-python-headless"]
