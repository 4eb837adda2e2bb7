"""Damaged files of the kernel cache, and another user of the machine who puts some there."""

import importlib
import itertools
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reliability.trying import ROOT, Tried
from resnet_ffcv import kernels
from resnet_ffcv.kernels.compiling import MARKER, sources_digest
from resnet_ffcv.kernels.sealing import SealedCache

NAME = f"kernels-{sources_digest()}"

START = """
import numpy as np
from resnet_ffcv.kernels import colour, compiling, geometry, raw
image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
out, work = np.zeros_like(image), np.empty(1 << 16, np.int32)
window = geometry.Window(0.0, 0.0, 9.0, 7.0, False, False)
raw.resample_rgb(
    image.ctypes.data, 9, 7, window, 0, out.ctypes.data, 9, 7, work
)
gray = np.repeat(image[..., :1], 3, 2)
assert np.array_equal(out, image) and np.array_equal(colour.split_colour(gray)[0], gray[..., 0])
print(sum(raw.resample_rgb.stats.cache_hits.values()))
"""


def try_cache(folder: Path, tries: int) -> list[Tried]:
    place = folder / "cache" / NAME
    for number in range(2):
        ended = start(START, RESNET_FFCV_CACHE=str(place.parent))
        if ended.returncode or ended.stdout != f"{number}\n":
            raise RuntimeError(f"start {number + 1} with a whole cache: {ended.stderr}")
    return [_try_loads(place, tries), _try_starts(place, max(1, tries // 100)), try_users(folder)]


def start(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **variables},
    )  # fmt: skip


def flip(content: bytes, rng: random.Random) -> bytes:
    """A file's content with one bit flipped."""
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """The first bytes of a file's content, or none."""
    return content[: rng.choice((0, rng.randrange(len(content))))]


def _entries(place: Path) -> Iterator[tuple[Any, SealedCache, Any]]:
    """(function, its cache in `place`, signature) of all machine code that is kept there."""
    for module in pkgutil.iter_modules(kernels.__path__, "resnet_ffcv.kernels."):
        for function in vars(importlib.import_module(module.name)).values():
            if hasattr(function, MARKER) and function.__module__ == module.name:
                cache = SealedCache(function.py_func, place)
                for key in cache._cache_file._load_index():
                    yield function, cache, key


def _try_loads(place: Path, tries: int) -> Tried:
    tried = Tried("a file of the kernel cache is damaged: its machine code is not loaded")
    rng, entries = random.Random(0), list(_entries(place))
    for number in range(tries + tries // 2):  # flipped bits, then half as many cuts
        function, cache, key = rng.choice(entries)
        file = cache._cache_file
        data_path = file._data_path(file._load_index()[key])
        path = Path(rng.choice([file._index_path, data_path]))
        content = path.read_bytes()
        path.write_bytes((flip if number < tries else cut)(content, rng))
        loaded = cache.load_overload(key[0], function.targetctx)
        path.write_bytes(content)
        tried.expect(loaded is None, f"{path.name} was loaded")
    for function, cache, key in entries:
        whole = cache.load_overload(key[0], function.targetctx)
        tried.expect(whole is not None, f"{function.__name__} was not loaded, though whole")
    tried.measured = f"{tries} flipped bits, {tries // 2} cuts, {len(entries)} signatures"
    return tried


def _try_starts(place: Path, tries: int) -> Tried:
    tried, files = Tried("every entry of the kernel cache is damaged: the pixels are right"), 0
    rng = random.Random(1)
    for _ in range(tries):
        for index in sorted(place.glob("*.nbi")):
            name = index.name.removesuffix("nbi")
            others = place.glob(f"{name}*.nbc")
            for path in [index] if rng.randrange(2) else others:
                path.write_bytes(rng.choice((flip, cut))(path.read_bytes(), rng))
                files += 1
        for hits in "01":  # compiled again, and kept
            ended = start(START, RESNET_FFCV_CACHE=str(place.parent))
            words = f"exit code {ended.returncode}, {hits} hits: {ended.stderr[-200:]}"
            tried.expect(ended.returncode == 0 and ended.stdout == f"{hits}\n", words)
    tried.measured = f"{files} files damaged"
    return tried


ATTACKER, VICTIM, GROUP = 12345, 23456, 34567  # GROUP is of both

PLANT = """
import os, sys
from pathlib import Path
from resnet_ffcv.kernels import geometry
from resnet_ffcv.kernels.sealing import SealedCache
class Payload:
    def __reduce__(self):
        return os.system, (f"id > {sys.argv[2]}",)
place = Path(sys.argv[1])
place.mkdir(parents=True, exist_ok=True)
file = SealedCache(geometry.scaled.py_func, place)._cache_file
file._save_data(file._index_name, Payload())  # with the right seal
for path in (place, *place.parents):
    try: path.chmod(0o777)
    except OSError: break
print("planted")
"""
LOAD = """
from resnet_ffcv.kernels import compiling, geometry
assert geometry.scaled(8, 8) == 8
print(compiling.CACHE, sum(geometry.scaled.stats.cache_hits.values()))
"""


def as_user(
    number: int, program: str, *arguments: str, umask: int = 0o022, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A program as another user, who may read everything, as the interpreter may be root's own."""
    command = [
        "setpriv", "--reuid", str(number), "--regid", str(GROUP), "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    ]  # fmt: skip
    return subprocess.run(
        [*command, sys.executable, "-c", program, *arguments], capture_output=True, text=True,
        cwd=ROOT, umask=umask, env={"PATH": os.environ["PATH"], **variables},
    )  # fmt: skip


@dataclass(frozen=True)
class Trap:
    """What the attacker fills, and what makes the victim look there."""

    words: str
    planted: str  # folder, in the folder that both have
    variables: dict[str, str]  # of the victim; their values are folders in it, too
    prepare: Callable[[Path], object] = Path.exists  # changes the folder first
    planting: bool = True  # whether the attacker gets so far


def make(folder: Path, mode: int, owner: int = VICTIM) -> None:
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner, GROUP)


def link(folder: Path) -> None:
    make(folder / "trap", 0o755, ATTACKER)
    (folder / "link").symlink_to("trap")
    os.lchown(folder / "link", ATTACKER, GROUP)


TRAPS = [
    Trap("the cache is in a folder of all", "own", {"RESNET_FFCV_CACHE": "own"}),
    Trap("HOME is a folder of all", ".cache/resnet_ffcv", {"HOME": "."}),
    Trap("the temporary folder", f"resnet_ffcv-{VICTIM}", {"HOME": "none/x", "TMPDIR": "."},
         lambda folder: make(folder / "none", 0o555, 0)),
    Trap("a link", "trap", {"RESNET_FFCV_CACHE": "link"}, link),
    Trap("a group's folder", "group", {"RESNET_FFCV_CACHE": "group"},
         lambda folder: make(folder / "group", 0o775)),
    Trap("a group's sticky folder", "sticky", {"RESNET_FFCV_CACHE": "sticky"},
         lambda folder: make(folder / "sticky", 0o1775)),
    Trap("a group's folder above", "group/own", {"RESNET_FFCV_CACHE": "group/own"},
         lambda folder: make(folder / "group", 0o775)),
    Trap("umask 002", "home/.cache/resnet_ffcv", {"HOME": "home"},
         lambda folder: make(folder / "home", 0o755), planting=False),
]  # fmt: skip


def try_users(folder: Path) -> Tried:
    words = (
        "another user plants code in a kernel cache: it does not run, and a second start is warm"
    )
    if os.geteuid() != 0:
        return Tried(f"{words} (skipped: needs root)")
    tried = Tried(words)
    folder.chmod(0o755)
    for number, trap in enumerate(TRAPS):
        both = folder / f"users{number}"
        make(both, 0o1777, 0)
        failed = spring(trap, both)
        tried.expect(not failed, f"{trap.words}: {failed}")
        shutil.rmtree(both)
    return tried


def spring(trap: Trap, folder: Path) -> str:
    """What went wrong, in words; nothing if the victim came to no harm."""
    trap.prepare(folder)
    ran, temporary = folder / "ran", folder / "temporary"
    make(temporary, 0o700)
    variables = {"TMPDIR": str(temporary), "HOME": str(temporary)}
    variables |= {name: str(folder / place) for name, place in trap.variables.items()}
    if not trap.planting:  # the victim comes first
        as_user(VICTIM, LOAD, umask=0o002, **variables)
    planted = as_user(ATTACKER, PLANT, str(folder / trap.planted / NAME), str(ran), umask=0)
    if (planted.stdout == "planted\n") != trap.planting:
        return f"the attacker: {planted.stdout}{planted.stderr[-200:]}"
    hits = itertools.count(0 if trap.planting else 1)
    for _ in range(2):
        ended = as_user(VICTIM, LOAD, umask=0o002, **variables)
        if ran.exists():
            return "code of another user ran"
        if ended.returncode:
            return ended.stderr[-200:]
        place, found = ended.stdout.split()
        if place != "None" and int(found) != min(next(hits), 1):
            return f"{found} hits in {place}"
    return ""
