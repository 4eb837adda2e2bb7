"""What pixels are compared with: a window of an image, resampled in float64."""

from dataclasses import dataclass

import numpy as np

from resnet_ffcv.kernels.geometry import Window


@dataclass(frozen=True)
class Taps:
    """One axis: output i covers origin + i scale to origin + (i + 1) scale of low to high."""

    filter_: int
    origin: float
    scale: float
    count: int
    low: int
    high: int

    def matrix(self) -> np.ndarray:
        """float64 (count, high): what each output takes of each sample."""
        samples = np.arange(self.high)
        begin = self.origin + np.arange(self.count)[:, None] * self.scale
        end = begin + self.scale
        if self.filter_ == 0:
            weights = np.clip(np.minimum(end, samples + 1) - np.maximum(begin, samples), 0, None)
        else:
            x = np.abs(samples + 0.5 - (begin + end) / 2) / max(self.scale, 1)
            if self.filter_ == 1:
                weights = np.clip(1 - x, 0, None)
            else:  # Keys' cubic, a = -1/2
                near = 1.5 * x**3 - 2.5 * x**2 + 1
                far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
                weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights[:, : self.low] = 0
        matrix: np.ndarray = weights / weights.sum(1, keepdims=True)
        return matrix


def axes(window: Window, shape: tuple[int, int], filter_: int, out: tuple[int, int]) -> list:
    """float64 matrices of y and x."""
    found = []
    for begin, size, limit, count in (
        (window.y, window.height, shape[0], out[0]),
        (window.x, window.width, shape[1], out[1]),
    ):
        low, high = int(np.floor(begin)), int(np.ceil(begin + size))
        if window.sees_all:
            low, high = 0, limit
        found.append(Taps(filter_, begin, size / count, count, low, min(high, limit)).matrix())
    if window.mirrored:
        found[1] = found[1][::-1]
    return found


def resample(image: np.ndarray, window: Window, filter_: int, out: tuple[int, int]) -> np.ndarray:
    """float64 (*out, channels) of an image (height, width, channels)."""
    y, x = axes(window, image.shape[:2], filter_, out)
    part = image[: y.shape[1], : x.shape[1]].astype(np.float64)
    return np.einsum("ab,bcd,ec->aed", y, part, x, optimize=True)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels in decibels; the peak is 255.

    68 at most: an image that is exactly right, such as a white one, would make any mean infinite.
    """
    error = max(float(np.mean((image - reference) ** 2)), 0.01)
    return float(10 * np.log10(255**2 / error))
