"""Weights that exist: our checkpoints, torchvision's and timm's state dicts, safetensors.

Nothing that is read here can run code: torch.load with `weights_only`, or safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_ffcv.errors import FailureError

# What wrappers and other codebases put around the names: DataParallel, torch.compile.
PREFIXES = ("module.", "_orig_mod.")
# akamaster/pytorch_resnet_cifar10 (resnet.py:96) calls the classifier `linear`.
RENAMED = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
SHOWN = 3  # names in an error


def read_weights(path: str | Path) -> dict[str, Any]:
    """A file of weights as {"model": state dict, ...}, tensors on the CPU.

    A checkpoint of train.py also has "spec", "classes", "normalize", "view" and more; other files
    have "model" alone, with names as in our networks.

    Raises:
        FailureError: no such file, no weights in it, or a pickle of more than tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FailureError(f"no weights file {path}") from error
    except Exception as error:  # torch.load and safetensors raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FailureError(
            f"{path} cannot be read as weights (a checkpoint of train.py, a state dict of tensors "
            f"or safetensors): {reason}"
        ) from error
    if not isinstance(content, Mapping):
        raise FailureError(f"{path} holds no weights but a {type(content).__name__}")
    if "spec" in content and "model" in content:
        return dict(content)
    for wrapper in ("state_dict", "model"):
        content = content.get(wrapper, content)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise FailureError(f"{path} holds no state dict of tensors")
    return {"model": {_own_name(name): value for name, value in content.items()}}


def _own_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return RENAMED.get(name, name)


def load_weights(model: nn.Module, path: str | Path, *, head: str = "keep") -> None:
    """Puts the weights of a file into `model`, from `build_model`.

    Args:
        head: "keep" takes the file's classifier; "new" leaves the model's, whatever the file's
            number of classes.

    Raises:
        FailureError: the file cannot be read, records another model, or its names or shapes are not
            the model's. The model is unchanged then.
    """
    weights = read_weights(path)
    skipped = classifier_names(model) if head == "new" else set()
    if "spec" in weights:
        _check_spec(weights["spec"], model.spec, path, num_classes=head == "keep")  # type: ignore[arg-type]
    given = {name: value for name, value in weights["model"].items() if name not in skipped}
    wanted = {name: value for name, value in model.state_dict().items() if name not in skipped}
    # Files from before PyTorch 0.4.1 have no counters of batches, which nothing here reads.
    counters = {
        name for name in wanted.keys() - given.keys() if name.endswith("num_batches_tracked")
    }
    _check_names(given, wanted, counters, path)
    model.load_state_dict(given, strict=False)


def classifier_names(model: nn.Module) -> set[str]:
    """The names of the classifier's parameters: `fc` in ours, what timm says in timm's."""
    config = getattr(model, "default_cfg", None) or {}
    classifiers = config.get("classifier", "fc")
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    names = model.state_dict()
    return {name for name in names if name.rpartition(".")[0] in classifiers}


def _check_spec(
    given: Mapping[str, Any], wanted: Mapping[str, Any], path: str | Path, *, num_classes: bool
) -> None:
    for key in ("name", "shortcut", "stride_in", *(("num_classes",) if num_classes else ())):
        if given.get(key) != wanted[key]:
            hint = "; model.pretrained_head=new takes all but the classifier"
            raise FailureError(
                f"{path} holds a model with {key} {given.get(key)}, this one has {wanted[key]}"
                + (hint if key == "num_classes" else "")
            )


def _check_names(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: set[str], path: str | Path
) -> None:
    problems = {
        "missing": [name for name in wanted if name not in given and name not in optional],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
    }
    found = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise FailureError(f"{path} does not fit the model: {'; '.join(found)}")
