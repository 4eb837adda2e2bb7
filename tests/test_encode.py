"""Images of every kind -> stored bytes, against Pillow, NumPy and FFCV's own decoder."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_ffcv.beton import JPG, RAW
from resnet_ffcv.config import ImageConfig
from resnet_ffcv.encode import Stored, draw, encode, fit, is_plain_jpeg

AS_JPG, AS_RAW = ImageConfig(mode="jpg"), ImageConfig(mode="raw")


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def smooth(width: int = 40, height: int = 24) -> np.ndarray:
    """uint8 (height, width, 3) that JPEG keeps well, all three channels different."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x // width, 255 * y // height, 127 + x - y], 2).astype(np.uint8)


PIXELS = smooth()
RGB = Image.fromarray(PIXELS)
GRAY = np.asarray(RGB.convert("L"))


def store(content: bytes | np.ndarray, config: ImageConfig = AS_RAW, number: float = 0.5) -> Stored:
    return encode(content, config, number)[0]


def raw_pixels(content: bytes | np.ndarray, config: ImageConfig = AS_RAW) -> np.ndarray:
    stored, pixels = encode(content, config, 0.5)
    assert stored.mode == RAW
    found = np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    assert np.array_equal(found, np.asarray(pixels))
    return found


def ffcv_decode(content: bytes, height: int, width: int) -> tuple[np.ndarray, int]:
    """(pixels, status) by FFCV's own decoder; its status is 0 where libjpeg has no complaint."""
    import torch

    threads = torch.get_num_threads()
    from ffcv.libffcv import imdecode

    torch.set_num_threads(threads)
    out = np.zeros((height, width, 3), np.uint8)
    return out, imdecode(np.frombuffer(content, np.uint8), out, height, width, height, width)


def by_ffcv(stored: Stored) -> np.ndarray:
    """What FFCV's own decoder makes of a stored JPEG."""
    pixels, status = ffcv_decode(stored.data, stored.height, stored.width)
    assert status == 0
    return pixels


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def palette(**options: object) -> bytes:
    return save(RGB.quantize(200), "PNG", **options)


def with_alpha(mode: str) -> bytes:
    image = RGB.convert(mode)
    image.putalpha(Image.fromarray((GRAY * 0).astype(np.uint8)))  # all of it transparent
    return save(image, "PNG")


FAINT = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)  # 0 to 65,212
PALETTE = np.asarray(RGB.quantize(200).convert("RGB"))
LOSSLESS = {
    "array": (PIXELS, PIXELS),
    "RGB PNG": (save(RGB, "PNG"), PIXELS),
    "gray PNG": (save(Image.fromarray(GRAY), "PNG"), gray(GRAY)),
    "1 bit": (save(Image.fromarray(GRAY > 99), "PNG"), gray((GRAY > 99) * np.uint8(255))),
    "palette": (palette(), PALETTE),
    "palette, a colour transparent": (palette(transparency=0), PALETTE),
    "palette, all transparent": (palette(transparency=bytes(200)), PALETTE),
    "RGBA": (with_alpha("RGBA"), PIXELS),
    "LA": (with_alpha("LA"), gray(GRAY)),
    "RGB, a colour transparent": (save(RGB, "PNG", transparency=(0, 0, 127)), PIXELS),
    "16 bit gray PNG": (save(Image.fromarray(FAINT), "PNG"), gray(np.rint(FAINT / 257))),
    "16 bit gray TIFF, big endian": (
        save(Image.fromarray(FAINT.astype(">u2")), "TIFF"),
        gray(np.rint(FAINT / 257)),
    ),
    "32 bit gray TIFF of 16 bit values": (
        save(Image.fromarray(FAINT.astype(np.int32)), "TIFF"),
        gray(np.rint(FAINT / 257)),
    ),
    "CMYK TIFF": (
        save(RGB.convert("CMYK"), "TIFF"),
        np.asarray(RGB.convert("CMYK").convert("RGB")),
    ),
    "WebP, lossless": (save(RGB, "WEBP", lossless=True), PIXELS),
    "BMP": (save(RGB, "BMP"), PIXELS),
    "GIF, first of two": (
        save(RGB.quantize(200), "GIF", save_all=True, append_images=[Image.new("P", RGB.size)]),
        PALETTE,
    ),
    "1 x 1": (save(RGB.crop((0, 0, 1, 1)), "PNG"), PIXELS[:1, :1]),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_kinds_keep_their_pixels(kind: str) -> None:
    content, expected = LOSSLESS[kind]
    assert np.array_equal(raw_pixels(content), expected)


def test_48_bits_are_scaled_to_24() -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (24, 40, 3)).astype(np.uint16)
    for kind in (".png", ".tiff"):
        content = cv2.imencode(kind, values[..., ::-1])[1].tobytes()
        # Pillow keeps the upper byte.
        assert np.abs(raw_pixels(content) - values / 257).max() <= 1


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    return save(RGB.convert(mode), "JPEG", **{"quality": 90, **options})


