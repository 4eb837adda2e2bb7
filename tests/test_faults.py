"""Bus errors: those of files that were cut are told by the Loader, others end the process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from betons import write_noise

from resnet_ffcv import faults

pytestmark = pytest.mark.skipif(
    not faults.is_supported(), reason="bus errors are only caught on Linux with glibc"
)

# A fault that is not caught ends the process: so all cases run in one of their own.
SCRIPT = """
import faulthandler, mmap, os, signal, sys, threading
from pathlib import Path
import numpy as np
from resnet_ffcv import Loader, faults, storage
from resnet_ffcv.beton import read_tables
from resnet_ffcv.decoders import WholeImage
from resnet_ffcv.errors import FailureError
from resnet_ffcv.stock import OrderOption, SimpleRGBImageDecoder

source = Path(sys.argv[1])

def copy(name):
    path = source.with_name(name)
    path.write_bytes(source.read_bytes())
    return path

def cut(path, file):
    region = file.tables.starts[57]
    os.truncate(path, int(region) + 10)
    return path

def attempt(name, function):
    try:
        print(name, "no error", function())
    except FailureError as error:
        print(name, error)

def in_an_epoch(decoder, on_error):
    path = copy(f"{decoder.__name__}-{on_error}")
    loader = Loader(path, 10, 1, order=OrderOption.SEQUENTIAL, on_error=on_error, batches_ahead=1,
                    pipelines={"image": [decoder()]})
    run = loader.plan.steps[0].operation
    seen = 0
    for batch in loader:
        seen += 1
        if seen == 2:
            cut(path, loader.storage)
    return seen

def between_check_and_use():
    # The size is asked for, then the file is cut, then it is read: only the fault tells.
    path = copy("between")
    loader = Loader(path, 103, 1, pipelines={"image": [WholeImage()]}, drop_last=False)
    iter(loader).close()
    check = loader.storage.check
    decode = WholeImage.decode
    def cut_first(*arguments):
        cut(path, loader.storage)
        found = decode(*arguments)
        os.truncate(path, loader.storage.size)
        os.utime(path, ns=(0, loader.storage.tables.identity[3]))
        return found
    WholeImage.decode = cut_first
    try:
        next(iter(loader))
    finally:
        WholeImage.decode = decode
        attempt("again", lambda: iter(loader))

attempt("ours", lambda: in_an_epoch(WholeImage, "raise"))
attempt("skipping", lambda: in_an_epoch(WholeImage, "skip"))
attempt("stock", lambda: in_an_epoch(SimpleRGBImageDecoder, "raise"))
attempt("between", between_check_and_use)

signal.signal(signal.SIGBUS, signal.SIG_DFL)  # somebody takes the handler away
attempt("replaced", lambda: in_an_epoch(WholeImage, "skip"))
before = len(faults._watch().free)
for _ in range(3):
    file = storage.Storage(read_tables(source))
    assert len(faults._watch().free) == before - 1
    del file
assert len(faults._watch().free) == before

faulthandler.enable()  # now its handler comes first, and ours behind it
faults.install()
with open(source.with_name("other"), "w+b") as other:
    other.write(bytes(100_000))
    other.flush()
    mapping = mmap.mmap(other.fileno(), 100_000, access=mmap.ACCESS_READ)
    other.truncate(0)
    sys.stdout.flush()
    mapping[50_000]
"""


def test_a_file_that_is_cut_is_told_and_other_bus_errors_are_not_caught(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "raw", (103, 200, 240))
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == -signal.SIGBUS, ended.stderr
    assert "Fatal Python error: Bus error" in ended.stderr  # of faulthandler, once
    lines = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert set(lines) == {"ours", "skipping", "stock", "between", "again", "replaced"}
    for name in ("ours", "skipping", "stock", "replaced"):
        assert "bytes since it was opened" in lines[name], lines[name]
        assert "was cut to" in lines[name]
    for name in ("between", "again"):
        assert "could not be read at sample " in lines[name], lines[name]
        number = int(lines[name].split("at sample ")[1].split(":")[0])
        assert 57 <= number <= 102
        assert str(tmp_path) in lines[name]


def test_a_process_on_an_unknown_system_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "is_supported", lambda: False)
    faults.install()
    assert faults.watch(np.zeros(9, np.uint8))() is None


def test_more_mappings_than_there_is_room_for_are_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults._watch(), "free", [])
    assert faults.watch(np.zeros(os.sysconf("SC_PAGE_SIZE"), np.uint8))() is None
