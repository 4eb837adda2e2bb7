"""Weights that exist: our checkpoints, torchvision's and timm's state dicts, safetensors."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta
from torch import Tensor, nn

from resnet_ffcv.config import DataConfig, check_values
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models.reading import check_tensors, read_content
from resnet_ffcv.schema import brief, convert, shorten

State = Mapping[str, Tensor]

# What wrappers put before the names: DataParallel, torch.compile.
PREFIXES = ("module.", "_orig_mod.")
# akamaster/pytorch_resnet_cifar10 (resnet.py:96) calls the classifier `linear`.
RENAMED = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
SPEC = ("name", "num_classes", "shortcut", "stride_in", "blurpool")  # what build_model records
VIEW = ("resolution", "center_ratio", "filter")  # what data.view records
NEW_HEAD = "model.pretrained_head=new takes all but the classifier"
OTHER_NETWORK = "model.name and model.shortcut say which network they are of"
SHOWN = 3  # names in an error


class Spec(TypedDict):
    """Which network, as `build_model` takes it."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_./-]{1,100}\Z")]
    num_classes: Annotated[int, Meta(ge=1, le=1_000_000)]
    shortcut: Literal["A", "B", "C"] | None
    stride_in: Literal["1x1", "3x3"] | None
    blurpool: NotRequired[bool]  # it came later than the others


class NormalizeState(TypedDict):
    """Of pixels from 0 to 1: (3, 1, 1), or (3, height, width)."""

    mean: Tensor
    std: Tensor


class Facts(TypedDict):
    """What a file says of the weights that it holds."""

    spec: Spec
    classes: NotRequired[list[Annotated[str, Meta(max_length=1000)]]]
    normalize: NotRequired[NormalizeState]
    view: NotRequired[dict[str, Any]]


def read_weights(path: str | Path) -> dict[str, Any]:
    """A file of weights as {"model": state dict, ...}, tensors on the CPU, our networks' names.

    A checkpoint of train.py also has "spec", "classes", "normalize" and "view", and safetensors
    where `--export` wrote them; other files have "model" alone.

    Raises:
        FailureError: no such file, no weights in it, facts that are not what they should be, or a
            pickle of more than tensors and plain values.
    """
    path = Path(path)
    return find_weights(read_content(path), path)


def find_weights(content: Any, path: Path) -> dict[str, Any]:
    """What `read_weights` returns, of a file's content.

    Raises:
        FailureError: as `read_weights`.
    """
    state = _find_state(content)
    if state is None:
        raise FailureError(
            f"{path} holds no weights: no state dict of tensors, alone or as `model` or "
            "`state_dict`"
        )
    check_tensors(state.items(), str(path))
    if "spec" not in content:
        return {"model": {RENAMED.get(name, name): value for name, value in state.items()}}
    facts = convert(content, Facts, str(path))
    facts["spec"] = {"blurpool": False, **facts["spec"]}
    _check_classes(facts, state, path)
    if "normalize" in facts:
        facts["normalize"] = _check_normalize(facts["normalize"], path)
    if "view" in facts:
        facts["view"] = _check_view(facts["view"], path)
    return {**facts, "model": state}


def _check_classes(facts: Facts, state: State, path: Path) -> None:
    count = facts["spec"]["num_classes"]
    if not any(count in value.shape for value in state.values()):
        raise FailureError(f"{path}: spec.num_classes: no tensor is of {count:,} classes")
    if len(facts.get("classes", range(count))) != count:
        raise FailureError(f"{path}: classes: {len(facts['classes']):,} names of {count:,} classes")


def _check_normalize(given: NormalizeState, path: Path) -> NormalizeState:
    """In float32."""
    mean, std = given["mean"], given["std"]
    check_tensors((("mean", mean), ("std", std)), f"{path}: normalize")
    sizes = ((3, 1, 1), tuple(mean.shape))
    if mean.ndim != 3 or mean.shape[0] != 3 or tuple(std.shape) not in sizes:
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise FailureError(f"{path}: normalize: mean and std must be (3, 1, 1), got {shapes}")
    mean, std = mean.float(), std.float()
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise FailureError(f"{path}: normalize: mean and std must be finite, and std above 0")
    return {"mean": mean, "std": std}


def _check_view(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of `data` that a file may set, no others: none that names a path."""
    if given.keys() != set(VIEW):
        names = brief(sorted(given))
        raise FailureError(
            f"{path}: view must have {', '.join(VIEW)} and nothing else, got {names}"
        )
    try:
        return check_values(DataConfig, given, f"{path}: view")
    except UsageError as error:
        raise FailureError(str(error)) from error


def _find_state(content: Any) -> dict[str, Tensor] | None:
    """The state dict that a file's content is or holds, without wrappers' prefixes."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping):
            content = content.get(key, content)
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return None
    return {_without_prefixes(name): value for name, value in content.items()}


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def load_weights(
    model: nn.Module, path: str | Path, *, head: str = "keep", hint: str = NEW_HEAD
) -> None:
    """Puts the weights of a file into `model`, from `build_model`.

    Args:
        head: "keep" takes the file's classifier; "new" leaves the model's, whatever the file's
            number of classes.
        hint: what the error says where nothing but the classifier does not fit.

    Raises:
        UsageError: no such `head`.
        FailureError: the file cannot be read, records another model, or its names or shapes are not
            the model's. The model is unchanged then.
    """
    if head not in ("keep", "new"):
        raise UsageError(f"model.pretrained_head={head}: it is keep or new")
    weights = read_weights(path)
    if "spec" in weights:
        _check_spec(weights["spec"], model.spec, path, head, hint)  # type: ignore[arg-type]
    classifier = classifier_names(model)
    whole = weights["model"], model.state_dict()
    body = _without(whole[0], classifier), _without(whole[1], classifier)
    given, wanted = body if head == "new" else whole
    problems = find_differences(given, wanted)
    if problems:
        problems.append(OTHER_NETWORK if find_differences(*body) else hint)
        raise FailureError(f"{path} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(given, strict=False)


def classifier_names(model: nn.Module) -> set[str]:
    """The names of the classifier's parameters: `fc` in ours, what timm says in timm's."""
    config = getattr(model, "default_cfg", None) or {}
    named = config.get("classifier", "fc")
    parts = (named,) if isinstance(named, str) else tuple(named)
    return {
        name for name in model.state_dict() if any(name.startswith(f"{part}.") for part in parts)
    }


def _without(state: State, names: Collection[str]) -> State:
    return {name: value for name, value in state.items() if name not in names}


def _check_spec(
    given: Mapping[str, Any], wanted: Mapping[str, Any], path: str | Path, head: str, hint: str
) -> None:
    for key in SPEC:
        if given[key] != wanted[key] and not (key == "num_classes" and head == "new"):
            advice = f"; {hint}" if key == "num_classes" else ""
            raise FailureError(
                f"{path} holds a model with {key} {given[key]}, this one has {wanted[key]}{advice}"
            )


def find_differences(given: State, wanted: State) -> list[str]:
    """What of `given` does not fit `wanted`, a phrase for each kind."""
    kinds = {
        # Files from before PyTorch 0.4.1 have no counters of batches, which nothing here reads.
        "missing": [
            name
            for name in wanted
            if name not in given and not name.endswith("num_batches_tracked")
        ],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
    }
    return [
        f"{len(names)} {kind} ({', '.join(map(shorten, names[:SHOWN]))}"
        f"{', ...' if len(names) > SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]
