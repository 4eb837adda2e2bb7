"""Files that lie: does any of them crash, hang, or show another sample's pixels?

`try_lies` is the part of `python -m benchmarks.reliability --only hostile`. The work is done by
processes of this module, each bounded in memory and time, which read their honest files from a
folder and try one lie after the other:

    python -m benchmarks.reliability.lies SEEDS OWN FIRST STEP END
"""

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.mutating import SAMPLES, Liar, colour, write_seeds
from benchmarks.reliability.trying import ROOT, Tried
from resnet_ffcv.errors import FailureError, UsageError

SECONDS = 120  # that a file may take; the first one of a process also loads torch and kernels
MEMORY = 8 << 30  # bytes beyond what a process has after its start
STOCK_EVERY = 9  # files also go through FFCV's decoders, which are compiled for each Loader
SIDE = 16  # pixels of the views
NEAR = 3  # levels between a colour and itself after JPEG
SHARE = 0.1  # of an image in another sample's colour: more is no chance


def try_lies(folder: Path, tries: int) -> list[Tried]:
    tried = Tried(
        "a file lies: it is refused by name, or read; no crash, no hang, no other sample's pixels"
    )
    write_seeds(folder / "seeds")
    write_weights(folder / "seeds")
    workers = len(os.sched_getaffinity(0))
    running = [Worker(folder, first, workers, tries) for first in range(workers)]
    ends: Counter[str] = Counter()
    with selectors.DefaultSelector() as selector:
        for worker in running:
            worker.start(selector)
        while any(not worker.is_done for worker in running):
            for key, _ in selector.select(1):
                key.data.read()
            for worker in running:
                for words, problems, ended in worker.take_results(selector):
                    ends.update(ended)
                    tried.expect(not problems, f"{words}: {'; '.join(problems)}")
    tried.measured = ", ".join(f"{name} {count:,}" for name, count in sorted(ends.items()))
    return [tried]


