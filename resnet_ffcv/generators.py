"""The random generators of torch, NumPy and Python: their seeds and their states."""

import random
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from resnet_ffcv.errors import FailureError
from resnet_ffcv.models.reading import check_tensors
from resnet_ffcv.schema import Finite

WORDS = 624  # of the Mersenne Twister, which all three use on a processor

Word = Annotated[int, Meta(ge=0, lt=2**32)]
Position = Annotated[int, Meta(ge=0, le=WORDS)]


@dataclass(frozen=True)
class GeneratorStates:
    """What `generator_states` returns, as it is read from a checkpoint."""

    torch: Tensor
    cuda: Annotated[list[Tensor], Meta(max_length=1024)]  # of each device
    # Words, position, whether a normal number is kept back, and that.
    numpy: tuple[
        Annotated[list[Word], Meta(min_length=WORDS, max_length=WORDS)],
        Position,
        Literal[0, 1],
        Finite,
    ]
    # Version, words with the position behind them, a normal number that is kept back.
    python: tuple[
        Literal[3],
        Annotated[tuple[Word, ...], Meta(min_length=WORDS + 1, max_length=WORDS + 1)],
        Finite | None,
    ]


def seed_generators(seed: int) -> None:
    """Seeds torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the generator that libraries draw from
    random.seed(seed)


def generator_states() -> GeneratorStates:
    """How the generators of torch, NumPy and Python stand."""
    state: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]  # noqa: NPY002
    _, keys, position, kept, normal = state
    return GeneratorStates(
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all(),
        (keys.tolist(), position, kept, normal),
        random.getstate(),
    )


def check_generators(states: GeneratorStates, where: str) -> None:
    """Raises FailureError at states with which a generator would read past its memory.

    NumPy and torch believe what a state says of the position among its words.
    """
    here = generator_states()
    check_tensors([("generators.torch", states.torch)], where)
    check_tensors([("generators.cuda", state) for state in states.cuda], where)
    pairs = [("torch", states.torch, here.torch)]
    if len(states.cuda) == len(here.cuda):  # else they are of another machine, and not restored
        pairs += [("cuda", *pair) for pair in zip(states.cuda, here.cuda, strict=True)]
    for name, given, own in pairs:
        if given.dtype != own.dtype or given.shape != own.shape:
            raise FailureError(f"{where}: generators.{name}: not a state of PyTorch's generator")
    sound = {"torch": _is_sound(states.torch), "python": states.python[1][-1] <= WORDS}
    for name, is_sound in sound.items():
        if not is_sound:
            raise FailureError(f"{where}: generators.{name}: the position is outside of its words")


def _is_sound(state: Tensor) -> bool:
    """Whether torch's Mersenne Twister would read none but its own words (MT19937RNGEngine.h).

    Bytes 8 to 11 are how many words are left before it makes new ones, 16 to 23 the next one.
    """
    content = state.contiguous().numpy().tobytes()
    left = int.from_bytes(content[8:12], sys.byteorder, signed=True)
    following = int.from_bytes(content[16:24], sys.byteorder, signed=True)
    return left >= 1 and following >= 0 and left + following <= WORDS + 1


def restore_generators(states: GeneratorStates) -> None:
    """Puts the generators where `generator_states` found them.

    States from a file go through `check_generators` first.
    """
    torch.set_rng_state(states.torch.contiguous())
    if len(states.cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states.cuda)
    words, position, kept, normal = states.numpy
    keys = np.array(words, np.uint32)
    np.random.set_state(("MT19937", keys, position, kept, normal))  # noqa: NPY002
    random.setstate(states.python)
