"""The residual networks of He et al. 2015 ("Deep Residual Learning for Image Recognition").

The ImageNet networks (table 1) and the CIFAR networks of 6n+2 layers (section 4.2). Parameters are
named as in torchvision, so that its state dicts load as they are.
"""

import difflib
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import BlurPool2d
from torch import Tensor, nn

from resnet_ffcv.errors import UsageError

# timm's names from before are as good as its new ones.
warnings.filterwarnings("ignore", "Mapping deprecated model name", UserWarning)


class ZeroShortcut(nn.Module):
    """Option A: every `stride`-th pixel, zero channels split evenly before and after.

    (n, in_width, h, w) -> (n, out_width, ceil(h / stride), ceil(w / stride)).
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        extra = out_width - in_width
        self.padding = (0, 0, 0, 0, extra // 2, extra - extra // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BlurredConv2d(nn.Conv2d):
    """A convolution with a stride, of its input blurred by (1, 2, 1)/4 each way (Zhang 2019).

    Its parameters are named as those of the convolution alone.
    """

    def __init__(self, in_width: int, out_width: int, *args: Any, **options: Any) -> None:
        super().__init__(in_width, out_width, *args, **options)
        self.blur = BlurPool2d(in_width, 3, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.blur(x))


def build_convolution(
    in_width: int, out_width: int, size: int, stride: int, *, blurpool: bool
) -> nn.Conv2d:
    """A convolution without bias that keeps the resolution, or divides it by its stride."""
    kind = BlurredConv2d if blurpool and stride > 1 else nn.Conv2d
    return kind(in_width, out_width, size, stride, size // 2, bias=False)


def build_shortcut(
    option: str, in_width: int, out_width: int, stride: int, *, blurpool: bool
) -> nn.Module | None:
    """The path beside a block, None for the identity. Section 3.3, options A, B and C."""
    changes = stride != 1 or in_width != out_width
    if option == "A":
        return ZeroShortcut(in_width, out_width, stride) if changes else None
    if option == "C" or changes:
        convolution = build_convolution(in_width, out_width, 1, stride, blurpool=blurpool)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_width))
    return None


class Block(nn.Module):
    """A residual block: convolutions with BatchNorm, the shortcut added before the last ReLU.

    `layers` lists (width, kernel size, stride) of the convolutions, named conv1, bn1, conv2, ...
    """

    def __init__(
        self,
        in_width: int,
        layers: Sequence[tuple[int, int, int]],
        stride: int,
        shortcut: str,
        *,
        blurpool: bool,
    ) -> None:
        super().__init__()
        width = in_width
        for place, (out_width, size, step) in enumerate(layers, 1):
            convolution = build_convolution(width, out_width, size, step, blurpool=blurpool)
            self.add_module(f"conv{place}", convolution)
            self.add_module(f"bn{place}", nn.BatchNorm2d(out_width))
            width = out_width
        self.depth = len(layers)
        self.downsample = build_shortcut(shortcut, in_width, width, stride, blurpool=blurpool)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for place in range(1, self.depth + 1):
            y = getattr(self, f"bn{place}")(getattr(self, f"conv{place}")(y))
            if place < self.depth:
                y = F.relu(y, inplace=True)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm before the addition."""
        norm: nn.BatchNorm2d = getattr(self, f"bn{self.depth}")
        return norm


def basic_block(in_width: int, width: int, stride: int, shortcut: str, *, blurpool: bool) -> Block:
    """Two 3x3 convolutions (figure 5, left)."""
    layers = [(width, 3, stride), (width, 3, 1)]
    return Block(in_width, layers, stride, shortcut, blurpool=blurpool)


def bottleneck_block(
    in_width: int, width: int, stride: int, shortcut: str, *, stride_in: str, blurpool: bool
) -> Block:
    """1x1, 3x3, 1x1 to four times the width (figure 5, right).

    The stride is on the first 1x1 in the paper, on the 3x3 in torchvision (models/resnet.py:107).
    """
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    layers = [(width, 1, first), (width, 3, second), (4 * width, 1, 1)]
    return Block(in_width, layers, stride, shortcut, blurpool=blurpool)


