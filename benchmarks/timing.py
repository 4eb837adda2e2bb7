"""Times of competitors, taken in turn so that a busy machine is busy for all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from resnet_ffcv import commandline

Times = dict[str, list[float]]


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    passes: int,
    clock: Callable[[], float] = time.thread_time,
    what: str = "",
) -> Times:
    """Seconds of each run in each pass; one pass before them is not counted.

    `clock` is the CPU time of this thread, unless other threads work too.
    """
    times: Times = {name: [] for name in runs}
    with commandline.progress() as bar:
        task = bar.add_task(what, total=(passes + 1) * len(runs), note="", unit="runs")
        for number in range(passes + 1):
            for name, run in runs.items():
                begin = clock()
                run()
                if number:
                    times[name].append(clock() - begin)
                bar.advance(task)
    return times


class Ratio:
    """How many times faster one is than another: the median over passes, and the spread."""

    def __init__(self, slow: list[float], fast: list[float]) -> None:
        ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
        self.median, self.least, self.most = median(ratios), ratios[0], ratios[-1]

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.least:.2f} {self.most:.2f}]"
