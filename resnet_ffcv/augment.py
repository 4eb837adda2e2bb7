"""FFCV Operations that change the images of a batch, uint8, behind the decoder.

Each draws by (seed, epoch, sample) in a `resnet_ffcv.Loader`; in a stock `ffcv.loader.Loader` from
an unseeded generator, as FFCV's own do. Names, arguments and what they do are torchvision's
(`torchvision.transforms.v2`), whose policies and magnitudes are used.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import objmode
from torchvision.transforms import v2

from resnet_ffcv import arguments
from resnet_ffcv.arguments import Colour
from resnet_ffcv.errors import UsageError
from resnet_ffcv.kernels import changes
from resnet_ffcv.stock import Compiler, Operation

Size = tuple[int, int]

# Krizhevsky et al. 2012, section 4.1: principal components of ImageNet's pixels, of 0 to 1, and the
# square roots of their variances; as published with many reimplementations (red, green, blue).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

# torchvision's names: the change, what its number is at magnitude 0, by what magnitudes count.
KINDS: dict[str, tuple[int, float, Callable[[np.ndarray], np.ndarray]]] = {
    "Identity": (changes.NOTHING, 0, np.asarray),
    "Brightness": (changes.BRIGHTNESS, 1, np.asarray),
    "Color": (changes.SATURATION, 1, np.asarray),
    "Contrast": (changes.CONTRAST, 1, np.asarray),
    "Sharpness": (changes.SHARPNESS, 1, np.asarray),
    "Posterize": (changes.POSTERIZE, 0, np.asarray),
    "Solarize": (changes.SOLARIZE, 0, lambda share: 255 * share),
    "AutoContrast": (changes.AUTOCONTRAST, 0, np.asarray),
    "Equalize": (changes.EQUALIZE, 0, np.asarray),
    "Invert": (changes.INVERT, 0, np.asarray),
    "ShearX": (changes.SHEAR_X, 0, np.arctan),
    "ShearY": (changes.SHEAR_Y, 0, np.arctan),
    "TranslateX": (changes.TRANSLATE_X, 0, np.asarray),
    "TranslateY": (changes.TRANSLATE_Y, 0, np.asarray),
    "Rotate": (changes.ROTATE, 0, np.asarray),
}


class Augmentation(Operation):  # type: ignore[misc]  # ffcv has no types
    """Base of all: draws a list of changes for each image (`draw`), and does them in place.

    Attributes:
        steps: changes of an image at most.
        fill: (red, green, blue) of what is moved in or put over; black.
    """

    steps = 1
    fill: Colour = (0, 0, 0)

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng()

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        """Fills int32 (n, steps) and float64 (n, steps, 4), both 0, see kernels.changes.

        Args:
            keys: uint64 (n,), of the samples.
            size: (height, width) of the images.
            what, numbers: the changes.
        """
        raise NotImplementedError

    def choose(self, indices: np.ndarray, size: Size, key: np.uint64) -> tuple[Any, Any]:
        """(changes, numbers) for samples, by a key of the epoch."""
        what = np.zeros((len(indices), self.steps), np.int32)
        numbers = np.zeros((*what.shape, changes.NUMBERS))
        self.draw(changes.sample_keys(key, indices.astype(np.int64)), size, what, numbers)
        return what, numbers

    def augment(
        self, images: np.ndarray, indices: np.ndarray, key: np.uint64, threads: int
    ) -> None:
        """Changes uint8 (n, height, width, 3) in place.

        Args:
            images: contiguous.
            indices: of the samples.
            key: of the epoch.
            threads: of numba's to use.
        """
        size = (images.shape[1], images.shape[2])
        changes.change_images(images, *self.choose(indices, size, key), self.fill, threads)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape, dtype = previous_state.shape, previous_state.dtype
        if not previous_state.jit_mode or len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise UsageError(
                f"{type(self).__name__} wants uint8 images (height, width, 3) as decoders give "
                f"them, found {dtype} {shape}; it belongs before ToTensor"
            )
        return previous_state, None

    def generate_code(self) -> Callable[..., Any]:
        def run(images: np.ndarray, indices: np.ndarray) -> None:
            key = np.uint64(self.generator.integers(2**63))
            self.augment(images, indices, key, Compiler.num_threads)

        def stage(images, memory, indices):  # type: ignore[no-untyped-def]  # noqa: ARG001
            with objmode():
                run(images, indices)
            return images

        stage.with_indices = True  # type: ignore[attr-defined]
        return stage


class PCAColour(Augmentation):
    """AlexNet's colour augmentation, the "standard" one of He et al. 2015: along each principal
    component of ImageNet's colours by its deviation times a normal number; one colour an image.

    Adds 255 x eigenvectors @ (eigenvalues x N(0, deviation)) to pixels from 0 to 255, rounded.
    """

    def __init__(self, deviation: float = 0.1) -> None:
        super().__init__()
        self.deviation = arguments.number("deviation", deviation)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:  # noqa: ARG002
        vectors = 255 * EIGENVECTORS * EIGENVALUES
        changes.draw_offsets(keys, self.deviation, vectors, what, numbers)


class ColorJitter(Augmentation):
    """Brightness, contrast, saturation (factors) and hue (circles), each changed by up to so much,
    in random order: numbers x for [1 - x, 1 + x] (hue: [-x, x]), or bounds."""

    def __init__(
        self, brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0
    ) -> None:
        super().__init__()
        given = {
            changes.BRIGHTNESS: ("brightness", brightness, 1.0),
            changes.CONTRAST: ("contrast", contrast, 1.0),
            changes.SATURATION: ("saturation", saturation, 1.0),
            changes.HUE: ("hue", hue, 0.0),
        }
        found = {kind: _jitter(*named) for kind, named in given.items()}
        used = {kind: bounds for kind, bounds in found.items() if bounds is not None}
        self.kinds = np.array(list(used), np.int32)
        self.bounds = np.array(list(used.values()), np.float64).reshape(-1, 2)
        self.steps = len(used)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:  # noqa: ARG002
        changes.draw_jitter(keys, self.kinds, self.bounds, what, numbers)


class RandomGrayscale(Augmentation):
    """Gray, with probability `p`."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = arguments.probability("p", p)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:  # noqa: ARG002
        changes.draw_grayscale(keys, self.p, what)


