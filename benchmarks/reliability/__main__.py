"""What is promised of files, Loader and training, tried until it would break.

    python -m benchmarks.reliability

    python -m benchmarks.reliability --only hostile

Each part breaks something on purpose, many times, and counts how often a promise was not kept.
Where FFCV can run the same test (within a time limit), its result is shown as well. No failure is
expected, on any hardware.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.photos import positive
from benchmarks.reliability import cache, files, lies, loading, signals, training, writing
from benchmarks.reliability.trying import Tried
from benchmarks.timing import describe_run
from resnet_ffcv import commandline
from resnet_ffcv.commandline import console, show_table

PARTS: dict[str, tuple[Callable[[Path, int], list[Tried]], int]] = {
    "kills": (writing.try_kills, 50),
    "interrupts": (writing.try_interrupts, 20),
    "calls": (writing.try_failing_calls, 100),
    "failures": (writing.try_failures, 20),
    "flips": (files.try_flips, 50),
    "weights": (files.try_weights, 500),
    "breaks": (loading.try_breaks, 50),
    "opening": (loading.try_opening, 1),
    "damaged": (loading.try_damaged, 1),
    "training": (training.try_training, 20),
    "lies": (lies.try_lies, 10_000),
    "signals": (signals.try_signals, 22_000),  # of which 20,000 and more are interrupted
    "cache": (cache.try_cache, 500),
}
GROUPS = {"hostile": ("lies", "signals", "cache")}  # files, moments and users that mean harm


def describe(tried: Tried) -> str:
    """A line about a part that is done, so that what is known is said before all is."""
    found = f"{tried.promise}: {tried.tries} tries, {len(tried.failures)} failures"
    found += f"; {tried.measured}" if tried.measured else ""
    return found if tried.ffcv == "-" else f"{found}; FFCV: {tried.ffcv}"


def main(argv: Sequence[str]) -> dict[str, Any]:
    parser = commandline.Parser(prog="python -m benchmarks.reliability", description=__doc__)
    choices = (*PARTS, *GROUPS)
    parser.add_argument(
        "--only", choices=choices, help="one part instead of all; hostile: lies, signals and cache"
    )
    parser.add_argument(
        "--tries", type=positive, metavar="N", help="of each part, instead of its own"
    )
    arguments = parser.parse_args(argv)
    done: list[Tried] = []
    names = GROUPS.get(arguments.only, [arguments.only] if arguments.only else PARTS)
    with commandline.progress() as bar:
        task = bar.add_task("parts", total=len(names), note="", unit="parts")
        for name in names:
            part, tries = PARTS[name]
            bar.update(task, note=name)
            with tempfile.TemporaryDirectory() as folder:
                found = part(Path(folder), arguments.tries or tries)
            done += found
            bar.advance(task)
            for tried in found:
                console.print(f"{name}: {describe(tried)}", soft_wrap=True)
                for words in tried.failures[:5]:
                    console.print(f"  NOT KEPT: {words}", soft_wrap=True)
    rows = [(t.promise, str(t.tries), str(len(t.failures)), t.measured, t.ffcv) for t in done]
    show_table("promises", ("promise", "tries", "failures", "measured", "stock FFCV"), rows)
    failed = sum(len(tried.failures) for tried in done)
    return {"whole": failed == 0, "promises": [asdict(tried) for tried in done], **describe_run()}


if __name__ == "__main__":
    commandline.run_command(main)
