"""How fast a window of an image is decoded, at how many bytes and with which pixels.

    python -m benchmarks.decoders --photos FOLDER

FFCV's own decoder is run on files by FFCV's own writer, on the same images, windows and sizes, as
FFCV's Loader compiles and calls it. Figures are CPU time of one thread, competitors in turn; ratios
are medians over the passes with the least and the greatest. Ours draw their windows in that time,
FFCV's is given them. PSNR is against float64 references from the pixels before any compression.

All parts take about ten minutes on two cores, of which the kernels' compiling, for four builds, is
half; with AVX-512 dct is expected at 12 times FFCV's jpg or more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numba
import numpy as np

import resnet_ffcv
from benchmarks import photos, stock
from benchmarks.picture import draw_picture
from benchmarks.references import psnr, resample
from benchmarks.timing import Ratio, Times, describe_run, interleave
from resnet_ffcv import commandline, decoders, turbojpeg
from resnet_ffcv.beton import read_image_tables
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.errors import UsageError
from resnet_ffcv.kernels.compiling import target, threaded_kernel
from resnet_ffcv.kernels.geometry import read_window
from resnet_ffcv.kernels.random import absorb
from resnet_ffcv.kernels.taps import FILTERS

from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder  # isort: skip
from ffcv.fields.decoders import SimpleRGBImageDecoder  # isort: skip
from ffcv.libffcv import resize_crop  # isort: skip
from ffcv.loader import Loader, OrderOption  # isort: skip
from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor  # isort: skip

KEY = np.uint64(2015)
REFERENCES = ("area", "triangle", "cubic")
FORMS = ("jpg", "proportion", "raw", "dct", "yuv420")  # of files; FFCV's are the first three
AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2,+fma,+f16c,+lzcnt"
BUILDS = {
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2},
    "SSE2": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}


@dataclass(frozen=True)
class Entry:
    """A competitor: which decoder, on which form of file."""

    name: str
    form: str
    filter_: str | None  # None: FFCV's own decoder

    @property
    def rival(self) -> str:
        """What of FFCV's it is compared with."""
        return "FFCV raw" if self.form == "raw" else "FFCV jpg"


FFCV = [Entry(f"FFCV {form}", form, None) for form in ("jpg", "raw")]
AREA = [Entry(f"{form}, area", form, "area") for form in ("dct", "yuv420", "raw", "jpg")]
OTHERS = [
    Entry(f"{form}, {filter_}", form, filter_)
    for form in ("dct", "yuv420", "raw")
    for filter_ in ("triangle", "cubic")
]
MIXED = Entry("FFCV half jpg, half raw", "proportion", None)


@dataclass
class Figures:
    """What was measured of an entry: microseconds and bytes an image, decibels by reference.

    `seconds` of each pass over all images; `ratio`: how many times faster than FFCV's jpg; of raw,
    than FFCV's raw.
    """

    seconds: list[float]
    microseconds: float
    ratio: Ratio
    bytes: float
    psnr: dict[str, float]


def make_windows(images: list[np.ndarray], size: int) -> np.ndarray:
    """float64 (n, 6): random-resized windows of the images, those that KEY gives."""
    decoder = decoders.RandomResizedCrop((size, size))
    heights, widths = (np.array([image.shape[side] for image in images]) for side in (0, 1))
    samples = decoders.Samples(KEY, np.arange(len(images)), heights, widths)
    return decoder.choose_windows(samples, (size, size))


def open_entry(
    entry: Entry, folder: Path, size: int, windows: np.ndarray, batch: int
) -> tuple[stock.Pipeline, Callable[[], None]]:
    """(pipeline, what begins its pass over the images)."""
    path = folder / f"{entry.form}.beton"
    if entry.filter_ is None:
        ffcv = stock.GivenCrops((size, size), windows[:, :4])
        return stock.Pipeline(path, entry.form, [ffcv], batch), lambda: ffcv.place.fill(0)
    ours = decoders.RandomResizedCrop((size, size), filter=entry.filter_)
    ours.draw_key = lambda: KEY  # type: ignore[method-assign]  # the same windows in every pass
    return stock.Pipeline(path, entry.form, [ours], batch), lambda: None


