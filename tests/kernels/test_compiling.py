"""Machine code is kept, and never served where something that made it has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import resnet_ffcv

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


def test_an_edit_another_cpu_and_a_second_start(tmp_path: Path) -> None:
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    package = tree / "resnet_ffcv"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(Path(resnet_ffcv.__file__).parent / "kernels", package / "kernels")
    luma, folder, hits, said = run(tree, cache)
    assert (luma, hits) == (200, 0)
    assert "compiling" in said
    assert folder.startswith(str(cache))
    assert run(tree, cache) == (200, folder, 1, "")  # a second start compiles nothing

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


def test_a_cache_that_cannot_be_written_goes_elsewhere(tmp_path: Path) -> None:
    tree = Path(resnet_ffcv.__file__).parent.parent
    blocked = tmp_path / "file"
    blocked.touch()
    luma, folder, _, _ = run(tree, blocked, TMPDIR=str(tmp_path))
    assert luma == 200
    assert folder.startswith(str(tmp_path / "resnet_ffcv-"))
