"""FFCV's own tests with our Loader in place of its own, and with its own.

    python -m benchmarks.ffcv_tests ffcv-1.0.2.tar.gz

Takes FFCV's source distribution, as its package index has it. Tests that need a GPU, a download or
a package that is not there fail with both; NCCL, which wants GPUs, is replaced by gloo. Installs
pytest-timeout and assertpy into a temporary folder. Four minutes on two cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_ffcv import commandline
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.errors import FailureError

LEFT_OUT = ("test_webdataset.py", "test_memory_leak.py", "test_cuda_nonblocking.py")
NEEDED = ("assertpy", "pytest-timeout", "pytest")
# Imported before any test, and in the processes that tests start.
OURS = """
import ffcv, ffcv.loader, ffcv.loader.loader
import resnet_ffcv
ffcv.Loader = ffcv.loader.Loader = ffcv.loader.loader.Loader = resnet_ffcv.Loader
"""


def unpack(sdist: Path, folder: Path) -> Path:
    """The folder of FFCV's tests."""
    try:
        with tarfile.open(sdist) as opened:
            opened.extractall(folder, filter="data")
        (tests,) = folder.glob("ffcv-*/tests")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise FailureError(f"{sdist} is no source distribution of FFCV: {error}") from error
    return tests


def run(tests: Path, site: Path, *, ours: bool) -> dict[str, str]:
    """{test: passed, failed or skipped}."""
    for path in tests.glob("test_*.py"):
        text = path.read_text().replace("'nccl'", "'gloo'")
        head = "import ours_for_ffcvs_tests\n" if ours else ""
        path.write_text(head + text.removeprefix("import ours_for_ffcvs_tests\n"))
    (site / "ours_for_ffcvs_tests.py").write_text(OURS)
    paths = os.pathsep.join([str(site), str(Path(__file__).parent.parent)])
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "--timeout=120", "-p",
         "no:cacheprovider", *(f"--ignore={name}" for name in LEFT_OUT), "."],
        cwd=tests, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+)", ended.stdout, re.MULTILINE)
    return {name: what.lower() for what, name in found if "::" in name}


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ffcv_tests", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("sdist", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, site = Path(name), Path(name) / "site"
        tests = unpack(arguments.sdist, folder)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), *NEEDED]
        subprocess.run(pip, check=True, capture_output=True)
        results = {}
        for loader in ("FFCV's", "ours"):
            console.print(f"FFCV's tests with {loader} Loader ...")
            results[loader] = run(tests, site, ours=loader == "ours")
    names = sorted(set(results["FFCV's"]) | set(results["ours"]))
    pairs = [tuple(found.get(test, "missing") for found in results.values()) for test in names]
    rows = [(f"{a} / {b}", str(pairs.count((a, b)))) for a, b in sorted(set(pairs))]
    show_table(
        f"tests of {arguments.sdist.name}: with FFCV's Loader / with ours", ("", "tests"), rows
    )
    worse = [n for n, p in zip(names, pairs, strict=True) if p[0] == "passed" != p[1]]
    for test in worse:
        console.print(f"passes with FFCV's Loader alone: {test}")
    return {"whole": not worse, "worse": worse, "tests": dict(zip(names, pairs, strict=True))}


if __name__ == "__main__":
    commandline.run_command(main)
