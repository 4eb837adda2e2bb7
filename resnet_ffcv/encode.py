"""A source image -> the bytes that are stored for it."""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, features

from resnet_ffcv import pictures, turbojpeg
from resnet_ffcv.beton import FORMS, JPG, MAX_SIDE, RAW
from resnet_ffcv.config import ImageConfig
from resnet_ffcv.kernels import batches, dct, status, yuv420
from resnet_ffcv.kernels.colour import GRAY, HALF, is_gray
from resnet_ffcv.kernels.taps import AREA
from resnet_ffcv.pictures import open_picture, read_picture_file

MAX_JPEG_SIDE = 65_500  # pixels, of libjpeg
MAX_BYTES = 2**31 - 1  # of an image in a form of ours
SMALL_SIDE = 64  # image.mode null: raw where no image has a longer side

# Start of frame markers of JPEGs that every libjpeg decodes: baseline, extended, progressive.
KEPT_FRAMES = (0xC0, 0xC1, 0xC2)
ORIENTATION, TURNED = 0x0112, range(2, 9)  # EXIF's tag, and its values but "as it is"

GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Stored:
    """An image as it lies in the file: what its row says, and its bytes.

    `mode` is beton.JPG or beton.RAW in FFCV's own field, `colour` of kernels.colour in one of ours.
    `damaged`: its source was, and these are what is left of it.
    """

    width: int
    height: int
    data: bytes
    mode: int | None = None
    colour: int | None = None
    damaged: bool = False

    def row(self, data_ptr: int) -> tuple[int | None, ...]:
        """The image's row, as of beton.RGB_ROW or beton.FORM_ROW."""
        if self.colour is None:
            return self.mode, self.width, self.height, data_ptr
        return self.height, self.width, self.colour, 0, data_ptr


def encoder_digest() -> str:
    """Hash of what an image's bytes depend on beside its source and `config`: the code, and the
    libraries that read JPEGs."""
    digest = hashlib.sha256(repr((PIL.__version__, features.version("libjpeg_turbo"))).encode())
    ours = (Path(str(module.__file__)) for module in (pictures, turbojpeg))
    for path in (Path(__file__), *ours, *sorted(Path(batches.__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def encode(
    content: bytes | np.ndarray, config: ImageConfig, draw: float
) -> tuple[Stored, np.ndarray]:
    """(the stored image, its pixels: uint8 (height, width, 3)).

    Args:
        content: a file's bytes, in one of pictures.FORMATS, or uint8 (height, width, 3).
        config: the `image` section, with a mode.
        draw: uniform on [0, 1), for the mode proportion.

    Raises:
        ValueError, OSError: what is wrong with the image.
    """
    if isinstance(content, np.ndarray):
        return _store(content, None, config, draw)
    pixels, jpeg, damaged = open_image(content, config)
    stored, pixels = _store(pixels, jpeg, config, draw)
    return replace(stored, damaged=damaged), pixels


def _store(
    pixels: np.ndarray, jpeg: bytes | None, config: ImageConfig, draw: float
) -> tuple[Stored, np.ndarray]:
    """`encode` of uint8 (height, width, 3), or (height, width) of gray.

    `jpeg` is what may be stored for it as it is, if any.
    """
    width, height = fit(pixels.shape[1], pixels.shape[0], config.max_resolution)
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width} x {height} pixels: a side may have {MAX_SIDE:,} at most; set "
            "image.max_resolution"
        )
    if (height, width) != pixels.shape[:2]:
        pixels, jpeg = shrink(pixels, config.max_resolution), None
    if config.mode in FORMS:
        return _store_form(to_rgb(pixels), config)
    raw_size = width * height * 3
    if config.mode == "raw" or (
        config.mode == "proportion" and draw >= config.compress_probability
    ):
        return _store_raw(to_rgb(pixels))
    stored = jpeg or _to_jpeg(pixels, config.quality)
    if config.mode == "smart" and raw_size <= config.smart_threshold * len(stored):
        return _store_raw(to_rgb(pixels))
    return Stored(width, height, stored, JPG), to_rgb(pixels) if jpeg else decode(stored)


def shrink(pixels: np.ndarray, longest: int | None) -> np.ndarray:
    """RGB or gray with its longer side at most `longest`; itself where it is."""
    width, height = fit(pixels.shape[1], pixels.shape[0], longest)
    return pixels if (height, width) == pixels.shape[:2] else resize(pixels, width, height)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3), contiguous, of itself or of gray (height, width)."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """RGB or gray, each pixel the mean of what it covers: as FFCV's writer shrinks it."""
    rgb = to_rgb(pixels)
    resized = _decode_whole(batches.IMAGE, rgb, (*rgb.shape[:2], RAW), (height, width), 100)
    return resized if pixels.ndim == 3 else resized[..., 0]


