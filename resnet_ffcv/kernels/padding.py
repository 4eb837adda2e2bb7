"""Windows that reach outside their image: padding, cropping and mirroring in one copy."""

from resnet_ffcv.kernels.compiling import kernel
from resnet_ffcv.kernels.geometry import Window
from resnet_ffcv.kernels.memory import copy_bytes, store_byte
from resnet_ffcv.kernels.vector import I8, Scalar, Vector, load, repeat, store, vector_kernel

PIXELS = 16  # that are mirrored at a time
PIECE = 32  # pixels that are filled at a time
ROW_BYTES = 64  # that are copied at a time
FAR = 1 << 30  # no window reaches so many pixels outside


@kernel
def is_whole(window: Window, size: tuple[int, int]) -> bool:
    """Whether a window has the size (height, width) and lies on whole pixels."""
    return (
        window.height == size[0]
        and window.width == size[1]
        and abs(window.y) < FAR
        and abs(window.x) < FAR
        and window.y == int(window.y)
        and window.x == int(window.x)
    )


@kernel
def clip(begin: float, size: float, limit: int) -> tuple[int, int]:
    """(first, end) of the pixels of a window's axis that lie in the image; empty where none do."""
    first = min(max(int(begin), 0), limit)
    return first, max(min(int(begin + size), limit), first)


@vector_kernel
def fill_pieces(out: Scalar, count: Scalar, pixels: Scalar) -> None:
    """Copies of PIECE pixels, one behind the other."""
    parts = [load(pixels + PIECE * i, I8, PIECE) for i in range(3)]

    def store_piece(i: Scalar, _: list[Vector]) -> list[Vector]:
        for place, part in enumerate(parts):
            store(out + i * (3 * PIECE) + PIECE * place, part)
        return []

    repeat(count, [], store_piece)


@kernel
def fill_pixels(out: int, count: int, colour: tuple[int, int, int]) -> None:
    """Sets so many RGB pixels to one colour."""
    for place in range(min(count, PIECE)):
        for channel in range(3):
            store_byte(out + 3 * place + channel, colour[channel])
    if count > PIECE:
        pieces = count // PIECE
        fill_pieces(out, pieces, out)
        copy_bytes(out + 3 * PIECE * pieces, out, 3 * (count - PIECE * pieces))


@vector_kernel
def copy_row(source: Scalar, out: Scalar, wholes: Scalar, last: Scalar) -> None:
    """ROW_BYTES so many times, and once more from byte `last` on, which may overlap."""

    def copy(place: Scalar) -> None:
        store(out + place, load(source + place, I8, ROW_BYTES))

    def copy_whole(i: Scalar, _: list[Vector]) -> list[Vector]:
        copy(i * ROW_BYTES)
        return []

    repeat(wholes, [], copy_whole)
    copy(last)


@vector_kernel
def mirror_pixels(source: Scalar, out: Scalar) -> None:
    """PIXELS RGB pixels in reverse order."""
    parts = [load(source + PIXELS * i, I8, PIXELS) for i in range(3)]
    low, high = parts[0].shuffle(range(2 * PIXELS), parts[1]), parts[2]
    high = high.shuffle([*range(PIXELS)] * 2)
    places = [3 * pixel + channel for pixel in reversed(range(PIXELS)) for channel in range(3)]
    for i in range(3):
        store(out + PIXELS * i, low.shuffle(places[PIXELS * i : PIXELS * (i + 1)], high))


@kernel
def place_pixels(
    source: int, step: int, rows: int, columns: int, mirrored: bool, out: int, out_step: int
) -> None:
    """Copies (rows, columns) RGB pixels; rows are `step` and `out_step` bytes apart."""
    size = 3 * columns
    wholes = (size - 1) // ROW_BYTES
    for row in range(rows):
        pixels, target = source + row * step, out + row * out_step
        if not mirrored and size < ROW_BYTES:
            copy_bytes(target, pixels, size)
        elif not mirrored:
            copy_row(pixels, target, wholes, size - ROW_BYTES)
        elif columns < PIXELS:
            for x in range(columns):
                copy_bytes(target + 3 * x, pixels + 3 * (columns - 1 - x), 3)
        else:
            for begin in range(0, columns, PIXELS):
                x = min(begin, columns - PIXELS)  # the last two overlap
                mirror_pixels(pixels + 3 * (columns - PIXELS - x), target + 3 * x)
