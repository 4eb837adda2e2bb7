"""What goes on in the process of a test."""

import sys
from collections.abc import Iterator
from types import FrameType

import resnet_ffcv.epochs
import resnet_ffcv.storage

FILES = {resnet_ffcv.epochs.__file__, resnet_ffcv.storage.__file__}


def epoch_threads() -> int:
    """How many threads work for epochs: they run `_run` of a class that makes or reads batches."""
    return sum(
        any(f.f_code.co_name == "_run" and f.f_code.co_filename in FILES for f in stack(frame))
        for frame in sys._current_frames().values()
    )


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
