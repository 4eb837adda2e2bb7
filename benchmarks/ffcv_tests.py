"""FFCV's own tests with our Loader in place of its own, and with its own.

    python -m benchmarks.ffcv_tests ffcv-1.0.2.tar.gz

Takes FFCV's source distribution, as its package index has it. Tests that need a GPU, a download or
a package that is not there fail with both; NCCL, which wants GPUs, is replaced by gloo. Installs
pytest-timeout and assertpy into a temporary folder. A quarter of an hour on two cores.
"""

import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_ffcv import commandline
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.errors import FailureError

# They want a package that FFCV does not name, an interface that it has no more, and a GPU.
LEFT_OUT = ("test_webdataset.py", "test_memory_leak.py", "test_cuda_nonblocking.py")
NEEDED = ("assertpy", "pytest-timeout")
LIMIT = 120  # seconds of a test; a file of them gets twice that
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
        for path in tests.glob("test_*.py"):
            text = path.read_text().replace("'nccl'", "'gloo'")
            path.write_text("import ours_for_ffcvs_tests\n" + text)
    except (OSError, ValueError, tarfile.TarError) as error:
        cause = str(error).splitlines()[0]
        raise FailureError(f"{sdist} is no source distribution of FFCV: {cause}") from error
    return tests


def run(tests: Path, site: Path, *, ours: bool) -> dict[str, str]:
    """{test: passed, failed, error, skipped, or hangs}."""
    (site / "ours_for_ffcvs_tests.py").write_text(OURS if ours else "")
    found: dict[str, str] = {}
    files = sorted(path for path in tests.glob("test_*.py") if path.name not in LEFT_OUT)
    with commandline.progress() as bar:
        words = f"FFCV's tests with {'our' if ours else 'its own'} Loader"
        task = bar.add_task(words, total=len(files), note="", unit="files")
        for path in files:
            found |= run_file(path, site)
            bar.advance(task)
    return found


def run_file(path: Path, site: Path) -> dict[str, str]:
    """`run` of one file, in a process that is ended where it does not end by itself, as FFCV's
    threads can outlive its tests.
    """
    search = os.pathsep.join([str(site), str(Path(__file__).parent.parent)])
    log = path.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-v", "--tb=no", f"--timeout={LIMIT}",
             "-p", "no:cacheprovider", path.name],
            cwd=path.parent, env={**os.environ, "PYTHONPATH": search}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(2 * LIMIT)
            ended = "ends"
        except subprocess.TimeoutExpired:
            ended = "hangs"
        with suppress(ProcessLookupError):  # what it started and left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = re.findall(r"^(test_\S+::\S+) ?(PASSED|FAILED|ERROR|SKIPPED)?", log.read_text(), re.M)
    results = {test: result.lower() or "hangs" for test, result in lines}
    return {**results, f"{path.name}: the process": ended}


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.ffcv_tests", description=__doc__)
    parser.add_argument("sdist", type=Path, help="ffcv-1.0.2.tar.gz, as the package index has it")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, site = Path(name), Path(name) / "site"
        tests = unpack(arguments.sdist, folder)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
        installed = subprocess.run([*pip, *NEEDED], capture_output=True, text=True)
        if installed.returncode:
            raise FailureError(f"{' and '.join(NEEDED)} cannot be installed: {installed.stderr}")
        results = {}
        for loader in ("FFCV's", "ours"):
            results[loader] = run(tests, site, ours=loader == "ours")
    names = sorted(set(results["FFCV's"]) | set(results["ours"]))
    pairs = [tuple(found.get(test, "missing") for found in results.values()) for test in names]
    rows = [(f"{a} / {b}", str(pairs.count((a, b)))) for a, b in sorted(set(pairs))]
    show_table(
        f"tests of {arguments.sdist.name}: with FFCV's Loader / with ours", ("", "tests"), rows
    )
    both = dict(zip(names, pairs, strict=True))
    worse = [name for name, (a, b) in both.items() if a in ("passed", "ends") and b != a]
    for test in worse:
        console.print(f"passes with FFCV's Loader alone: {test}")
    return {"whole": not worse, "worse": worse, "tests": both}


if __name__ == "__main__":
    commandline.run_command(main)