BlockBuilder = Callable[[int, int, int, str], Block]  # of in_width, width, stride, shortcut


class ResNet(nn.Module):
    """A residual network: stem, stages, mean over places, classifier.

    (n, 3, h, w) -> logits (n, num_classes).

    Args:
        block: makes a block from (in_width, width, stride, shortcut).
        stages: (width, number of blocks) of each; all but the first halve the resolution.
        expansion: a block's output width over `width`.
        large_stem: ImageNet's 7x7 and pooling, to a quarter of the resolution; else one 3x3.
        zero_init: start each block's last BatchNorm at zero.
        blurpool: the pooling shrinks by a blur too; the blocks' convolutions are `block`'s matter.
        spec: what a checkpoint records of the network, and compares.
    """

    def __init__(
        self,
        block: BlockBuilder,
        stages: Sequence[tuple[int, int]],
        *,
        num_classes: int,
        expansion: int,
        shortcut: str,
        large_stem: bool,
        zero_init: bool,
        blurpool: bool,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.spec = spec
        in_width = stages[0][0]
        size, stride = (7, 2) if large_stem else (3, 1)
        self.conv1 = nn.Conv2d(3, in_width, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.maxpool: nn.Module = nn.Identity()
        if large_stem and blurpool:
            self.maxpool = nn.Sequential(nn.MaxPool2d(3, 1, 1), BlurPool2d(in_width, 3, stride=2))
        elif large_stem:
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        for place, (width, blocks) in enumerate(stages, 1):
            layer = nn.Sequential()
            for number in range(blocks):
                stride = 2 if place > 1 and number == 0 else 1
                layer.append(block(in_width, width, stride, shortcut))
                in_width = width * expansion
            self.add_module(f"layer{place}", layer)
        self.stages = len(stages)
        self.fc = nn.Linear(in_width, num_classes)
        self._initialise(zero_init)

    def _initialise(self, zero_init: bool) -> None:
        # He et al. 2015b, with fan-out as in torchvision; the classifier keeps PyTorch's default.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init and isinstance(module, Block):
                nn.init.zeros_(module.last_norm.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> the last stage's (n, width, h', w'); timm's name for it."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for place in range(1, self.stages + 1):
            x = getattr(self, f"layer{place}")(x)
        return x

    def get_classifier(self) -> nn.Linear:
        """The last layer; timm's name for it."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.forward_features(x).mean((2, 3)))
        return logits


# Blocks in the four stages of the ImageNet networks (table 1).
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
DEEPEST = 1202  # of 6n+2 layers, as in the paper; 100,000 would take minutes to build


def build_model(
    name: str,
    num_classes: int,
    *,
    shortcut: str | None = None,
    stride_in: str | None = None,
    zero_init: bool = False,
    blurpool: bool = False,
) -> nn.Module:
    """A freshly initialised network: (n, 3, h, w) -> logits (n, num_classes).

    Convolutions start as in He et al. 2015b, normal with fan-out, as torchvision's
    (models/resnet.py:210); timm's models start as timm has it.

    Args:
        name: resnet18, 34, 50, 101, 152 (ImageNet); any other resnet of 6n+2 layers (CIFAR); or
            timm/NAME.
        shortcut: A, B or C; None: A for CIFAR's, B for ImageNet's.
        stride_in: "1x1" or "3x3", of bottlenecks; None: 3x3. Networks of basic blocks have no such
            choice: it is checked, ignored and recorded as None.
        zero_init: start each block's last BatchNorm at zero.
        blurpool: blur before each convolution with a stride of the blocks, and where the stem's
            pooling shrinks. The parameters are the same.

    Returns:
        the network; its `spec` is {name, num_classes, shortcut, stride_in, blurpool}, with None for
        what it does not have.

    Raises:
        UsageError: no such network, or a choice that it does not offer.
    """
    if num_classes < 1:
        raise UsageError(f"a model wants at least one class, not {num_classes}")
    if name.startswith("timm/"):
        return _build_timm(name, num_classes, shortcut, stride_in, zero_init or blurpool)
    depth = _depth(name)
    if shortcut not in (None, "A", "B", "C"):
        raise UsageError(f"model.shortcut={shortcut}: it is A, B or C")
    if stride_in not in (None, "1x1", "3x3"):
        raise UsageError(f"model.stride_in={stride_in}: it is 1x1 or 3x3")
    is_cifar = is_cifar_model(name)
    blocks = ((depth - 2) // 6,) * 3 if is_cifar else IMAGENET_BLOCKS[depth]
    width = 16 if is_cifar else 64
    shortcut = shortcut or ("A" if is_cifar else "B")
    is_deep = depth >= 50 and not is_cifar
    if is_deep:
        stride_in = stride_in or "3x3"
        block = partial(bottleneck_block, stride_in=stride_in, blurpool=blurpool)
    else:
        stride_in = None  # recipes share it; without bottlenecks it says nothing
        block = partial(basic_block, blurpool=blurpool)
    return ResNet(
        block,
        [(width * 2**place, count) for place, count in enumerate(blocks)],
        num_classes=num_classes,
        expansion=4 if is_deep else 1,
        shortcut=shortcut,
        large_stem=not is_cifar,
        zero_init=zero_init,
        blurpool=blurpool,
        spec=_spec(name, num_classes, shortcut, stride_in, blurpool=blurpool),
    )


def is_cifar_model(name: str) -> bool:
    """Whether a name is that of a network of 6n+2 layers, for images of 32 pixels."""
    return not name.startswith("timm/") and _depth(name) not in IMAGENET_BLOCKS


def _depth(name: str) -> int:
    found = re.fullmatch(r"resnet([1-9][0-9]{0,4})", name)
    depth = int(found[1]) if found else 0
    if depth in IMAGENET_BLOCKS or (8 <= depth <= DEEPEST and depth % 6 == 2):
        return depth
    near = f"timm/{name}" if timm.is_model(name) else f"resnet{_nearest_depth(name)}"
    raise UsageError(
        f"model.name={name}: no such model; the nearest is {near}, others are timm/NAME"
    )


def _nearest_depth(name: str) -> int:
    number = re.search("[0-9]{1,5}", name)
    wanted = int(number[0]) if number else 20
    depths: list[int] = [*IMAGENET_BLOCKS, *range(8, DEEPEST + 1, 6)]
    return min((abs(depth - wanted), depth) for depth in depths)[1]


def _spec(
    name: str, num_classes: int, shortcut: str | None, stride_in: str | None, *, blurpool: bool
) -> dict[str, Any]:
    return {
        "name": name,
        "num_classes": num_classes,
        "shortcut": shortcut,
        "stride_in": stride_in,
        "blurpool": blurpool,
    }


def timm_architecture(name: str) -> str:
    """timm's own name, perhaps with a tag of weights, of timm/NAME.

    Raises:
        UsageError: timm has none such.
    """
    architecture = name.removeprefix("timm/")
    known = timm.list_models()
    try:
        if timm.is_model(architecture):
            timm.models.get_pretrained_cfg(architecture)  # raises where the tag is unknown
            return architecture
    except RuntimeError:
        known = timm.list_pretrained(f"{architecture.partition('.')[0]}.*") or known
    near = difflib.get_close_matches(architecture, known, n=1, cutoff=0)[0]
    raise UsageError(f"model.name={name}: timm has no such model; the nearest is timm/{near}")


def _build_timm(
    name: str, num_classes: int, shortcut: str | None, stride_in: str | None, others: bool
) -> nn.Module:
    if shortcut or stride_in or others:
        raise UsageError(
            f"{name}: shortcut, stride_in, zero_init and blurpool are for our ResNets only"
        )
    model: nn.Module = timm.create_model(
        timm_architecture(name), num_classes=num_classes, pretrained=False
    )
    model.spec = _spec(name, num_classes, None, None, blurpool=False)  # type: ignore[assignment]  # a plain dict
    return model
