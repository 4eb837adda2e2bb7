"""Whether a .beton is whole: its tables, its checksums, its manifest, its images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv.beton import MAX_MEMORY, MAX_PIXELS, Tables, read_image_tables, read_tables
from resnet_ffcv.checksums import compare
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.manifest import (
    Pages,
    contradictions,
    manifest_path,
    read_manifest,
    read_pixel_mean,
)
from resnet_ffcv.progress import Report

MEMORY_PER_PIXEL = 8  # bytes, more than decoding takes of any form


@dataclass
class Verdict:
    """What is wrong with a file, if anything.

    Attributes:
        samples: how many the file holds; None where that cannot be said.
        problems: sentences.
        damaged: {sample: why}, of samples that are known to be hurt.
        checked: what was compared.
    """

    samples: int | None = None
    problems: list[str] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not (self.problems or self.damaged)


def verify(
    path: Path, report: Report, *, decode: bool = False, max_pixels: int = MAX_PIXELS
) -> Verdict:
    """Checks a .beton of write_datasets.py, or of FFCV, which has neither checksums nor manifest.

    Args:
        path: of the file.
        report: is told how far the reading is.
        decode: whether every image is decoded, too.
        max_pixels: of an image to decode; a larger one counts as damaged.
    """
    verdict = Verdict()
    with _noting(path, verdict):
        ours = os.path.lexists(manifest_path(path))
        tables = read_image_tables(path) if ours else read_tables(path)
        verdict.samples = len(tables.metadata)
        verdict.checked.append("tables: whether every sample has its data, inside the pages")
        if ours:
            with _noting(path, verdict):
                _check_manifest(path, tables, verdict, report)
        if decode:
            _decode(path, tables, verdict, report, max_pixels)
    return verdict


@contextmanager
def _noting(path: Path, verdict: Verdict) -> Iterator[None]:
    """What goes wrong is a problem of the file; what follows in the block is left out."""
    try:
        yield
    except (FailureError, UsageError) as error:
        verdict.problems.append(str(error))
    except OSError as error:
        verdict.problems.append(f"{path} cannot be read: {error.strerror or error}")
    except MemoryError:
        verdict.problems.append(f"{path}: there is too little memory to check it")


def _check_manifest(path: Path, tables: Tables, verdict: Verdict, report: Report) -> None:
    manifest = read_manifest(path)
    verdict.problems += [f"{path}: {words}" for words in contradictions(tables, manifest)]
    if manifest.pixel_mean is not None:
        with _noting(path, verdict):
            read_pixel_mean(path, manifest)
    verdict.checked.append("manifest: number of samples, sizes, range of labels, mean image")
    report.begin(f"check {path.name}", len(manifest.pages.crc32), "pages")
    compared = compare(path, manifest.pages, report.advance)
    verdict.problems += [f"{path}: {words}" for words in compared.words]
    if not compared.words and compared.sha256 != manifest.sha256:
        verdict.problems.append(f"{path}: its SHA-256 differs from the manifest's")
    verdict.damaged |= _samples_in(compared.pages, tables, manifest.pages)
    verdict.checked.append("checksums: of the tables, of every page, of the whole file")


def _samples_in(pages: list[int], tables: Tables, sums: Pages) -> dict[int, str]:
    page = (tables.starts.astype(np.int64) - sums.first) // sums.size
    hurt = tables.samples[np.isin(page, pages)].astype(int).tolist()
    return dict.fromkeys(sorted(hurt), "in a page that differs from its checksum")


def _decode(path: Path, tables: Tables, verdict: Verdict, report: Report, max_pixels: int) -> None:
    # Here, since torch and FFCV take seconds to import, and the other checks need neither.
    from resnet_ffcv.decoders import WholeImage
    from resnet_ffcv.loader import Loader

    names = [field.name for field in tables.fields if field.form]
    if not names:
        return
    report.begin(f"decode {path.name}", len(tables.metadata), "images")
    pipelines: dict[str, Any] = {field.name: None for field in tables.fields}
    images = Loader(
        path, min(64, len(tables.metadata)), drop_last=False, on_error="skip",
        max_pixels=max_pixels, max_memory=max(MAX_MEMORY, MEMORY_PER_PIXEL * max_pixels),
        pipelines=pipelines | {name: [WholeImage((8, 8))] for name in names},
    )  # fmt: skip
    done = 0
    for batch, *_ in images:
        report.advance(len(batch))
        done += len(batch)
    report.advance(len(tables.metadata) - done)
    verdict.damaged |= images.damaged
    if done + len(images.damaged) != len(tables.metadata):
        verdict.problems.append(f"{path}: {done:,} images decode, the others are not accounted for")
    verdict.checked.append("images: whether every one decodes")
