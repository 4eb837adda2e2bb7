"""A run's checkpoint: what it holds, how it is read, checked and put back.

torch and NumPy believe sizes and positions that are given to them, and would read and write past
their memory. A checkpoint may come from somebody else, so nothing of it gets there unchecked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from resnet_ffcv.errors import FailureError
from resnet_ffcv.generators import GeneratorStates, check_generators
from resnet_ffcv.models.reading import check_tensors, read_content
from resnet_ffcv.models.weights import NormalizeState, Spec, find_differences, find_weights
from resnet_ffcv.schema import Count, Sha256, convert

ANOTHER = "put a whole one there, or start a new run, with another run.folder"

# Bounded, so that sums and products of what a file says stay finite.
Figure = Annotated[float, Meta(ge=-1e100, le=1e100)]
Seconds = Annotated[float, Meta(ge=0, le=1e100)]
Rate = Annotated[float, Meta(ge=0, le=1e100)]


class Figures(TypedDict):
    """One epoch's figures, a line of log.jsonl."""

    epoch: Count
    step: Count
    lr: Rate
    train_loss: Figure
    train_top1: Figure
    val_loss: Figure
    val_top1: Figure
    val_top5: NotRequired[Figure | None]
    images: NotRequired[Count]
    damaged: NotRequired[Count]
    images_per_s: Rate
    train_seconds: Seconds
    wait_seconds: Seconds
    seconds: Seconds


@dataclass(frozen=True)
class MeterState:
    """Of testing.Meter: what an epoch that is under way has counted."""

    sums: Tensor
    bad_step: Tensor
    seen: Count
    classes: Count


class ScalerState(TypedDict, total=False):
    """Of torch.amp.GradScaler: all of these, or none where it is off."""

    scale: Annotated[float, Meta(gt=0, le=1e38)]
    growth_factor: Annotated[float, Meta(gt=1, le=1e6)]
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)]
    growth_interval: Annotated[int, Meta(ge=1, lt=2**31)]
    _growth_tracker: Annotated[int, Meta(ge=0, lt=2**31)]


@dataclass(frozen=True)
class OptimizerGroup:
    """Of a group's keys those that a recipe does not say; no flag of a file switches kernels."""

    lr: Rate
    params: list[Count]


@dataclass(frozen=True)
class OptimizerState:
    """Of torch.optim.Optimizer."""

    state: dict[Count, dict[str, Tensor]]
    param_groups: list[OptimizerGroup]


@dataclass(frozen=True)
class Checkpoint:
    """What `Trainer.state_dict` returns, as it is read from a file."""

    model: dict[str, Tensor]
    spec: Spec
    classes: list[str]
    normalize: NormalizeState
    view: dict[str, Any]
    dataset: Sha256
    step: Count
    records: list[Figures]
    optimizer: OptimizerState
    scaler: ScalerState
    generators: GeneratorStates
    # These came later than the others.
    trained: dict[str, Tensor] | None = None
    val_dataset: Sha256 | None = None
    meter: MeterState | None = None
    damaged: dict[Count, Annotated[str, Meta(max_length=1000)]] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of train.py, tensors on the CPU; nothing in it can run code.

    Raises:
        FailureError: it cannot be read, or a part of it is missing or not what it should be.
    """
    try:
        content = read_content(path)
    except FailureError as error:
        cause = error.__cause__  # that of anything but an OSError says nothing to a user
        fault = f"cannot be read: {cause.strerror}" if isinstance(cause, OSError) else "is damaged"
        raise FailureError(f"{path}, the run's checkpoint, {fault}; {ANOTHER}") from error
    where = str(path)
    weights = find_weights(content, path)
    checkpoint = convert({**content, **weights}, Checkpoint, where)
    check_tensors((checkpoint.trained or {}).items(), f"{where}: trained")
    check_generators(checkpoint.generators, where)
    if len(checkpoint.scaler) not in (0, len(ScalerState.__annotations__)):
        raise FailureError(f"{where}: scaler: a part of its state is missing")
    if checkpoint.meter:
        _check_meter(checkpoint.meter, where)
    for number, state in checkpoint.optimizer.state.items():
        check_tensors(state.items(), f"{where}: optimizer.state.{number}")
    return checkpoint


def _check_meter(meter: MeterState, where: str) -> None:
    forms = {
        "sums": (meter.sums, torch.float64, (3,)),
        "bad_step": (meter.bad_step, torch.int64, ()),
    }
    for name, (tensor, dtype, shape) in forms.items():
        check_tensors([(name, tensor)], f"{where}: meter")
        if tensor.dtype != dtype or tensor.shape != shape:
            raise FailureError(f"{where}: meter.{name}: must be {dtype} of shape {shape}")
    loss, correct1, correct5 = meter.sums.tolist()
    if not (abs(loss) <= 1e100 and 0 <= correct1 <= correct5 <= meter.seen):
        raise FailureError(f"{where}: meter.sums: no counts of {meter.seen:,} images")


def restore_model(model: nn.Module, state: Mapping[str, Tensor], where: str, key: str) -> None:
    """Puts a checkpoint's weights into a network.

    Raises:
        FailureError: they are of another one; the model is unchanged then.
    """
    problems = find_differences(state, model.state_dict())
    if problems:
        raise FailureError(f"{where}: {key} does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


NUMBERS = {"step", "mu_product"}  # of an optimizer's state: one number, not one for each weight
STATES: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.NAdam: {"step", "mu_product", "exp_avg", "exp_avg_sq"},
}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: OptimizerState, where: str) -> None:
    """Puts a checkpoint's state into an optimizer, which keeps its own options but for `lr`.

    Raises:
        FailureError: the state is of other parameters or another optimizer; it is unchanged then.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group.params for group in saved.param_groups] != [group["params"] for group in groups]:
        raise FailureError(f"{where}: optimizer.param_groups: of another network or recipe")
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    if max(saved.state, default=0) >= len(parameters):
        raise FailureError(f"{where}: optimizer.state: of more than {len(parameters):,} parameters")
    names, state = STATES[type(optimizer)], {}
    for number, given in saved.state.items():
        place = f"{where}: optimizer.state.{number}"
        if given and given.keys() != names:
            raise FailureError(f"{place}: must have {', '.join(sorted(names))}")
        state[number] = {
            name: _as_state(value, name, parameters[number], place) for name, value in given.items()
        }
    for group, other in zip(groups, saved.param_groups, strict=True):
        group["lr"] = other.lr
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _as_state(value: Tensor, name: str, parameter: Tensor, place: str) -> Tensor:
    """A copy, which shares its memory with nothing and lies in it as the parameter does."""
    own = torch.zeros(()) if name in NUMBERS else torch.empty_like(parameter, requires_grad=False)
    if value.shape != own.shape or not value.is_floating_point():
        raise FailureError(
            f"{place}.{name}: must be {own.dtype} of shape {tuple(own.shape)}, got {value.dtype} "
            f"of {tuple(value.shape)}"
        )
    if name in NUMBERS and not 0 <= float(value) < float("inf"):
        raise FailureError(f"{place}.{name}: must be 0 or more, got {float(value):g}")
    return own.copy_(value.detach())