def decode(content: bytes) -> np.ndarray:
    """uint8 (height, width, 3) of a stored JPEG."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.array(image.convert("RGB"))


def _store_raw(rgb: np.ndarray) -> tuple[Stored, np.ndarray]:
    return Stored(rgb.shape[1], rgb.shape[0], rgb.tobytes(), RAW), rgb


def _store_form(rgb: np.ndarray, config: ImageConfig) -> tuple[Stored, np.ndarray]:
    form, quality = str(config.mode), config.quality
    data, colour = encode_form(form, rgb, quality)
    codec = batches.DCT if form == "dct" else batches.YUV420
    pixels = _decode_whole(codec, data, (*rgb.shape[:2], colour), rgb.shape[:2], quality)
    return Stored(rgb.shape[1], rgb.shape[0], data.tobytes(), colour=colour), pixels


def encode_form(form: str, rgb: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
    """(uint8 data, colour) of uint8 (height, width, 3) in a form of beton.FORMS.

    Raises:
        ValueError: the image is too large.
    """
    height, width = rgb.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"{width} x {height} pixels: a side has 1 to {MAX_SIDE:,}")
    colour = GRAY if is_gray(rgb) else HALF
    if form == "dct":
        data = np.empty(dct.most_dct_bytes(height, width, colour), np.uint8)
        data = data[: dct.encode_dct(rgb, colour, dct.make_tables(quality).factors, data)]
    else:
        data = np.empty(yuv420.yuv420_bytes(height, width, colour), np.uint8)
        yuv420.encode_yuv420(rgb, colour, data)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it takes {len(data):,} bytes, more than {MAX_BYTES:,}")
    return data, colour


def _decode_whole(
    codec: int, data: np.ndarray, row: tuple[int, ...], size: tuple[int, int], quality: int
) -> np.ndarray:
    """uint8 (*size, 3) of an image whose row has the height, the width and `row`'s third number."""
    regions = np.array([[data.ctypes.data, data.nbytes]])
    windows = np.array([[0, 0, row[0], row[1], 0, 0]], np.float64)
    out: np.ndarray = np.empty((1, *size, 3), np.uint8)
    (found,) = batches.decode_samples(
        codec, regions, np.array([[*row, 0]], np.int32), windows, AREA, out,
        tables=dct.make_tables(quality),
    )  # fmt: skip
    if found != status.WHOLE:
        raise ValueError(status.MEANING[int(found)])
    whole: np.ndarray = out[0]
    return whole


def _to_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    if max(pixels.shape) > MAX_JPEG_SIDE:
        raise ValueError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels: a JPEG's side may have "
            f"{MAX_JPEG_SIDE:,} at most; set image.max_resolution"
        )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


def open_image(content: bytes, config: ImageConfig) -> tuple[np.ndarray, bytes | None, bool]:
    """(pixels, the content where it may be stored as it is, whether it is damaged).

    Pixels are uint8 (height, width, 3), or (height, width) where the image is gray.

    Raises:
        ValueError, OSError: what is wrong with the image.
    """
    with open_picture(content, config.max_pixels) as opened:
        turned = config.apply_orientation and opened.getexif().get(ORIENTATION) in TURNED
        keep, whole = config.keep_jpeg and not turned and is_plain_jpeg(content), True
        if opened.format in ("JPEG", "MPO") and opened.mode in turbojpeg.PIXEL_FORMATS:
            pixels, whole = _decode_jpeg(opened, content, config)
            if opened.mode in ("RGB", "L") and not turned:
                return pixels, content if keep and whole else None, not whole
            image = Image.fromarray(pixels, opened.mode)
            image.info = opened.info  # has EXIF's orientation
        else:
            opened.load()  # raises where data is missing
            image = opened
        if turned:
            image = ImageOps.exif_transpose(image)
        return np.array(to_eight_bits(image)), content if keep and whole else None, not whole


def _decode_jpeg(
    opened: Image.Image, content: bytes, config: ImageConfig
) -> tuple[np.ndarray, bool]:
    """(pixels in the image's mode, whether it is undamaged)."""
    whole = True
    try:
        pixels = turbojpeg.decode(content, *opened.size, opened.mode)
    except turbojpeg.DamagedError as error:
        if not config.accept_damaged:
            raise ValueError(f"{error}; image.accept_damaged=true stores what is left") from error
        pixels, whole = error.pixels, False
    return (pixels[..., 0] if opened.mode == "L" else pixels), whole


def to_eight_bits(image: Image.Image) -> Image.Image:
    """RGB, or L where the image has no colour. Alpha is dropped, 16 bits are scaled to 8.

    Raises:
        ValueError: pixels whose range is not known.
    """
    mode = image.mode
    if mode in ("RGB", "L"):
        return image.copy()
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65_535:
            raise ValueError("its pixels have more than 16 bits; convert them to 8 or 16 first")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65,535 / 255 = 257
    if mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers; convert them to 8 or 16 bits first"
        )
    if mode in ("P", "PA"):
        image = image.convert("RGBA")  # so that a transparent colour keeps its RGB
    elif mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    return image.convert("L" if mode in GRAY_MODES else "RGB")


def is_plain_jpeg(content: bytes) -> bool:
    """Whether the bytes are a JPEG, baseline or progressive, of 8 bits and 1 or 3 components.

    ITU-T T.81, B.1.1: markers are FF xx; all before the frame but SOI have a length.
    """
    if content[:2] != b"\xff\xd8":
        return False
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, components = content[place + 4], content[place + 9]
            return marker in KEPT_FRAMES and precision == 8 and components in (1, 3)
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def fit(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """The size with its longer side at most `longest`, the aspect ratio kept; never larger."""
    longer = max(width, height)
    if longest is None or longer <= longest:
        return width, height
    return max(1, round(width * longest / longer)), max(1, round(height * longest / longer))


def draw(seed: int, split: str, index: int) -> float:
    """Uniform on [0, 1), a function of its arguments alone: the same for any number of workers."""
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def read(item: Path | np.ndarray) -> bytes | np.ndarray:
    """A source's item as `encode` takes it."""
    return read_picture_file(item) if isinstance(item, Path) else item


def read_size(item: Path, config: ImageConfig) -> tuple[int, int]:
    """(width, height) that an image file says it has; it is not decoded.

    Raises:
        ValueError, OSError: what is wrong with the file.
    """
    with open_picture(read_picture_file(item), config.max_pixels) as image:
        return image.size