class Worker:
    """A process that tries numbers `first`, `first + step`, ...; begun again after a crash."""

    def __init__(self, folder: Path, first: int, step: int, end: int) -> None:
        self.folder, self.next, self.step, self.end = folder, first, step, end
        self.own = folder / f"worker-{first}"
        self.process: subprocess.Popen[bytes] | None = None
        self.buffer, self.heard = b"", time.monotonic()

    @property
    def is_done(self) -> bool:
        return self.process is None and self.next >= self.end

    def start(self, selector: selectors.BaseSelector) -> None:
        if self.next >= self.end:
            self.process = None
            return
        numbers = (str(n) for n in (self.next, self.step, self.end))
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder / "seeds"), str(self.own), *numbers],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.heard = time.monotonic()
        selector.register(self.process.stdout, selectors.EVENT_READ, self)  # type: ignore[arg-type]

    def read(self) -> None:
        self.buffer += os.read(self.process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
        self.heard = time.monotonic()

    def take_results(
        self, selector: selectors.BaseSelector
    ) -> Iterator[tuple[str, list[str], dict[str, int]]]:
        """(what was tried, what was wrong, how each reader ended) of each file since the last."""
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.next += self.step
            yield said["words"], said["problems"], said["ended"]
        if self.process is None:
            return
        hangs = time.monotonic() - self.heard > SECONDS
        if hangs:
            os.killpg(self.process.pid, signal.SIGKILL)
        elif self.process.poll() is None:
            return
        code = self.process.wait()
        self.read()
        if b"\n" in self.buffer:  # it spoke before it ended
            return
        selector.unregister(self.process.stdout)  # type: ignore[arg-type]
        if self.next < self.end:
            yield f"number {self.next}", ["hangs" if hangs else f"ended by {code}"], {}
            self.next += self.step
        self.start(selector)


def write_weights(folder: Path) -> None:
    """Weights of a small network, for train.py to test on the files."""
    import torch

    from resnet_ffcv.data import Normalize
    from resnet_ffcv.export import write_safetensors
    from resnet_ffcv.models import build_model

    half = torch.full((3, 1, 1), 0.5)
    facts = {
        "classes": [str(sample) for sample in range(SAMPLES)],
        "view": {"resolution": SIDE, "center_ratio": 1.0, "filter": "area"},
    }
    model = build_model("resnet8", SAMPLES)
    write_safetensors(folder / "weights.safetensors", model, Normalize(half, half), facts)


@dataclass
class Case:
    """One file that lies, and what came of it."""

    path: Path
    number: int
    problems: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """What a reader returns; None if it refuses the file by name."""
        try:
            found = function()
        except (UsageError, FailureError) as error:
            self.note(f"{name} refuses")
            if "\n" in str(error):
                self.problems.append(f"{name}: more than one line: {error}")
            return None
        except Exception as error:
            self.problems.append(f"{name}: unexpected {type(error).__name__}: {error}"[:300])
            return None
        self.note(f"{name} reads")
        return found

    def note(self, ended: str) -> None:
        self.ended[ended] = self.ended.get(ended, 0) + 1


def try_case(case: Case, liar: Liar, weights: Path) -> str:
    """Every reader on one file; returns what the lie is."""
    import train
    import write_datasets
    from resnet_ffcv.progress import Report
    from resnet_ffcv.verify import verify

    lie = liar.draw(case.number)
    undo = lie.tell(case.path)
    ours = liar.manifest.exists()
    try:
        verdict = case.call("verify", lambda: verify(case.path, Report(), decode=True))
        changed = case.path.read_bytes() != liar.content
        if verdict is not None and verdict.whole and ours and changed:
            case.problems.append("verify: a changed file is whole")
        case.call("info", lambda: write_datasets.main([f"--info={case.path}"]))
        load(case, liar)
        if ours:
            load(case, liar, verify="once")
            arguments = [f"--data.val={case.path}", f"--model.weights={weights}"]
            case.call("train.py", lambda: train.main(["--run.eval_only=true", *arguments]))
        if case.number % STOCK_EVERY == 0:
            case.call("FFCV's decoders", lambda: read_all(case, stock(liar), {}, exactly=False))
    finally:
        undo()
    return f"number {case.number}, {case.path.name}: {lie.words}"


def load(case: Case, liar: Liar, *, verify: str | None = None) -> None:
    """Two epochs of our Loader with our decoders."""
    from resnet_ffcv.decoders import RandomResizedCrop, WholeImage
    from resnet_ffcv.stock import IntDecoder, OrderOption

    kinds = (WholeImage((SIDE, SIDE)), RandomResizedCrop((SIDE, SIDE)))
    pipelines: dict[str, Any] = dict.fromkeys((f.name for f in liar.tables.fields), None)
    for info in liar.tables.fields:
        if info.form:
            pipelines[info.name] = [kinds[case.number % 2]]
        elif info.type_id == 1:
            pipelines[info.name] = [IntDecoder()]
    if not any(pipelines.values()):
        return
    orders = (OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM)
    options: dict[str, Any] = {
        "order": orders[case.number % 3],
        "os_cache": case.number % 4 != 0,
        "on_error": ("raise", "skip")[case.number // 2 % 2],
        "verify": verify,
    }
    name = "Loader with verify" if verify else "Loader"
    case.call(name, lambda: read_all(case, pipelines, options, exactly=verify is not None))


def stock(liar: Liar) -> dict[str, Any]:
    """Pipelines of FFCV's own decoders: the default ones, and a crop of images, which differ in
    size."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder

    return {
        info.name: [CenterCropRGBImageDecoder((SIDE, SIDE), 1)] if info.type_id == 2 else None
        for info in liar.tables.fields
        if info.type_id in (2, 255)  # a field that is not named has its default decoder
    }


def read_all(
    case: Case, pipelines: dict[str, Any], options: dict[str, Any], *, exactly: bool
) -> None:
    """Reads a file twice; notes images in another sample's colour.

    Args:
        exactly: whether the file is compared with its checksums: what is delivered must be what
            was written.
    """
    from resnet_ffcv import Loader

    size = 5
    loader = Loader(case.path, size, 1, drop_last=False, seed=1, pipelines=pipelines, **options)
    for _ in range(2):
        order = loader._whole_order(loader.next_epoch)
        for batch in loader:
            end = loader.state_dict()["samples"] or len(order)  # 0: the epoch's last batch
            begin = (end - 1) // size * size  # batches that are damaged as a whole do not come
            samples = order[begin:end].tolist()
            shown = [s for s in samples if s not in loader.damaged]
            for output in batch:
                if output.ndim == 4:
                    check_colours(case, np.asarray(output), shown, exactly=exactly)


def check_colours(case: Case, images: np.ndarray, samples: list[int], *, exactly: bool) -> None:
    """Each of uint8 (n, height, width, 3) must not show a sample that it is not."""
    colours = np.array([colour(sample) for sample in range(SAMPLES)])
    for image, sample in zip(images, samples, strict=False):
        near = np.abs(image[:, :, None].astype(int) - colours).max(-1) <= NEAR
        shares = near.mean((0, 1))
        own = shares[sample % SAMPLES]
        shares[sample % SAMPLES] = 0
        if shares.max() > SHARE:
            case.problems.append(f"sample {sample} shows sample {int(shares.argmax())}")
        if exactly and own < 1:
            case.problems.append(f"sample {sample} is not what was written, in spite of checksums")


def work(seeds: Path, own: Path, first: int, step: int, end: int) -> None:
    """The life of a worker process: a line of JSON for each file on standard output."""
    import shutil

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    import train  # noqa: F401
    import write_datasets  # noqa: F401

    with suppress(FileNotFoundError):
        shutil.rmtree(own)
    shutil.copytree(seeds, own)
    liars = [Liar(path) for path in sorted(own.rglob("*.beton")) if path.name != "val.beton"]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, end, step):
        liar = liars[number % len(liars)]
        case = Case(liar.path, number)
        words = try_case(case, liar, own / "weights.safetensors")
        said = {"words": words, "problems": case.problems, "ended": case.ended}
        out.write(json.dumps(said) + "\n")
        out.flush()


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