def turned(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return jpeg(exif=exif)


KEPT = {
    "4:4:4": jpeg(subsampling="4:4:4"),
    "4:2:0": jpeg(subsampling="4:2:0"),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "progressive": jpeg(progressive=True),
    "gray": jpeg("L"),
    "restart markers": jpeg(restart_marker_blocks=1),
    "RGB without a transform": jpeg(keep_rgb=True),
    "EXIF, turned": turned(6),
    "ICC profile": jpeg(icc_profile=bytes(70_000)),  # more than one segment
    "comment of frame markers": jpeg(comment=b"\xff\xc9\xff\xc3" * 9),
    "bytes behind the end": jpeg() + b"\0\0\0",
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_jpeg_is_kept_and_ffcv_sees_its_pixels(kind: str) -> None:
    content = KEPT[kind]
    stored, pixels = encode(content, AS_JPG, 0.5)
    assert (stored.mode, stored.data) == (JPG, content)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(np.asarray(pixels), expected)
    # FFCV's fast transform differs from Pillow's exact one by a few levels.
    assert np.abs(by_ffcv(stored).astype(int) - expected).max() <= 12


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_damage_is_found_where_ffcvs_decoder_finds_it(options: dict[str, object]) -> None:
    content = jpeg(**options)
    scan = content.index(b"\xff\xda") + 14
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        hurt = bytearray(content)
        hurt[rng.integers(scan, len(hurt) - 2)] ^= 1 << rng.integers(8)
        damaged = ffcv_decode(bytes(hurt), 24, 40)[1] != 0
        outcomes.add(damaged)
        if not damaged:  # other pixels, yet a JPEG as good as any
            assert store(bytes(hurt), AS_JPG).data == bytes(hurt)
            continue
        with pytest.raises(ValueError, match=r"damaged JPEG|cannot decode it") as error:
            store(bytes(hurt), AS_JPG)
        if "cannot decode it" in str(error.value):
            continue
        mended, pixels = encode(bytes(hurt), replace(AS_JPG, accept_damaged=True), 0.5)
        assert ffcv_decode(mended.data, 24, 40)[1] == 0
        assert np.abs(by_ffcv(mended).astype(int) - np.asarray(pixels)).max() <= 12
    assert outcomes == {False, True}


ENCODED = {
    "CMYK JPEG": jpeg("CMYK"),
    "PNG": save(RGB, "PNG"),
    "gray PNG": save(Image.fromarray(GRAY), "PNG"),
    "16 bit": save(Image.fromarray(FAINT), "PNG"),
    "array": PIXELS,
    "1 x 1": save(RGB.crop((0, 0, 1, 1)), "PNG"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_what_is_no_plain_jpeg_is_encoded(kind: str) -> None:
    content = ENCODED[kind]
    stored, pixels = encode(content, AS_JPG, 0.5)
    assert stored.mode == JPG
    assert isinstance(content, np.ndarray) or stored.data != content
    assert is_plain_jpeg(stored.data)
    original = raw_pixels(content)
    assert (stored.height, stored.width) == original.shape[:2]
    # The stored pixels are those of the JPEG, not of the source: statistics are taken of them.
    with Image.open(io.BytesIO(stored.data)) as opened:
        assert np.array_equal(np.asarray(pixels), np.asarray(opened.convert("RGB")))
    if kind != "16 bit":  # which is noise to JPEG
        assert np.abs(by_ffcv(stored).astype(int) - original).mean() < 6


def test_encoding_is_as_ffcvs() -> None:
    # Quality 90 and half the colour each way, as OpenCV's default, by which FFCV writes.
    ours = store(PIXELS, AS_JPG).data
    theirs = cv2.imencode(".jpg", PIXELS[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    with Image.open(io.BytesIO(ours)) as a, Image.open(io.BytesIO(theirs)) as b:
        assert a.quantization == b.quantization
        assert [layer[1:3] for layer in a.layer] == [layer[1:3] for layer in b.layer]
        assert a.layer[0][1:3] == (2, 2)


def test_keys_that_encode_again() -> None:
    content = jpeg(quality=95)
    for change in ({"keep_jpeg": False}, {"max_resolution": 30}):
        stored = store(content, replace(AS_JPG, **change))
        assert stored.data != content
        assert is_plain_jpeg(stored.data)
    assert store(content, replace(AS_JPG, max_resolution=40)).data == content
    worse = replace(AS_JPG, keep_jpeg=False, quality=20)
    assert len(store(content, worse).data) < len(store(content, AS_JPG).data)


@pytest.mark.parametrize("value", range(9))
def test_orientation_is_applied_on_demand(value: int) -> None:
    content = turned(value)
    with Image.open(io.BytesIO(content)) as opened:
        plain = np.asarray(opened.convert("RGB"))
    # The tag's meaning by EXIF 2.32, 4.6.5: where the 0th row and column are to be seen.
    flipped = {2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1]}
    swapped = plain.transpose(1, 0, 2)
    flipped |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    expected = flipped.get(value, plain)
    assert np.array_equal(raw_pixels(content), plain)
    assert np.array_equal(raw_pixels(content, replace(AS_RAW, apply_orientation=True)), expected)
    stored = store(content, replace(AS_JPG, apply_orientation=True))
    assert (stored.height, stored.width) == expected.shape[:2]
    assert (stored.data == content) == (value not in flipped)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.one_of(st.none(), st.integers(1, 9000)))
def test_fit(width: int, height: int, longest: int | None) -> None:
    new_width, new_height = fit(width, height, longest)
    assert 1 <= new_width <= width
    assert 1 <= new_height <= height
    if longest is None or max(width, height) <= longest:
        assert (new_width, new_height) == (width, height)
    else:
        assert max(new_width, new_height) == longest
        scale = longest / max(width, height)
        assert abs(new_width - width * scale) <= 0.5 or new_width == 1
        assert abs(new_height - height * scale) <= 0.5 or new_height == 1


def test_shrinking_takes_the_mean_of_areas() -> None:
    small = raw_pixels(PIXELS, replace(AS_RAW, max_resolution=10))
    means = PIXELS.reshape(6, 4, 10, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - means).max() <= 1
    assert store(smooth(1, 2000), replace(AS_RAW, max_resolution=256)).width == 1
    assert raw_pixels(PIXELS, replace(AS_RAW, max_resolution=1)).shape == (1, 1, 3)


def test_smart_keeps_what_jpeg_makes_small() -> None:
    smart = ImageConfig(mode="smart", smart_threshold=10.0)
    flat = np.full((64, 64, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (store(flat, smart).mode, store(noise, smart).mode) == (JPG, RAW)
    ratio = noise.nbytes / len(store(noise, AS_JPG).data)
    assert store(noise, replace(smart, smart_threshold=ratio)).mode == RAW  # above, not at
    assert store(noise, replace(smart, smart_threshold=ratio * 0.999)).mode == JPG


def test_proportion_follows_the_draw() -> None:
    config = ImageConfig(mode="proportion", compress_probability=0.3)
    assert store(PIXELS, config, 0.299).mode == JPG
    assert store(PIXELS, config, 0.3).mode == RAW
    assert store(PIXELS, replace(config, compress_probability=0.0), 0.0).mode == RAW
    assert store(PIXELS, replace(config, compress_probability=1.0), 0.999).mode == JPG


def test_draws_are_uniform_and_their_own() -> None:
    draws = {
        key: np.array([draw(*key, index) for index in range(4000)])
        for key in ((0, "train"), (1, "train"), (0, "val"))
    }
    for values in draws.values():
        counts = np.histogram(values, 20, (0, 1))[0]
        assert np.abs(counts - 200).max() < 5 * 200**0.5
    first, *others = draws.values()
    assert all(abs(np.corrcoef(first, other)[0, 1]) < 0.08 for other in others)
    assert draw(0, "train", 5) == draws[0, "train"][5]


def zeros(width: int, height: int) -> bytes:
    return save(Image.new("L", (width, height)), "PNG")


FAILURES = {
    "empty": (b"", AS_RAW, "empty"),
    "text": (b"no image at all", AS_RAW, "not in a supported image format"),
    "truncated JPEG": (jpeg()[:-60], AS_JPG, "damaged JPEG.*accept_damaged"),
    "truncated JPEG as raw": (jpeg()[:-60], AS_RAW, "damaged JPEG"),
    "truncated JPEG with its end put back": (jpeg()[:-60] + b"\xff\xd9", AS_JPG, "damaged JPEG"),
    "JPEG with a hole": (
        jpeg()[:-60] + bytes(40) + jpeg()[-20:],
        replace(AS_JPG, max_resolution=9),
        "damaged JPEG",
    ),
    "truncated CMYK JPEG": (save(RGB.convert("CMYK"), "JPEG")[:-60], AS_RAW, "damaged JPEG"),
    "JPEG without tables": (
        jpeg().replace(b"\xff\xdb", b"\xff\xef"),
        AS_JPG,
        "libjpeg cannot decode it",
    ),
    "truncated PNG": (save(RGB, "PNG")[:-60], AS_RAW, "truncated|broken"),
    "float": (save(Image.fromarray(PIXELS[..., 0] / np.float32(255)), "TIFF"), AS_RAW, "floating"),
    "over 16 bits": (
        save(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"),
        AS_RAW,
        "more than 16 bits",
    ),
    "side over 16 bits": (zeros(65_536, 1), AS_RAW, "65,535 at most"),
    "side over libjpeg's": (zeros(1, 65_501), AS_JPG, "65,500 at most"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_cannot_be_stored_is_named(kind: str) -> None:
    content, config, words = FAILURES[kind]
    with pytest.raises((OSError, ValueError), match=words) as error:
        encode(content, config, 0.5)
    assert " at 0x" not in str(error.value)


def test_the_largest_sides_are_stored() -> None:
    assert store(zeros(65_535, 1)).width == 65_535
    assert store(zeros(1, 65_500), AS_JPG).height == 65_500
    assert store(zeros(70_000, 2), replace(AS_RAW, max_resolution=500)).height == 1


FRAME = b"\xff\xd8\xff\xe0\x00\x04ab\xff%c\x00\x11%c\x00\x10\x00\x10%c" + bytes(20)


@pytest.mark.parametrize(
    ("marker", "bits", "components", "plain"),
    [
        (0xC0, 8, 3, True), (0xC1, 8, 1, True), (0xC2, 8, 3, True),
        (0xC3, 8, 3, False),  # lossless
        (0xC9, 8, 3, False),  # arithmetic coding
        (0xC0, 8, 4, False), (0xC1, 12, 3, False), (0xC0, 8, 2, False),
    ],
)  # fmt: skip
def test_plain_jpegs_are_told_by_their_frame(
    marker: int, bits: int, components: int, plain: bool
) -> None:
    assert is_plain_jpeg(FRAME % (marker, bits, components)) == plain


@given(st.binary(max_size=60))
def test_any_bytes_have_an_answer(tail: bytes) -> None:
    for content in (tail, b"\xff\xd8" + tail, b"\xff\xd8\xff\xe0\x00\x00" + tail):
        assert is_plain_jpeg(content) in (True, False)


def test_what_is_left_of_a_damaged_jpeg_is_marked() -> None:
    hurt = jpeg()[:-60]
    assert store(hurt, replace(AS_JPG, accept_damaged=True)).damaged
    assert not store(jpeg(), replace(AS_JPG, accept_damaged=True)).damaged
