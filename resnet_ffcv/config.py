"""Every key of both commands: its type, default, unit and reason; read once, at the edge.

A section is a frozen dataclass, a key one of its fields. fastargs holds the declared sections and
checks the values; it never sees a file, the command line or the environment, because it drops
unknown keys, turns "False" into True and 2.9 into 2, and exits 0 on an error. Unknown keys, wrong
types and conflicts are a `UsageError` here, with the nearest valid name.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import fastargs
import fastargs.validation
import yaml

from resnet_ffcv.beton import MAX_MEMORY, MAX_PIXELS
from resnet_ffcv.errors import UsageError
from resnet_ffcv.recipes import Values
from resnet_ffcv.recipes import read_yaml as read_yaml
from resnet_ffcv.schema import brief, shorten

ConfigT = TypeVar("ConfigT")

LARGEST_SIDE = 4096  # pixels of what a model sees, which files of weights may also ask for
LONGEST_NUMBER = 100  # characters


def key(
    default: Any,
    why: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field of a section: default, one line of why (with the unit), and the values allowed."""
    metadata = {"why": why, "choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


# write_datasets.py ----------------------------------------------------------------------


@dataclass(frozen=True)
class SourceConfig:
    """Where the images come from"""

    name: str = key(
        "sample",
        "sample: the 4,000 images of sample_data/; the others: see the README",
        choices=("sample", "cifar10", "cifar100", "imagenet", "imagefolder"),
    )
    path: str | None = key(
        None, "folder that holds train/ and val/ (or test/), or CIFAR's archive; null for sample"
    )


@dataclass(frozen=True)
class OutputConfig:
    """Where the files go"""

    folder: str | None = key(None, "folder of train.beton and val.beton; null: data/<source.name>")


@dataclass(frozen=True)
class ImageConfig:
    """How an image is stored"""

    mode: str | None = key(
        None,
        "dct, yuv420, jpg, raw, smart or proportion: see the README; null: raw where no image is "
        "over 64 pixels a side, else dct",
        choices=("dct", "yuv420", "jpg", "raw", "smart", "proportion"),
    )
    max_resolution: int | None = key(
        None,
        "pixels of the longer side, shrunk to where it is longer; null: as it is",
        low=1,
        high=65_535,
    )
    max_pixels: int = key(
        178_956_970,
        "pixels a source image may have; one of more is an error, before it is decoded",
        low=1,
    )
    quality: int = key(
        90, "JPEG quality of what is encoded as jpg or dct; kept JPEGs stay", low=1, high=100
    )
    keep_jpeg: bool = key(True, "store a source JPEG byte for byte where no resize is needed")
    compress_probability: float = key(
        0.5, "proportion: share of images stored as JPEG", low=0.0, high=1.0
    )
    smart_threshold: float = key(
        2.0, "smart: JPEG where raw bytes over JPEG bytes is above this, else raw", low=0.0
    )
    accept_damaged: bool = key(
        False, "encode what is left of a JPEG that is damaged inside, instead of stopping at it"
    )
    apply_orientation: bool = key(
        False, "turn images as EXIF says; ImageNet's convention ignores it"
    )


@dataclass(frozen=True)
class WriterConfig:
    """How the files are written; no choice here changes a pixel"""

    workers: int | None = key(None, "encoding processes; null: one for each core allowed", low=1)
    limit: int | None = key(None, "images of each split, drawn by writer.seed; null: all", low=1)
    seed: int = key(0, "seed of what writer.limit and image.mode=proportion draw", low=0)
    on_error: str = key(
        "raise",
        "an image that cannot be stored: raise ends the write, skip leaves it out and lists it",
        choices=("raise", "skip"),
    )
    resume: bool = key(
        False, "keep a write that is stopped as NAME.partial, and go on with one that was"
    )


@dataclass(frozen=True)
class WriteConfig:
    """All sections of write_datasets.py."""

    source: SourceConfig = SourceConfig()
    output: OutputConfig = OutputConfig()
    image: ImageConfig = ImageConfig()
    writer: WriterConfig = WriterConfig()


# train.py -------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    """Which images the model sees, and how"""

    train: str = key("data/sample/train.beton", "file to train on")
    val: str = key("data/sample/val.beton", "file to validate on after every epoch")
    split: int = key(
        0,
        "training images held out, for validation after every epoch; data.val is then tested once, "
        "at the end; 0: none",
        low=0,
    )
    batch_size: int = key(64, "images a step, over all devices", low=1)
    num_workers: int | None = key(None, "decoding threads; null: one for each core allowed", low=1)
    on_error: str = key(
        "raise",
        "a training image that is damaged: raise ends the run and names it, skip leaves it out and "
        "counts it; one to validate on always ends it",
        choices=("raise", "skip"),
    )
    max_pixels: int = key(
        MAX_PIXELS, "pixels of an image; one with more counts as damaged", low=1, high=2**62
    )
    max_memory: int = key(
        MAX_MEMORY,
        "bytes of a thread's memory that decoding one image may take; one that needs more counts "
        "as damaged",
        low=1,
        high=2**62,
    )
    verify: str | None = key(
        None,
        "once: compare each page of the files with its checksum when it is first read, at about a "
        "second a gigabyte; null: never",
        choices=("once",),
    )
    resolution: int = key(32, "pixels a side of what the model sees", low=1, high=LARGEST_SIDE)
    start_resolution: int | None = key(
        None,
        "pixels a side in the first epochs, which grow to data.resolution over data.growth, in "
        "steps of 16; null: data.resolution",
        low=1,
        high=LARGEST_SIDE,
    )
    growth: tuple[float, ...] = key(
        (0.74, 0.86),
        "where images begin and end to grow, in fractions of the run",
        low=0.0,
        high=1.0,
    )
    filter: str = key(
        "area",
        "how pixels are resized: area (FFCV's INTER_AREA), triangle (torchvision's bilinear with "
        "antialias) or cubic",
        choices=("area", "triangle", "cubic"),
    )
    crop: str = key(
        "pad",
        "training window: random_resized (Inception's), scale (the paper's: a random short side of "
        "data.least_side to data.most_side, then a random window), pad (data.padding on each side, "
        "then a random window), center",
        choices=("random_resized", "scale", "pad", "center"),
    )
    least_side: int = key(256, "crop=scale: shortest short side, pixels", low=1)
    most_side: int = key(480, "crop=scale: longest short side, pixels, included", low=1)
    padding: int = key(4, "crop=pad: pixels added on each side", low=0, high=256)
    padding_fill: str = key(
        "black",
        "crop=pad: their colour, black or the training file's mean",
        choices=("black", "mean"),
    )
    min_area: float = key(
        0.08, "crop=random_resized: least share of the image's area", low=1e-6, high=1.0
    )
    center_ratio: float = key(
        1.0,
        "centre window's side over the image's short side (ImageNet: 0.875)",
        low=0.01,
        high=1.0,
    )
    flip: bool = key(True, "mirror each training image with probability 1/2")
    normalize: str = key(
        "mean_std",
        "mean_std, mean and pixel_mean (a mean for each place, for images of one size) are the "
        "training file's own; imagenet: torchvision's and timm's constants",
        choices=("mean_std", "mean", "pixel_mean", "imagenet"),
    )

    def __post_init__(self) -> None:
        if len(self.growth) != 2 or self.growth[0] > self.growth[1]:
            raise UsageError("data.growth is two fractions of the run, such as 0.74,0.86")
        if self.start_resolution and self.crop in ("pad", "scale"):
            raise UsageError(
                f"data.start_resolution shows images smaller, which data.crop={self.crop} does not"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """What else is changed in training images, in this order, but brightness to hue in any; their
    window is data's"""

    policy: str | None = key(
        None,
        "changes drawn for each image as torchvision does; null: none",
        choices=("autoaugment_imagenet", "autoaugment_cifar10", "randaugment", "trivialaugment"),
    )
    policy_first: bool = key(
        False,
        "data.crop=pad: the policy changes the whole image, before its window is taken, as in "
        "AutoAugment's own code for CIFAR; else it sees the border, as in torchvision's",
    )
    operations: int = key(2, "policy=randaugment: changes of an image", low=1, high=14)
    magnitude: int = key(9, "policy=randaugment: of each change", low=0, high=30)
    brightness: float = key(0.0, "factor, from 1 - x (or 0) to 1 + x", low=0.0)
    contrast: float = key(0.0, "factor, from 1 - x (or 0) to 1 + x", low=0.0)
    saturation: float = key(0.0, "factor, from 1 - x (or 0) to 1 + x", low=0.0)
    hue: float = key(0.0, "turn of the colour circle, from -x to x", low=0.0, high=0.5)
    grayscale: float = key(0.0, "probability to make an image gray", low=0.0, high=1.0)
    pca: float = key(
        0.0, "deviation of colours along ImageNet's principal components; the paper: 0.1", low=0.0
    )
    erasing: float = key(
        0.0, "probability to cover a random rectangle with the mean colour", low=0.0, high=1.0
    )
    cutout: int = key(0, "pixels a side of a square covered with the mean colour; 0: none", low=0)
    mixup: float = key(
        0.0,
        "alpha of the share in which the images of a batch are blended in pairs; 0: none",
        low=0,
    )
    cutmix: float = key(
        0.0,
        "alpha of the share that is cut out and swapped; with both, each batch draws one",
        low=0,
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network"""

    name: str = key("resnet20", "resnet18 34 50 101 152, resnet20 32 44 56 110 (6n+2) or timm/NAME")
    shortcut: str | None = key(
        None,
        "where the size changes: A zero channels, B projection, C projections everywhere; null: A "
        "for 6n+2, else B",
        choices=("A", "B", "C"),
    )
    stride_in: str | None = key(
        None,
        "bottleneck's stride: 1x1 (the paper) or 3x3 (torchvision); null: 3x3",
        choices=("1x1", "3x3"),
    )
    zero_init: bool = key(False, "start each block's last BatchNorm at 0; the paper does not")
    blurpool: bool = key(
        False, "blur before each step that halves the resolution (Zhang 2019); the paper does not"
    )
    weights: str | None = key(
        None, "file to start from: our checkpoint, a state dict (.pt, .pth) or .safetensors"
    )
    pretrained_head: str = key(
        "keep", "with model.weights: keep their classifier, or a new one", choices=("keep", "new")
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation"""

    epochs: int | None = key(20, "length in epochs; or give training.iterations", low=1)
    iterations: int | None = key(None, "length in steps; may end inside an epoch", low=1)
    seed: int = key(0, "seed of weights, order and split", low=0, high=2**32 - 1)
    optimizer: str = key(
        "sgd", "sgd, adam, adamw or nadam", choices=("sgd", "adam", "adamw", "nadam")
    )
    momentum: float = key(0.9, "sgd: momentum; the others: beta1", low=0.0, high=0.9999)
    nesterov: bool = key(False, "sgd: Nesterov's momentum; the others have none")
    weight_decay: float = key(1e-4, "L2; decoupled from the gradient for adamw", low=0.0)
    decay_all: bool = key(True, "decay norms and biases too (the paper)")
    label_smoothing: float = key(
        0.0, "share of the target spread over all classes", low=0.0, high=1.0
    )
    ema: float = key(
        0.0,
        "decay, each step, of a moving average of the weights, which is what is tested and kept; "
        "less in the first steps; 0: none",
        low=0.0,
        high=0.999999,
    )
    precision: str = key(
        "auto",
        "autocast type; auto: bf16 where the device has instructions for it, else fp32; fp16 (with "
        "loss scaling) needs CUDA",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    compile: bool = key(
        False, "torch.compile the model; its minutes count as training, so it pays in long runs"
    )
    device: str = key("auto", "auto: cuda where there is one", choices=("auto", "cpu", "cuda"))
    early_stop: int = key(
        0, "end after this many epochs without a lower validation loss; 0: never", low=0
    )

    def __post_init__(self) -> None:
        if self.epochs is None and self.iterations is None:
            raise UsageError("training.epochs and training.iterations are both null; give one")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise UsageError("training.nesterov=true wants training.momentum above 0")


@dataclass(frozen=True)
class LearningRateConfig:
    """The learning rate; milestones: fractions of the run, whole epochs if that is in epochs"""

    schedule: str = key(
        "triangular",
        "step, multistep, plateau, cosine, exponential, restarts (cosines), triangular (up to "
        "lr.peak_at, then down) or constant",
        choices=(
            "constant",
            "step",
            "multistep",
            "plateau",
            "cosine",
            "exponential",
            "restarts",
            "triangular",
        ),
    )
    base: float = key(
        0.2,
        "highest rate, for the batch size given; schedules that begin with it want less than the "
        "triangular, or lr.warmup",
        low=0.0,
    )
    final: float = key(
        0.0, "cosine, exponential, triangular: rate at the end; restarts: of each cycle", low=0.0
    )
    gamma: float = key(0.1, "step, multistep, plateau: factor at each drop", low=0.0, high=1.0)
    milestones: tuple[float, ...] = key(
        (0.5, 0.75), "multistep: where it drops, in fractions of the run", low=0.0, high=1.0
    )
    step_size: float = key(
        0.333333, "step: from drop to drop, a fraction of the run", low=1e-6, high=1.0
    )
    peak_at: float = key(
        0.25, "triangular: where lr.base is reached, in whole steps", low=0.0, high=1.0
    )
    cycles: int = key(3, "restarts: how often the rate falls", low=1, high=100)
    cycle_growth: float = key(
        1.0, "restarts: length of each cycle, over that of the one before", low=0.01, high=100.0
    )
    cycle_peak: float = key(
        1.0, "restarts: highest rate of each cycle, over that of the one before", low=0.0, high=1.0
    )
    cycle_rise: float = key(
        0.0, "restarts: share of each cycle in which the rate rises, linearly", low=0.0, high=1.0
    )
    patience: float = key(
        0.04,
        "plateau: whole epochs, as a fraction of the run, that may pass without a lower validation "
        "loss; one more is a drop",
        low=0.0,
        high=1.0,
    )
    threshold: float = key(
        1e-4, "plateau: a loss counts as lower when it is so by this share", low=0.0, high=1.0
    )
    warmup: int = key(0, "steps before the schedule counts in full", low=0)
    warmup_shape: str = key(
        "linear", "linear from lr.warmup_start, or constant at it", choices=("linear", "constant")
    )
    warmup_start: float = key(0.0, "rate of the first step of the warm-up", low=0.0)

    def __post_init__(self) -> None:
        if self.schedule == "exponential" and not 0 < self.final <= self.base:
            raise UsageError(
                "lr.schedule=exponential wants lr.final above 0, and not above lr.base"
            )


@dataclass(frozen=True)
class TestConfig:
    """How the model is tested"""

    __test__ = False  # none of pytest's

    protocol: str = key(
        "center",
        "of the last test; after every epoch it is center. center: one view, the centre window; "
        "ten_crop: the corners, the centre and their mirror images, scores averaged; multiscale: "
        "whole images and their mirror images at each of test.sides, scores averaged",
        choices=("center", "ten_crop", "multiscale"),
    )
    flip: bool = key(
        False,
        "protocol=center: average the scores of the view and its mirror image, as the others do "
        "anyway",
    )
    resolution: int | None = key(
        None, "pixels a side of the views; null: data.resolution", low=1, high=LARGEST_SIDE
    )
    sides: tuple[int, ...] | None = key(
        None,
        "protocol=multiscale: short sides, pixels; null: the paper's 224, 256, 384, 480, 640 for "
        "views of 224 pixels, for others in proportion",
        low=1,
        high=LARGEST_SIDE,
    )
    batch_size: int = key(250, "views of test.resolution a step", low=1)

    def __post_init__(self) -> None:
        if self.sides == ():
            raise UsageError("test.sides names no short side")
        if self.sides and len(set(self.sides)) < len(self.sides):
            raise UsageError("test.sides names a short side twice")

    @property
    def flips(self) -> bool:
        """Whether a test by the protocol shows a view's mirror image beside it."""
        return self.flip and self.protocol == "center"

    @property
    def name(self) -> str:
        """The protocol, as a result names it."""
        return f"{self.protocol}+flip" if self.flips else self.protocol


@dataclass(frozen=True)
class RunConfig:
    """The run's folder"""

    folder: str | None = key(None, "made new; null: runs/<model>-<time>")
    resume: str | None = key(
        None,
        "folder of a run that was stopped; goes on with that run's own configuration; places of "
        "files, threads, device, precision and the times of checkpoints may be others",
    )
    eval_only: bool = key(False, "test model.weights on data.val, train nothing")
    checkpoint_every: int = key(1, "epochs between checkpoints; the last is always kept", low=1)
    checkpoint_steps: int | None = key(
        None, "steps between further checkpoints, inside an epoch; null: none", low=1
    )


@dataclass(frozen=True)
class TrainConfig:
    """All sections of train.py."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    lr: LearningRateConfig = LearningRateConfig()
    test: TestConfig = TestConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        data, test = self.data, self.test
        if self.augment.policy_first and (data.crop != "pad" or not self.augment.policy):
            raise UsageError("augment.policy_first wants data.crop=pad and an augment.policy")
        if self.augment.cutout > data.resolution:
            raise UsageError(
                f"augment.cutout={self.augment.cutout} is larger than the images, which have "
                f"data.resolution={data.resolution}"
            )
        if data.normalize != "pixel_mean":
            return
        if test.protocol == "multiscale":
            raise UsageError(
                "test.protocol=multiscale has many sizes, data.normalize=pixel_mean one"
            )
        for name, side in (
            ("data.start_resolution", data.start_resolution),
            ("test.resolution", test.resolution),
        ):
            if side not in (None, data.resolution):
                raise UsageError(
                    f"{name}={side}: with data.normalize=pixel_mean all images have "
                    f"data.resolution={data.resolution}"
                )


# Two ways to say one thing: the later of defaults, base, file, command line is meant.
ALTERNATIVES = (("training.epochs", "training.iterations"),)


class StrictChecker(fastargs.validation.Checker):  # type: ignore[misc]  # fastargs has no types
    """Checks one value of one field, a string from the command line or what YAML made of it.

    `check` returns the value in the field's type or raises ValueError; `help` says what is allowed.
    """

    NAMES: typing.ClassVar = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a non-empty text",
        tuple: "numbers",
    }

    def __init__(self, field: "dataclasses.Field[Any]") -> None:
        self.why: str = field.metadata["why"]
        kinds = [k for k in typing.get_args(field.type) if k is not types.NoneType]
        self.optional = isinstance(field.type, types.UnionType)
        declared = kinds[0] if self.optional else field.type
        self.kind: type = typing.get_origin(declared) or typing.cast(type, declared)
        self.item: type = typing.get_args(declared)[0] if self.kind is tuple else self.kind
        self.choices, self.low, self.high = (field.metadata[n] for n in ("choices", "low", "high"))

    def check(self, value: Any) -> Any:
        if value == "null":
            if not self.optional:
                raise ValueError
            return None
        if self.kind is tuple:
            items = value.split(",") if isinstance(value, str) else value
            if not isinstance(items, list | tuple):
                raise ValueError
            return tuple(self._in_range(self._number(item, self.item)) for item in items)
        if self.kind is str:
            # Empty is what a shell makes of a variable that is not set; "none" is null.
            if not isinstance(value, str) or not value or "\0" in value:
                raise ValueError
            if self.choices and value not in self.choices:
                raise ValueError
            return value
        if self.kind is bool:
            return self._boolean(value)
        return self._in_range(self._number(value, self.kind))

    @staticmethod
    def _boolean(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}[str(value).lower()]

    @staticmethod
    def _number(value: Any, kind: type) -> Any:
        # YAML gives 5e-5 as a string, and True as a bool, which is an int to Python.
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        if not isinstance(value, int | float | str) or len(str(value)) > LONGEST_NUMBER:
            raise ValueError
        return kind(value)

    def _in_range(self, value: Any) -> Any:
        # Written so that NaN fails.
        if self.low is not None and not value >= self.low:
            raise ValueError
        if self.high is not None and not value <= self.high:
            raise ValueError
        if not math.isfinite(value):
            raise ValueError
        return value

    def help(self) -> str:
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = self.NAMES[self.kind]
            if self.kind is tuple and self.item is int:
                text = "whole " + text
            if self.low is not None and self.high is not None:
                text += f" from {self.low:.10g} to {self.high:.10g}"
            elif self.low is not None:
                text += f" of at least {self.low:g}"
            text += ", with commas between" if self.kind is tuple else ""
        return text + (" or null" if self.optional else "")


def declare(command: type) -> fastargs.Config:
    """The fastargs sections of `command` (WriteConfig or TrainConfig), from its dataclasses."""
    declared = fastargs.Config()
    for section in dataclasses.fields(command):
        section_type = typing.cast(type, section.type)
        fastargs.Section(section.name, section_type.__doc__, declared).params(
            **{
                field.name: fastargs.Param(
                    StrictChecker(field),
                    field.metadata["why"],
                    default="null" if field.default is None else field.default,
                )
                for field in dataclasses.fields(section_type)
            }
        )
    return declared


def build(command: type[ConfigT], layers: Sequence[tuple[str, Values]]) -> ConfigT:
    """Merges layers, the later over the earlier, and checks every value.

    Args:
        command: `WriteConfig` or `TrainConfig`.
        layers: (where it comes from, {"section.key": value}), lowest first; defaults lie below all.

    Raises:
        UsageError: an unknown key or a value of the wrong type, with the layer that gave it; values
            that exclude each other.
    """
    declared = declare(command)
    values: Values = {}
    origin: dict[str, str] = {}
    for place, layer in layers:
        for name in layer:
            check_name(name, declared, place)
        # fastargs takes None for "not given".
        texts = {name: "null" if v is None else v for name, v in layer.items()}
        for pair in ALTERNATIVES:
            given = [name for name in pair if texts.get(name, "null") != "null"]
            if len(given) == 2:
                raise UsageError(f"{place}: give {pair[0]} or {pair[1]}, not both")
            values.update(dict.fromkeys(pair, "null") if given else {})
        values.update(texts)
        origin.update(dict.fromkeys(layer, place))
    # Not declared.collect(values): that would split and rebuild the names and swallow every error.
    declared.content = {tuple(name.split(".")): value for name, value in values.items()}
    for path in declared.validate(mode="errordict"):
        name = ".".join(path)
        checker = declared.entries[path].checker
        wanted = checker.help()
        if checker.kind in (int, float, tuple):  # what is counted, and in which unit
            wanted += f" ({checker.why})"
        place, value = origin.get(name, "default"), brief(values[name])
        raise UsageError(f"{place}: {name}={value} is not {wanted}")
    sections = {
        section.name: typing.cast(type, section.type)(
            **{path[1]: declared[path] for path in declared.sections_to_entries[(section.name,)]}
        )
        for section in dataclasses.fields(typing.cast(Any, command))
    }
    return command(**sections)


def check_values(section: type, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values of some keys of a section (`DataConfig`), in their types.

    Raises:
        UsageError: a value of the wrong type or out of range; the message begins with `place`.
    """
    fields = {field.name: field for field in dataclasses.fields(section)}
    found = {}
    for name, value in values.items():
        checker = StrictChecker(fields[name])
        try:
            found[name] = checker.check(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UsageError(f"{place}.{name}={brief(value)} is not {checker.help()}") from error
    return found


def check_name(name: str, declared: fastargs.Config, place: str, flags: Sequence[str] = ()) -> None:
    """Raises UsageError with the nearest valid name if `name` ("section.key") is not declared.

    `flags`: what else there could stand.
    """
    names = [".".join(path) for path in declared.entries]
    if name in names:
        return
    sections = {n.split(".")[0] for n in names}
    near = [n for n in names if n.split(".")[1] == name.split(".")[-1]]  # wrong or no section
    near = near or difflib.get_close_matches(name, [*names, *flags], n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; --help lists all keys"
    if name in sections:
        hint = f"; it is a section: {', '.join(n for n in names if n.startswith(name + '.'))}"
    raise UsageError(f"{place}: unknown key {shorten(name)}{hint}")


def to_dict(config: Any) -> dict[str, Any]:
    """{section: {key: value}} of a configuration, as `read_yaml` takes it; tuples as lists."""
    plain = dataclasses.asdict(config)
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()}
        for section, keys in plain.items()
    }


def to_yaml(config: Any) -> str:
    """The configuration as a YAML file that gives it again."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
