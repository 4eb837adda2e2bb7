"""Image files that are made to do harm: programs, pipes, endless files, bombs, many scans."""

import io
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from resnet_ffcv import pictures, workers
from resnet_ffcv.config import ImageConfig, WriteConfig, WriterConfig
from resnet_ffcv.encode import encode
from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import UnsuitableFileError
from resnet_ffcv.pictures import has_too_many_scans, open_picture, read_picture_file
from resnet_ffcv.sources import Source, Split
from resnet_ffcv.writer import Job, default_mode

RAW = ImageConfig(mode="raw")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


def save(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_ghostscript_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append("Ghostscript"))
    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn")):
        monkeypatch.setattr(module, name, lambda *_, **__: started.append("a program"))
    for content in (POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(28) + POSTSCRIPT, save("EPS")):
        with pytest.raises(ValueError, match="not in a supported image format"):
            encode(content, RAW, 0.5)
    assert started == []


@pytest.mark.parametrize("kind", ["FITS", "BLP", "WMF", "IPTC", "HDF5", "MPEG"])
def test_formats_that_do_more_than_decode_are_not_read(kind: str) -> None:
    assert kind not in pictures.readable_formats()
    ends = {end for end, of in Image.registered_extensions().items() if of == kind}
    assert ends.isdisjoint(pictures.readable_extensions())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "TGA", "ICO"])
def test_common_formats_are_read(kind: str) -> None:
    with open_picture(save(kind), 10**6) as image:
        assert image.format == kind
        image.load()


def test_the_limit_of_pixels_is_exact_and_leaves_pillows_alone() -> None:
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    content = save("PNG")
    assert encode(content, ImageConfig(mode="raw", max_pixels=2000), 0.5)[0].width == 50
    with pytest.raises(ValueError, match=r"more than image\.max_pixels=1,999 pixels"):
        encode(content, ImageConfig(mode="raw", max_pixels=1999), 0.5)
    assert before == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_the_limit_can_be_raised_above_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(save("PNG"), RAW, 0.5)[0].width == 50


def many_scans(count: int, **options: object) -> bytes:
    """A JPEG whose last scan comes `count` times in all."""
    content = save("JPEG", **options)
    last = content.rindex(b"\xff\xda")
    return content[:last] + (content[last:-2] * count) + content[-2:]


def sequential(count: int) -> bytes:
    """A sequential JPEG of one scan for each component, of which the first comes `count` times."""
    content = save("JPEG", subsampling="4:4:4")
    frame = content.index(b"\xff\xda")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(200)
    return content[:frame] + scan * count + b"\xff\xd9"


@pytest.mark.parametrize("config", [RAW, ImageConfig(mode="jpg"), ImageConfig(accept_damaged=True)])
@pytest.mark.parametrize("make", [lambda n: many_scans(n, progressive=True), sequential])
def test_jpegs_of_many_scans_are_refused_before_they_are_decoded(
    make: object, config: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_ffcv.turbojpeg.decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="more than 100 scans"):
        encode(make(3000), config, 0.5)  # type: ignore[operator]


def test_scans_are_counted_as_libjpeg_does() -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        assert not has_too_many_scans(save("JPEG", **options))
        comment = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 500  # no scans
        assert not has_too_many_scans(save("JPEG", comment=comment, **options))
    head, body = many_scans(200, progressive=True)[:2], many_scans(200, progressive=True)[2:]
    assert has_too_many_scans(head + b"\xff\xff\xff\x00what" + body)  # between markers
    assert not has_too_many_scans(many_scans(80, progressive=True))
    assert not has_too_many_scans(save("JPEG") + many_scans(200, progressive=True))  # after its end


@given(st.binary(max_size=99), st.integers(0, 99))
def test_any_bytes_have_an_answer(tail: bytes, place: int) -> None:
    content = many_scans(2, progressive=True)
    for each in (tail, b"\xff\xd8" + tail, content[:place] + tail + content[place:]):
        assert has_too_many_scans(each) in (True, False)


def test_pipes_devices_and_endless_files_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 1 << 20)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 42)
    words = ["is not a regular file", "is not a regular file", "has more than 1,048,576 bytes"]
    paths = [tmp_path / name for name in ("pipe.png", "device.png", "sparse.png")]
    NOISE.save(tmp_path / "good.png")
    split = Split([*paths, tmp_path / "good.png"], np.zeros(4, np.int64))
    for path, reason in zip(paths, words, strict=True):
        with pytest.raises(UnsuitableFileError, match=reason):
            read_picture_file(path)
    with pytest.raises(FailureError, match=r"pipe\.png cannot be read: it is not a regular file"):
        default_mode(split, ImageConfig())
    assert default_mode(split, ImageConfig(), skip=True) == "raw"
    config = WriteConfig(image=RAW, writer=WriterConfig(on_error="skip"))
    source = Source("mine", ["a"], {"train": split})
    memory = workers.Memory()
    tasks = list(Job(source, "train", np.arange(4), config).tasks(np.arange(4)))
    encoded = [workers.encode_task(task, memory) for task in tasks]
    memory.close()
    failures = [failure for part in encoded for failure in part.failures.values()]
    assert [failure.split(": it ")[1] for failure in failures] == words
    assert sum(len(part.images) for part in encoded) == 1
