"""Whether a .beton is whole: its tables, its checksums, its manifest, its images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ffcv.beton import FORMS, Tables, read_image_tables, read_tables
from resnet_ffcv.checksums import compare
from resnet_ffcv.errors import FailureError
from resnet_ffcv.manifest import Manifest, Pages, manifest_path, read_manifest, spread
from resnet_ffcv.progress import Report


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


def verify(path: Path, report: Report, *, decode: bool = False) -> Verdict:
    """Checks a .beton of write_datasets.py, or of FFCV, which has neither checksums nor manifest.

    Args:
        path: of the file.
        report: is told how far the reading is.
        decode: whether every image is decoded, too.
    """
    verdict = Verdict()
    try:
        ours = manifest_path(path).exists()
        tables = read_image_tables(path) if ours else read_tables(path)
    except FailureError as error:
        verdict.problems.append(str(error))
        return verdict
    verdict.samples = len(tables.metadata)
    verdict.checked.append("tables: whether every sample has its data, inside the pages")
    if ours:
        _check_manifest(path, tables, verdict, report)
    if decode:
        _decode(path, tables, verdict, report)
    return verdict


def _check_manifest(path: Path, tables: Tables, verdict: Verdict, report: Report) -> None:
    try:
        manifest = read_manifest(path)
    except FailureError as error:
        verdict.problems.append(str(error))
        return
    try:
        found = _nonsense(manifest) + _contradictions(tables, manifest)
        found += _check_pixel_mean(path, manifest)
    except TypeError as error:  # what stands there is of another type
        found = [f"its manifest makes no sense: {error}"]
    verdict.problems += [f"{path}: {words}" for words in found]
    verdict.checked.append("manifest: number of samples, sizes, range of labels, mean image")
    report.begin(f"check {path.name}", len(manifest.pages.crc32), "pages")
    compared = compare(path, manifest.pages, report.advance)
    verdict.problems += [f"{path}: {words}" for words in compared.words]
    if not compared.words and compared.sha256 != manifest.sha256:
        verdict.problems.append(f"{path}: its SHA-256 differs from the manifest's")
    verdict.damaged |= _samples_in(compared.pages, tables, manifest.pages)
    verdict.checked.append("checksums: of the tables, of every page, of the whole file")


def _check_pixel_mean(path: Path, manifest: Manifest) -> list[str]:
    """The mean image has the images' size, and its mean is that of the pixels."""
    if manifest.pixel_mean is None:
        return []
    try:
        mean = np.load(path.with_name(manifest.pixel_mean), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return [f"{manifest.pixel_mean} cannot be read: {error}"]
    shape = (manifest.height[0], manifest.width[0], 3)
    if mean.shape != shape or np.abs(mean.mean((0, 1)) - (manifest.mean or 0)).max() > 1e-4:
        return [f"{manifest.pixel_mean} is not the mean of these images"]
    return []


def _contradictions(tables: Tables, manifest: Manifest) -> list[str]:
    found = []
    images, labels = (tables.metadata[name] for name in ("image", "label"))
    for side, said in (("width", manifest.width), ("height", manifest.height)):
        has = spread(images[side])
        if has != said:
            found.append(f"its {side}s (least, median, most) are {has}, its manifest says {said}")
    mode = manifest.options.get("mode")
    if (mode if mode in FORMS else "rgb") != tables.form:
        found.append(f"its images are of the form {tables.form}, its manifest says mode={mode}")
    if len(labels) != manifest.samples:
        found.append(f"it holds {len(labels):,} samples, its manifest says {manifest.samples:,}")
    if not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        found.append(
            f"its labels go from {labels.min()} to {labels.max()}, its manifest has "
            f"{len(manifest.classes)} classes"
        )
    return found


def _nonsense(manifest: Manifest) -> list[str]:
    """What cannot be in a manifest, whatever its file holds."""
    found = []
    names = manifest.classes
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise TypeError("classes are no list of names")
    if len(set(names)) < len(names):
        found.append("its manifest has a class twice")
    for what, values in (("mean", manifest.mean), ("std", manifest.std)):
        if values is not None and (len(values) != 3 or not all(0 <= v <= 1 for v in values)):
            found.append(f"its manifest has {what} {values}: wanted are three numbers from 0 to 1")
    if (manifest.mean is None) != (manifest.std is None):
        found.append("its manifest has a mean without a deviation, or a deviation without a mean")
    return found


def _samples_in(pages: list[int], tables: Tables, sums: Pages) -> dict[int, str]:
    page = (tables.starts.astype(np.int64) - sums.first) // sums.size
    hurt = tables.samples[np.isin(page, pages)].astype(int).tolist()
    return dict.fromkeys(sorted(hurt), "in a page that differs from its checksum")


def _decode(path: Path, tables: Tables, verdict: Verdict, report: Report) -> None:
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
        pipelines=pipelines | {name: [WholeImage((8, 8))] for name in names},
    )  # fmt: skip
    done = 0
    for batch, *_ in images:
        report.advance(len(batch))
        done += len(batch)
    report.advance(len(tables.metadata) - done)
    verdict.damaged |= images.damaged
    if done + len(images.damaged) != len(tables.metadata):
        verdict.problems.append(f"{path}: {done:,} images decode, the others are not told of")
    verdict.checked.append("images: whether every one decodes")