class AutoAugment(Augmentation):
    """One of 25 pairs of changes, each with its own probability (Cubuk et al. 2018).

    Args:
        policy: imagenet, cifar10 or svhn, on which it was found.
        fill: of what is moved in.
    """

    steps = 2

    def __init__(self, policy: str = "imagenet", *, fill: Sequence[int] = (0, 0, 0)) -> None:
        super().__init__()
        known = {one.value: one for one in v2.AutoAugmentPolicy}
        if policy not in known:
            raise UsageError(f"policy={policy!r}: wanted is one of {', '.join(known)}")
        self.policy, self.fill = known[policy], arguments.colour("fill", fill)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        kinds, probabilities, sizes, bases, signed = _policy_tables(self.policy, size)
        changes.draw_policy(keys, kinds, probabilities, sizes, bases, signed, what, numbers)


class RandAugment(Augmentation):
    """`num_ops` changes of 14, all by one magnitude (Cubuk et al. 2019)."""

    def __init__(
        self, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31, *,
        fill: Sequence[int] = (0, 0, 0),
    ) -> None:  # fmt: skip
        super().__init__()
        self.steps = arguments.whole("num_ops", num_ops, 0)
        self.bins = arguments.whole("num_magnitude_bins", num_magnitude_bins, 2)
        self.magnitude = arguments.whole("magnitude", magnitude, 0)
        self.fill = arguments.colour("fill", fill)
        if self.magnitude >= self.bins:
            raise UsageError(
                f"magnitude={magnitude}: wanted is a number below num_magnitude_bins={self.bins}"
            )

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        kinds, magnitudes, bases, signed = _space_tables(v2.RandAugment, self.bins, size)
        one = np.ascontiguousarray(magnitudes[:, self.magnitude, None])
        changes.draw_from_space(keys, kinds, one, bases, signed, what, numbers)


class TrivialAugmentWide(Augmentation):
    """One change of 14 by a magnitude at random (Müller and Hutter 2021)."""

    def __init__(self, num_magnitude_bins: int = 31, *, fill: Sequence[int] = (0, 0, 0)) -> None:
        super().__init__()
        self.bins = arguments.whole("num_magnitude_bins", num_magnitude_bins, 2)
        self.fill = arguments.colour("fill", fill)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        kinds, sizes, bases, signed = _space_tables(v2.TrivialAugmentWide, self.bins, size)
        changes.draw_from_space(keys, kinds, sizes, bases, signed, what, numbers)