def compare(
    entries: Sequence[Entry], folder: Path, windows: np.ndarray, wanted: dict[str, np.ndarray],
    size: int, arguments: argparse.Namespace,
) -> dict[str, Figures]:  # fmt: skip
    """Times of competitors at one output size, and their pixels against `wanted` by reference."""
    count = len(windows)
    opened = {e.name: open_entry(e, folder, size, windows, arguments.batch) for e in entries}

    def run_all(name: str) -> list[np.ndarray]:
        pipeline, begin = opened[name]
        begin()
        return [pipeline.run(indices) for indices in pipeline.batches(count)]

    times = interleave(
        {name: lambda name=name: run_all(name) for name in opened},  # type: ignore[misc]
        arguments.passes,
        what=f"decode to {size} x {size}",
    )
    found = {}
    for entry in entries:
        pipeline, begin = opened[entry.name]
        begin()
        shown = [pipeline.run(i).copy() for i in pipeline.batches(count)]
        pixels = np.concatenate(shown)
        found[entry.name] = Figures(
            seconds=times[entry.name],
            microseconds=median(times[entry.name]) / count * 1e6,
            ratio=Ratio.of(times[entry.rival], times[entry.name]),
            bytes=pipeline.bytes,
            psnr={name: mean_psnr(pixels, truth) for name, truth in wanted.items()},
        )
    return found


def make_references(
    images: list[np.ndarray], windows: np.ndarray, filter_: str, size: int
) -> np.ndarray:
    """float32 (n, size, size, 3); reckoned in float64."""
    out = np.empty((len(images), size, size, 3), np.float32)
    for image, window, place in zip(images, windows, out, strict=True):
        place[:] = resample(image, read_window(window), FILTERS[filter_], (size, size))
    return out


def mean_psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    pairs = zip(pixels, reference, strict=True)
    return mean(psnr(image, np.clip(wanted, 0, 255)) for image, wanted in pairs)


def accurate_ffcv(
    folder: Path, windows: np.ndarray, wanted: dict[str, np.ndarray], size: int
) -> dict[str, float]:
    """PSNR of FFCV's jpg if it decoded with libjpeg's accurate DCT instead of its fast one."""
    tables = read_image_tables(folder / "jpg.beton")
    file = np.memmap(tables.path, np.uint8, "r")
    out = np.zeros((len(windows), size, size, 3), np.uint8)
    for number, (row, window, target_) in enumerate(
        zip(tables.metadata["image"], windows, out, strict=True)
    ):
        begin, length = tables.region(number)
        content = bytes(file[begin : begin + length])
        pixels = turbojpeg.decode(content, int(row["width"]), int(row["height"]), "RGB")
        y, x, tall, wide = (int(number) for number in window[:4])
        resize_crop(pixels, y, y + tall, x, x + wide, target_)
    return {name: mean_psnr(out, truth) for name, truth in wanted.items()}


def show_figures(title: str, found: dict[str, Figures]) -> None:
    rows, base = [], found["FFCV jpg"].bytes
    for name, figures in found.items():
        ratio = figures.ratio
        rows.append((
            name, f"{figures.microseconds:,.0f}", f"{ratio.median:.2f}", ratio.spread,
            f"{figures.bytes / 1e3:,.1f}", f"{figures.bytes / base:.3f}",
            *(f"{figures.psnr[reference]:.2f}" for reference in REFERENCES),
        ))  # fmt: skip
    columns = ("", "us", "x FFCV", "spread", "kB", "x jpg", "dB: area", "triangle", "cubic")
    show_table(title, columns, rows)


# CIFAR -----------------------------------------------------------------------------------


