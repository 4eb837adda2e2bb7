"""Where a run was made: versions, device, commit; environment.json of its folder."""

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole
from resnet_ffcv.opening import read_file
from resnet_ffcv.schema import Count, convert, describe

PACKAGES = ("resnet-ffcv", "torch", "torchvision", "ffcv", "numba", "numpy", "timm")
MOST_BYTES = 1 << 20  # of environment.json


@dataclass(frozen=True)
class _Place:
    step: Count  # from which a run went on there


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit, for environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def write_environment(folder: Path, environment: dict[str, Any]) -> None:
    """Writes a run's environment.json."""
    content = json.dumps(environment, indent=2).encode()
    write_whole(folder / "environment.json", lambda file: file.write(content))


def add_environment(folder: Path, here: dict[str, Any], step: int) -> None:
    """Notes in environment.json, as `resumed`, where a run goes on, if that is another place.

    Places whose steps are all made again from here have made none of the run, and leave the list.

    Args:
        here: what `describe_environment` says, and the precision.
        step: the one that it goes on from.

    Raises:
        FailureError: the file is missing or damaged.
    """
    path = folder / "environment.json"
    try:
        first = msgspec.json.decode(read_file(path, MOST_BYTES), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or describe(error)
        raise FailureError(f"{path} cannot be read: {reason}") from error
    places = convert(first.pop("resumed", []), list[dict[str, Any]], f"{path}: resumed")
    resumed = [x for x in places if convert(x, _Place, f"{path}: resumed").step < step]
    last = {**first, **(resumed[-1] if resumed else {})}
    if any(last.get(name) != value for name, value in here.items()):
        resumed.append({"step": step, **here})
    if resumed != places:
        write_environment(folder, {**first, "resumed": resumed} if resumed else first)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _commit() -> str | None:
    """The commit of the program's checkout, with -dirty where files were changed; None if none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