class RandomCrop(Augmentation):
    """A crop at random, of the image's size, of the image with a border; then its mirror image with
    probability `flip`.

    What the decoder PadCrop does, but behind other augmentations: they see no border.

    Args:
        padding: pixels of the border, on each side.
        fill: its colour.
    """

    steps = 3

    def __init__(self, padding: int = 4, fill: int | Sequence[int] = 0, flip: float = 0.5) -> None:
        super().__init__()
        self.padding = arguments.whole("padding", padding, 0, "pixels")
        self.fill, self.flip = arguments.colour("fill", fill), arguments.probability("flip", flip)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:  # noqa: ARG002
        changes.draw_shifts(keys, self.padding, self.flip, what, numbers)


class RandomErasing(Augmentation):
    """Covers a rectangle with `fill`, with probability `p` (Zhong et al. 2017).

    Args:
        p: probability.
        scale: bounds of the share of the area.
        ratio: bounds of height over width.
        fill: the colour; the mean of the data is what 0 is behind its normalisation.
    """

    def __init__(
        self, p: float = 0.5, scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3), *, fill: Sequence[int] = (0, 0, 0),
    ) -> None:  # fmt: skip
        super().__init__()
        self.p, self.fill = arguments.probability("p", p), arguments.colour("fill", fill)
        self.scale = arguments.bounds("scale", scale, 1)
        self.ratio = arguments.bounds("ratio", ratio)

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        changes.draw_erasing(keys, *size, self.p, self.scale, self.ratio, what, numbers)


class Cutout(Augmentation):
    """Covers a square of `side` pixels about a place at random, as far as it lies in the image."""

    def __init__(self, side: int, *, fill: Sequence[int] = (0, 0, 0)) -> None:
        super().__init__()
        self.side, self.fill = (
            arguments.whole("side", side, 1, "pixels"),
            arguments.colour("fill", fill),
        )

    def draw(self, keys: np.ndarray, size: Size, what: np.ndarray, numbers: np.ndarray) -> None:
        changes.draw_cutout(keys, *size, self.side, what, numbers)


def _jitter(name: str, given: Any, middle: float) -> tuple[float, float] | None:
    """Bounds of a number that leaves an image as it is at `middle`; None where it always is."""
    if arguments.is_real(given):
        size = arguments.number(name, given)
        low, high = middle - size, middle + size
        low = max(low, 0.0) if middle else low
    else:
        low, high = arguments.numbers(name, given, 2)
    least, most = (0.0, float("inf")) if middle else (-0.5, 0.5)
    if not (least <= low <= high <= most and high < float("inf")):
        words = "factors from 0" if middle else "turns from -0.5 to 0.5"
        raise UsageError(
            f"{name}={given!r}: wanted are {words}, or how far they go from {middle:g}"
        )
    return None if low == high == middle else (low, high)


# torchvision's tables -------------------------------------------------------------------


def _magnitudes(space: Any, name: str, bins: int, size: Size) -> tuple[np.ndarray, bool]:
    """(float64 (bins,) as `kernels.changes` takes them, signed) of a change in a class's space."""
    make, signed = space[name]
    found = make(bins, *size)
    values = np.zeros(bins) if found is None else found.numpy().astype(np.float64)
    return KINDS[name][2](values), signed


@lru_cache(maxsize=64)
def _policy_tables(policy: v2.AutoAugmentPolicy, size: Size) -> tuple[np.ndarray, ...]:
    """As `draw_policy` takes them: kinds, probabilities, magnitudes, bases and signs."""
    policies = v2.AutoAugment(policy)._policies
    space = v2.AutoAugment._AUGMENTATION_SPACE
    shape = (len(policies), 2)
    kinds, signed = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    probabilities, sizes, bases = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, pair in enumerate(policies):
        for step, (name, probability, number) in enumerate(pair):
            magnitudes, signed[row, step] = _magnitudes(space, name, 10, size)
            kinds[row, step], bases[row, step] = KINDS[name][:2]
            probabilities[row, step] = probability
            sizes[row, step] = magnitudes[number or 0]
    return kinds, probabilities, sizes, bases, signed


@lru_cache(maxsize=64)
def _space_tables(kind: Any, bins: int, size: Size) -> tuple[np.ndarray, ...]:
    """As `draw_from_space` takes them: kinds, magnitudes, bases and signs."""
    space = kind._AUGMENTATION_SPACE
    found = [_magnitudes(space, name, bins, size) for name in space]
    kinds = np.array([KINDS[name][0] for name in space], np.int32)
    bases = np.array([KINDS[name][1] for name in space], np.float64)
    return kinds, np.stack([values for values, _ in found]), bases, np.array([s for _, s in found])
