#!/usr/bin/env python3
"""Turns images into train.beton and val.beton, each with a manifest beside it.

    python write_datasets.py                               the sample of 4,000 images
    python write_datasets.py --source.name=cifar10         downloads it, or finds it in source.path
    python write_datasets.py --source.name=imagenet --source.path=ILSVRC2012 \\
        --image.max_resolution=500
    python write_datasets.py --source.name=imagefolder --source.path=FOLDER
                                                           FOLDER/train/CLASS/..., FOLDER/val/...
    python write_datasets.py --info data/sample/train.beton
    python write_datasets.py --verify data/sample/train.beton
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from rich.progress import Progress

    from resnet_ffcv import commandline
    from resnet_ffcv.beton import JPG, MAX_PIXELS, NAMES, VERSION, read_image_tables
    from resnet_ffcv.commandline import console, show_table
    from resnet_ffcv.config import WriteConfig
    from resnet_ffcv.errors import UsageError
    from resnet_ffcv.manifest import Manifest, manifest_path, read_manifest, spread
    from resnet_ffcv.progress import Report
    from resnet_ffcv.sources import open_source
    from resnet_ffcv.verify import verify
    from resnet_ffcv.writer import Written, write_dataset
except ModuleNotFoundError as error:
    hint = "run `make setup` once, then `source .venv/bin/activate`"
    raise SystemExit(f"error: {error.name} is not installed in this Python: {hint}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

FLAGS = {
    "info FILE": "say what is in a .beton file by its tables and manifest; nothing is checked",
    "verify FILE": "check a .beton file by its checksums and manifest; exit code 1 if damaged",
    "decode true|false": "with --verify: decode every image, too (false)",
}
KEPT = "What was written is kept; the same command resumes it"
REMOVED = "The unfinished file is removed; --writer.resume=true would keep it, to be resumed"
SHOWN = 20  # runs of damaged samples that are listed for people


def main(argv: Sequence[str]) -> dict[str, Any]:
    arguments = commandline.parse(argv, WriteConfig, __doc__, FLAGS)
    flags = arguments.flags
    if "decode" in flags and ("verify" not in flags or flags["decode"] not in ("true", "false")):
        raise UsageError("--decode=true or false goes with --verify FILE")
    if "verify" in flags and "info" in flags:
        raise UsageError("--verify and --info: give one of them")
    if "verify" in flags:
        # As many as Loader takes, or more where larger images were written on purpose.
        max_pixels = max(MAX_PIXELS, arguments.config.image.max_pixels)
        decode = flags.get("decode") == "true"
        return show_verdict(Path(flags["verify"]), decode=decode, max_pixels=max_pixels)
    if "info" in flags:
        return show_info(Path(flags["info"]))
    return write(arguments.config)


def write(config: WriteConfig) -> dict[str, Any]:
    """Writes what the configuration says; shows a table of the files."""
    source = open_source(config.source)
    ignored = sum(split.ignored for split in source.splits.values())
    if ignored:
        files = "file with an unsupported extension"
        if ignored > 1:
            files = "files with unsupported extensions"
        console.print(f"ignored {ignored:,} {files}")
    linked = [path for split in source.splits.values() for path in split.linked]
    if linked:
        console.print(
            f"links to folders inside class folders are not followed: {len(linked):,}, such as "
            f"{linked[0]}; put the images themselves there",
            soft_wrap=True,
        )
    commandline.say_when_stopped(lambda: KEPT if config.writer.resume else REMOVED)
    with commandline.progress() as progress:
        written = write_dataset(source, config, _Bar(progress))
    made = list(written.values())
    show_table(
        f"{source.name}, {len(source.classes):,} classes, in {made[0].path.parent}",
        ("file", "images", "file bytes", "bytes an image", "seconds", "images/s"),
        [_row(file) for file in made],
    )
    damaged = sum(file.damaged for file in made)
    if damaged:
        console.print(f"damaged images, stored as far as they could be decoded: {damaged:,}")
    skipped = [name for file in made for name in file.skipped]
    if skipped:
        console.print(f"images left out, listed in the manifests: {len(skipped):,}")
    return {
        "files": {split: str(file.path) for split, file in written.items()},
        "images": sum(file.images for file in made),
        "bytes": sum(file.bytes for file in made),
        "damaged": damaged,
        "skipped": len(skipped),
        "seconds": sum(file.seconds for file in made),
    }


def _row(file: Written) -> tuple[str, ...]:
    figures = (file.images, file.bytes, file.image_bytes / file.images, file.seconds)
    rate = file.images / file.seconds
    return (
        file.path.name, *(f"{n:,.0f}" for n in figures[:3]), f"{figures[3]:.1f}", f"{rate:,.0f}"
    )  # fmt: skip


def _check_is_file(flag: str, path: Path) -> None:
    if not os.path.exists(path):
        raise UsageError(f"--{flag} {path}: no such file")
    if not os.path.isfile(path):
        raise UsageError(f"--{flag} {path}: not a regular file")


def show_verdict(path: Path, *, decode: bool, max_pixels: int) -> dict[str, Any]:
    """Checks a .beton file, and shows what is wrong with it."""
    _check_is_file("verify", path)
    if path.suffix == ".partial":
        raise UsageError(
            f"--verify {path}: that is of a stopped write; --writer.resume=true goes on with it"
        )
    with commandline.progress() as progress:
        verdict = verify(path, _Bar(progress), decode=decode, max_pixels=max_pixels)
    for words in verdict.problems:
        console.print(words, soft_wrap=True)
    runs = _find_runs(verdict.damaged)
    for first, last, why in runs[:SHOWN]:
        console.print(
            f"sample {first}: {why}" if first == last else f"samples {first} to {last}: {why}"
        )
    if len(runs) > SHOWN:
        console.print(f"... and more, {len(verdict.damaged):,} samples in all")
    rows, missing = [("checked", words) for words in verdict.checked], []
    if not verdict.checked:
        missing.append("what the tables should lead to: checksums, manifest, images")
    elif not os.path.lexists(manifest_path(path)):
        missing.append(
            f"checksums: there is no manifest {manifest_path(path).name}; write_datasets.py writes "
            "one with each file"
        )
    elif not any(words.startswith("checksums") for words in verdict.checked):
        missing.append("checksums: the manifest cannot be used")
    if not decode:
        missing.append("whether every image decodes; --decode=true does that")
    rows += [("not checked", words) for words in missing]
    samples = "" if verdict.samples is None else f"{verdict.samples:,} samples, "
    rows.append(("found", f"{samples}{'whole' if verdict.whole else 'DAMAGED'}"))
    show_table(str(path), ("", ""), rows)
    return {
        "file": str(path),
        "whole": verdict.whole,
        "samples": verdict.samples,
        "damaged": sorted(verdict.damaged),
        "problems": verdict.problems,
        "checked": verdict.checked,
        "not_checked": missing,
    }


def _find_runs(damaged: Mapping[int, str]) -> list[tuple[int, int, str]]:
    """(first, last, why) of samples that follow each other and are damaged in one way."""
    runs: list[tuple[int, int, str]] = []
    for sample, why in sorted(damaged.items()):
        if runs and runs[-1][1:] == (sample - 1, why):
            runs[-1] = runs[-1][0], sample, why
        else:
            runs.append((sample, sample, why))
    return runs


def show_info(path: Path) -> dict[str, Any]:
    """What is in a .beton file, by its tables and, if write_datasets.py wrote it, its manifest."""
    _check_is_file("info", path)
    tables = read_image_tables(path)
    manifest = read_manifest(path) if os.path.lexists(manifest_path(path)) else None
    images = tables.metadata["image"]
    jpegs = int((images["mode"] == JPG).sum()) if tables.form == "rgb" else 0
    forms = f"{jpegs:,} JPEG, {len(images) - jpegs:,} raw" if tables.form == "rgb" else tables.form
    rows = {
        "format": f"version {VERSION}, fields {', '.join(NAMES)}, pages of {tables.page_size:,}",
        "images": f"{len(images):,} ({forms})",
        **{side: _range(images[side]) for side in ("width", "height")},
        "image bytes": f"{int(tables.sizes.sum()):,}",
        "file bytes": f"{path.stat().st_size:,}",
        **(_from_manifest(manifest) if manifest else {"manifest": "none; FFCV writes none"}),
    }
    show_table(str(path), ("", ""), list(rows.items()))
    classes = manifest.classes if manifest else None
    return {
        "file": str(path),
        "images": len(images),
        "form": tables.form,
        "jpegs": jpegs,
        "classes": classes,
    }


def _range(sides: np.ndarray) -> str:
    least, median, greatest = spread(sides)
    return f"{least} to {greatest}, median {median}"


def _from_manifest(manifest: Manifest) -> dict[str, str]:
    classes = manifest.classes
    return {
        "source": manifest.source,
        "classes": f"{len(classes):,}: {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}",
        "options": ", ".join(f"{k}={v}" for k, v in manifest.options.items() if v is not None),
        "SHA-256": manifest.sha256,
    }


class _Bar(Report):
    """The writer's report for people."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None, note="", unit="images")

    def begin(self, what: str, count: int, unit: str) -> None:
        self.progress.refresh()  # what is done is seen to be, however short it was
        # It forgets the fields that it is not given.
        self.progress.reset(self.task, total=count, description=what, unit=unit, note="")

    def advance(self, count: int) -> None:
        self.progress.advance(self.task, count)

    def say(self, text: str) -> None:
        console.print(text, soft_wrap=True)


if __name__ == "__main__":
    commandline.run_command(main)