def compare_cifar(folder: Path, passes: int) -> tuple[Times, int]:
    """Seconds of a pass over the sample's images by FFCV's three operations, and by PadCrop."""
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        images = arrays["images"]
    path = stock.write(folder / "cifar.beton", images, "raw", 90)
    batch = 500
    chain = [SimpleRGBImageDecoder(), RandomTranslate(4), RandomHorizontalFlip()]
    pipelines = {
        "FFCV: decode, translate, flip": stock.Pipeline(path, "raw", chain, batch),
        "PadCrop": stock.Pipeline(path, "raw", [decoders.PadCrop((32, 32))], batch),
    }

    def run(pipeline: stock.Pipeline) -> None:
        for indices in pipeline.batches(len(images)):
            pipeline.run(indices)

    runs = {name: lambda p=pipeline: run(p) for name, pipeline in pipelines.items()}  # type: ignore[misc]
    return interleave(runs, 4 * passes, what="CIFAR"), len(images)


# Loader ----------------------------------------------------------------------------------


def compare_loaders(folder: Path, count: int, batch: int, passes: int) -> tuple[Times, Times]:
    """(CPU, wall-clock) seconds an image of an epoch of whole Loaders, with one worker."""
    size = (224, 224)
    ours = decoders.RandomResizedCrop
    made = {
        "FFCV jpg": (Loader, RandomResizedCropRGBImageDecoder(size), "jpg"),
        "dct": (Loader, ours(size), "dct"),
        "dct, our Loader": (resnet_ffcv.Loader, ours(size), "dct"),
    }
    indices = np.tile(np.arange(count), max(1, 2_000 // count))
    loaders = {}
    for name, (kind, decoder, form) in made.items():
        loaders[name] = kind(
            str(folder / f"{form}.beton"), batch_size=batch, num_workers=1, drop_last=False,
            order=OrderOption.RANDOM, indices=indices,
            custom_fields=stock.custom_fields(form),
            pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
        )  # fmt: skip
    wall: Times = {name: [] for name in made}

    def epoch(name: str) -> None:
        begin = time.perf_counter()
        for _ in loaders[name]:
            pass
        wall[name].append(time.perf_counter() - begin)

    runs = {name: lambda name=name: epoch(name) for name in made}  # type: ignore[misc]
    cpu = interleave(runs, passes, time.process_time, "whole Loaders")
    return (
        {name: [t / len(indices) for t in times] for name, times in cpu.items()},
        {name: [t / len(indices) for t in times[1:]] for name, times in wall.items()},
    )


# Threads ---------------------------------------------------------------------------------


@threaded_kernel
def spin(threads: int, rounds: int, out: np.ndarray) -> None:
    """The same work for any number of threads, in registers alone."""
    for thread in numba.prange(threads):
        key = np.uint64(thread)
        for i in range(rounds // threads):
            key = absorb(key, i)
        out[thread] = key


def compare_threads(folder: Path, passes: int) -> tuple[Ratio, Ratio]:
    """How many times faster two threads are than one: (decoding dct, spinning); wall clock."""
    decoder = decoders.RandomResizedCrop((224, 224))
    decoder.draw_key = lambda: KEY  # type: ignore[method-assign]
    pipeline = stock.Pipeline(folder / "dct.beton", "dct", [decoder], 64)
    room = np.empty(8, np.uint64)
    before = decoders.Compiler.num_threads, numba.get_num_threads()

    def decode(threads: int) -> None:
        decoders.Compiler.num_threads = threads
        for indices in pipeline.batches(len(pipeline.metadata)):
            pipeline.run(indices)

    try:
        numba.set_num_threads(2)
        spin(2, 1000, room)
        begin = time.perf_counter()
        spin(1, 1 << 20, room)
        rounds = int((1 << 20) * 0.03 / (time.perf_counter() - begin))  # as long as decoding
        times = interleave(
            {
                "decode 1": lambda: decode(1), "decode 2": lambda: decode(2),
                "spin 1": lambda: spin(1, rounds, room), "spin 2": lambda: spin(2, rounds, room),
            },
            4 * passes, time.perf_counter, "threads",
        )  # fmt: skip
    finally:
        decoders.Compiler.num_threads = before[0]
        numba.set_num_threads(before[1])
    decoding = Ratio.of(times["decode 1"], times["decode 2"])
    return decoding, Ratio.of(times["spin 1"], times["spin 2"])


# Start -----------------------------------------------------------------------------------

START = """
import sys, time
from benchmarks import stock
from resnet_ffcv import decoders
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader
path, form, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
if sys.argv[4] == "ours":
    from resnet_ffcv import Loader
begin = time.perf_counter()
decoder = RandomResizedCropRGBImageDecoder if form == "jpg" else decoders.RandomResizedCrop
loader = Loader(
    path, batch_size=batch, num_workers=1,
    custom_fields=stock.custom_fields(form),
    pipelines={"image": [decoder((224, 224))], "label": [IntDecoder()]},
)
for batch in loader:
    print(time.perf_counter() - begin)
    break
sys.stdout.flush()
import os
os._exit(0)  # a stock Loader's thread can abort the process
"""


def measure_start(
    folder: Path, images: list[np.ndarray], arguments: argparse.Namespace, _what: str
) -> dict[str, Any]:
    """Seconds from before a Loader's constructor to its first batch, in new processes."""
    result: dict[str, list[float]] = {}
    batch = str(min(arguments.batch, len(images)))
    starts = (
        ("dct, first start", "dct", "stock"),
        ("dct", "dct", "stock"),
        ("FFCV jpg", "jpg", "stock"),
        ("dct, our Loader", "dct", "ours"),
    )
    for name, form, loader in starts:
        result[name] = []
        for number in range(1 if "first" in name else min(arguments.passes, 5)):
            cache = {"RESNET_FFCV_CACHE": str(folder / "cache")}
            done = subprocess.run(
                [sys.executable, "-c", START, str(folder / f"{form}.beton"), form, batch, loader],
                env={**os.environ, **cache}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            result[name].append(float(done.stdout))
            if number == 0 and done.stderr.strip():
                console.print(f"{name} says: {done.stderr.strip()}")
    rows = [
        (name, f"{median(s):.2f}", f"{min(s):.2f} to {max(s):.2f}") for name, s in result.items()
    ]
    show_table(
        "a Loader's first batch, FFCV's Loader if not said otherwise",
        ("", "seconds", "spread"),
        rows,
    )
    return dict(result)


# All -------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = commandline.Parser(prog="python -m benchmarks.decoders", description=__doc__)
    photos.add_arguments(parser)
    parser.add_argument(
        "--sizes", type=photos.positive, nargs="+", default=[224, 192, 160, 128], metavar="N",
        help="pixels a side of what is decoded to (224 192 160 128)",
    )  # fmt: skip
    parser.add_argument(
        "--passes", type=photos.positive, default=8, metavar="N",
        help="over all images; of cifar and threads, which are short, four times as many (8)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=photos.positive, default=64, metavar="N", help="images a call (64)"
    )
    parser.add_argument("--only", choices=tuple(PARTS), help="one part instead of all")
    parser.add_argument("--picture", type=Path, help="draws speed against bytes into this .png")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> dict[str, Any]:
    arguments = parse(argv)
    if "avx512bw" not in target()[2] and arguments.only is None:
        console.print("note: kernels are built without AVX-512 here")
    images, what = photos.load_photos(arguments)
    result: dict[str, Any] = {
        "images": what, "passes": arguments.passes, "batch": arguments.batch, **describe_run()
    }  # fmt: skip
    parts = [arguments.only] if arguments.only else list(PARTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console.print(f"writing {what}, by FFCV's DatasetWriter, quality {arguments.quality}")
        for form in FORMS:
            stock.write(folder / f"{form}.beton", images, form, arguments.quality)
        for part in parts:
            result[part] = PARTS[part](folder, images, arguments, what)
    return result


def measure_decoders(
    folder: Path, images: list[np.ndarray], arguments: argparse.Namespace, what: str
) -> dict[str, Any]:
    result = {}
    for size in arguments.sizes:
        first = size == arguments.sizes[0]
        entries = FFCV + AREA + ([*OTHERS, MIXED] if first else OTHERS[:1])
        windows = make_windows(images, size)
        wanted = {name: make_references(images, windows, name, size) for name in REFERENCES}
        found = compare(entries, folder, windows, wanted, size, arguments)
        show_figures(f"{size} x {size} of {what}", found)
        if first:
            figures = accurate_ffcv(folder, windows, wanted, size)
            by_reference = ", ".join(f"{db:.2f} dB ({name})" for name, db in figures.items())
            console.print(
                f"FFCV jpg with libjpeg's accurate DCT instead of its fast one: {by_reference}"
            )
            result["FFCV jpg, accurate DCT"] = figures
            if arguments.picture:
                draw_picture(arguments.picture, found, f"{size} x {size} of {what}")
        result[str(size)] = {name: asdict(figures) for name, figures in found.items()}
    return result


def measure_cifar(
    folder: Path, _images: list[np.ndarray], arguments: argparse.Namespace, _what: str
) -> dict[str, Any]:
    times, count = compare_cifar(folder, arguments.passes)
    ratio = Ratio.of(*times.values())
    rows = [(name, f"{median(t) / count * 1e6:.2f}") for name, t in times.items()]
    show_table("pad by 4, crop 32 x 32, flip: images of sample_data/", ("", "us/image"), rows)
    console.print(f"times FFCV: {ratio}")
    return {"seconds": times, "ratio": ratio}


def measure_loader(
    folder: Path, images: list[np.ndarray], arguments: argparse.Namespace, what: str
) -> dict[str, Any]:
    cpu, wall = compare_loaders(folder, len(images), arguments.batch, arguments.passes)
    ratios = {
        clock: {name: Ratio.of(times["FFCV jpg"], times[name]) for name in times}
        for clock, times in (("CPU", cpu), ("wall clock", wall))
    }
    ratios["CPU"]["our Loader over stock"] = Ratio.of(cpu["dct"], cpu["dct, our Loader"])
    rows = [
        (
            name, f"{median(cpu[name]) * 1e6:,.0f}", f"{median(wall[name]) * 1e6:,.0f}",
            str(ratios["CPU"][name]), str(ratios["wall clock"][name]),
        )
        for name in cpu
    ]  # fmt: skip
    columns = ("", "us/image, CPU", "wall clock", "x FFCV, CPU", "x FFCV, wall clock")
    title = f"whole Loaders, FFCV's or ours, 1 worker, batches of {arguments.batch}: {what}"
    show_table(title, columns, rows)
    console.print(f"our Loader over FFCV's, dct: {ratios['CPU']['our Loader over stock']}")
    return {"seconds an image": {"CPU": cpu, "wall clock": wall}, **ratios}


def measure_threads(
    folder: Path, _images: list[np.ndarray], arguments: argparse.Namespace, _what: str
) -> dict[str, Any]:
    if numba.config.NUMBA_NUM_THREADS < 2:
        console.print("one thread alone may be used here: two are not measured")
        return {}
    decoding, spinning = compare_threads(folder, arguments.passes)
    console.print(
        f"two threads over one, by wall clock: dct {decoding}, a spinning loop {spinning}"
    )
    return {"decoding": decoding, "spinning": spinning}


def measure_builds(
    _folder: Path, _images: list[np.ndarray], arguments: argparse.Namespace, _what: str
) -> dict[str, Any]:
    """The table at the first size, by kernels built for smaller instruction sets."""
    photographs = ["--photos", str(arguments.photos)] if arguments.photos else []
    limit = ["--limit", str(arguments.limit)] if arguments.limit else []
    result = {}
    for name, variables in BUILDS.items():
        console.print(f"kernels built for {name}")
        command = [
            sys.executable, "-m", "benchmarks.decoders", "--only=decoders", *photographs, *limit,
            "--longest", str(arguments.longest), "--quality", str(arguments.quality),
            "--passes", str(arguments.passes), "--sizes", str(arguments.sizes[0]),
            "--batch", str(arguments.batch),
        ]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise UsageError(f"the measurement with {name} failed; see above")
        result[name] = json.loads(done.stdout)["decoders"]
    return result


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "decoders": measure_decoders,
    "cifar": measure_cifar,
    "loader": measure_loader,
    "threads": measure_threads,
    "start": measure_start,
    "builds": measure_builds,
}


if __name__ == "__main__":
    commandline.run_command(main)
