"""Times of competitors, taken in turn so that a busy machine is busy for all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

from resnet_ffcv import commandline

Times = dict[str, list[float]]


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    passes: int,
    clock: Callable[[], float] = time.thread_time,
    what: str = "",
) -> Times:
    """Seconds of each run in each pass; one pass before them is not counted.

    Each pass begins with another run, so that none always follows the same one. `clock` is the CPU
    time of this thread, unless other threads work too.
    """
    times: Times = {name: [] for name in runs}
    with commandline.progress() as bar:
        task = bar.add_task(what, total=(passes + 1) * len(runs), note="", unit="runs")
        for number in range(passes + 1):
            begin_with = number % len(runs)
            for name in [*list(runs)[begin_with:], *list(runs)[:begin_with]]:
                begin = clock()
                runs[name]()
                if number:
                    times[name].append(clock() - begin)
                bar.advance(task)
    return times


class Ratio(NamedTuple):
    """How many times faster one is than another: over the passes, the median and the spread."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, slow: list[float], fast: list[float]) -> "Ratio":
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        return cls(median(ratios), min(ratios), max(ratios))

    @property
    def spread(self) -> str:
        return f"{self.least:.1f} to {self.most:.1f}"

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.spread})"


def describe_run() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    # Here, because the writer's workers import this module, and need no torch.
    import torch

    from resnet_ffcv.kernels.compiling import target
    from resnet_ffcv.runs import describe_environment

    return {"kernels": target()[1], **describe_environment(torch.device("cpu"))}
