"""Commands report a long wait for a disk.

A thread looks at the main one from time to time. Linux counts how often a thread has gone to sleep:
where the count stays the same and the state is D (disk), it has been in a single call all the time.
Waits for other threads and processes are reported where they happen.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

SECONDS_BETWEEN = 5.0
SECONDS_SILENT = 30.0  # until the first report; the next ones when the wait has doubled

PACKAGE = str(Path(__file__).parent)

logger = logging.getLogger("resnet_ffcv")


def read_sleep(native_id: int) -> int | None:
    """How often a thread of this process has gone to sleep, if it waits for a disk now.

    None where it does not, or the system does not tell.
    """
    try:
        text = Path(f"/proc/self/task/{native_id}/status").read_text()
    except OSError:
        return None
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if facts.get("State", "").split()[:1] != ["D"]:
        return None
    return int(facts.get("voluntary_ctxt_switches", "0"))


class StallWatch:
    """Looks at one thread, by default the main one; `look` is called again and again."""

    def __init__(self, thread: threading.Thread | None = None) -> None:
        self.thread = thread or threading.main_thread()
        self.sleep: int | None = None
        self.since = self.report = 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="stalls").start()

    def _run(self) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Reports the thread's wait for a disk if it is long; `now` is in seconds."""
        sleep = read_sleep(self.thread.native_id or 0)
        if sleep is None or sleep != self.sleep:
            self.sleep, self.since, self.report = sleep, now, SECONDS_SILENT
            return
        seconds = now - self.since
        if seconds >= self.report:
            self.report = 2 * seconds
            frame = sys._current_frames().get(self.thread.ident or 0)
            logger.warning(
                "waiting for %.0f s for a disk or network file system to answer (%s)",
                seconds,
                _place(frame),
            )


def _place(frame: FrameType | None) -> str:
    """Where in this package a thread is: "sources.py:129, _scan"."""
    while frame and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "before the command began"
    name = os.path.basename(frame.f_code.co_filename)
    return f"{name}:{frame.f_lineno}, {frame.f_code.co_name}"
