"""Images and windows that are hard on kernels, drawn from a seed."""

import numpy as np

from resnet_ffcv.kernels.geometry import Window


def draw_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): noise, black and white, flat, or a ramp."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == 1:
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    if kind == 2:
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (height, width, 3)).copy()
    y, x = np.mgrid[:height, :width]
    slopes = rng.uniform(-3, 3, (2, 3))
    ramp = 128 + y[..., None] * slopes[0] + x[..., None] * slopes[1]
    return np.clip(ramp, 0, 255).astype(np.uint8)


def draw_window(rng: np.random.Generator, height: int, width: int) -> Window:
    """Whole pixels and no look outside, as random-resized crops have, or neither."""
    mirrored = bool(rng.integers(2))
    if rng.integers(2):
        y, x = rng.integers(height), rng.integers(width)
        tall, wide = rng.integers(1, height - y + 1), rng.integers(1, width - x + 1)
        return Window(float(y), float(x), float(tall), float(wide), False, mirrored)
    tall, wide = rng.uniform(0.01, height), rng.uniform(0.01, width)
    y, x = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
    return Window(y, x, tall, wide, True, mirrored)


def draw_size(rng: np.random.Generator, most: int = 70) -> tuple[int, int]:
    return int(rng.integers(1, most + 1)), int(rng.integers(1, most + 1))


class Work:
    """Scratch memory with words behind it that must stay as they are."""

    GUARD, VALUE = 64, 123_456_789

    def __init__(self, count: int) -> None:
        words = -(-count // 4)
        self.memory = np.full(words + self.GUARD, 99, np.int32)
        self.memory[words:] = self.VALUE
        self.words = self.memory[:words]
        self.rest = self.memory[words:]

    def check(self) -> None:
        assert (self.rest == self.VALUE).all(), "a kernel wrote behind its scratch memory"


class Guarded:
    """An output (height, width, 3) with rows before and behind it that must stay as they are."""

    def __init__(self, size: tuple[int, int]) -> None:
        bytes_ = size[0] * size[1] * 3
        self.memory = np.full(bytes_ + 256, 77, np.uint8)
        self.image = self.memory[128 : 128 + bytes_].reshape(*size, 3)

    def check(self) -> np.ndarray:
        assert (self.memory[:128] == 77).all()
        assert (self.memory[-128:] == 77).all()
        return self.image
