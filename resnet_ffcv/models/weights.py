"""Weights that exist: our checkpoints, torchvision's and timm's state dicts, safetensors.

Nothing that is read here can run code: torch.load with `weights_only`, or safetensors.
"""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_ffcv.errors import FailureError, UsageError

State = Mapping[str, Tensor]

# What wrappers put before the names: DataParallel, torch.compile.
PREFIXES = ("module.", "_orig_mod.")
# akamaster/pytorch_resnet_cifar10 (resnet.py:96) calls the classifier `linear`.
RENAMED = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
SPEC = ("name", "num_classes", "shortcut", "stride_in", "blurpool")  # what build_model records
FACTS = "resnet_ffcv"  # in safetensors' metadata: as one value, since they are in random order
NEW_HEAD = "model.pretrained_head=new takes all but the classifier"
OTHER_NETWORK = "model.name and model.shortcut say which network they are of"
CHECKSUM = "sha256"  # among the facts: safetensors has no checksum of its own
SHOWN = 3  # names in an error


def read_weights(path: str | Path) -> dict[str, Any]:
    """A file of weights as {"model": state dict, ...}, tensors on the CPU, our networks' names.

    A checkpoint of train.py also has "spec", "classes", "normalize", "view" and more; safetensors
    have those four where `--export` wrote them; other files have "model" alone.

    Raises:
        FailureError: no such file, no weights in it, or a pickle of more than tensors and plain
            values.
    """
    path = Path(path)
    content = _read_file(path)
    state = _find_state(content)
    if state is None:
        raise FailureError(
            f"{path} holds no weights: no state dict of tensors, alone or as `model` or "
            "`state_dict`"
        )
    if "spec" not in content:
        return {"model": {RENAMED.get(name, name): value for name, value in state.items()}}
    spec = content["spec"]
    if isinstance(spec, Mapping):
        spec = {"blurpool": False, **spec}  # it came later than the others
    if not isinstance(spec, Mapping) or not spec.keys() >= set(SPEC):
        raise FailureError(f"{path} says what model it holds, but not its {', '.join(SPEC)}")
    return {**content, "model": state, "spec": spec}


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings(action="ignore"):  # of what is read, or an error just below
            _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except FailureError:
        raise
    except OSError as error:
        reason = error.strerror or error  # safetensors sets no strerror
        raise FailureError(f"weights {path} cannot be read: {reason}") from error
    except Exception as error:  # torch.load and safetensors raise many kinds
        # Not torch's message, which would have the user load it with `weights_only` off.
        raise FailureError(
            f"weights {path} cannot be read: the file is damaged, of another kind than its name "
            "says, or pickles objects that could run code; give NAME.safetensors, or by any other "
            "name a checkpoint of train.py or a state dict, by torch.save(model.state_dict(), FILE)"
        ) from error


def _check_zip(path: Path) -> None:
    """Raises FailureError where a file of torch.save differs from its checksums.

    torch.load does not compare them (torch 2.14). All are 0 where their writer had them turned off,
    by torch.serialization.set_crc32_options.
    """
    if zipfile.is_zipfile(path):  # torch's files from before 1.6 are none
        with zipfile.ZipFile(path) as file:
            has_sums = any(member.CRC for member in file.infolist())
            damaged = file.testzip() if has_sums else None
        if damaged:
            raise FailureError(f"weights {path} are damaged: {damaged} differs from its checksum")


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    facts, state = json.loads(metadata.get(FACTS, "{}")), safetensors.torch.load_file(path)
    checksum = facts.pop(CHECKSUM, None)
    if checksum not in (None, digest(state, facts)):
        raise FailureError(f"weights {path} are damaged: they differ from their checksum")
    if "normalize" in facts:
        facts["normalize"] = {name: torch.tensor(v) for name, v in facts["normalize"].items()}
    return {"model": state, **facts}


def digest(state: State, facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of weights and of what is said of them, as JSON."""
    found = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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
    problems = _differences(given, wanted)
    if problems:
        problems.append(OTHER_NETWORK if _differences(*body) else hint)
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


def _differences(given: State, wanted: State) -> list[str]:
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
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]
