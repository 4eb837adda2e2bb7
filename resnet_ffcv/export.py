"""A trained network in files that other programs read."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_ffcv.data import Normalize
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.files import write_whole
from resnet_ffcv.models.reading import CHECKSUM, FACTS, digest
from resnet_ffcv.models.resnet import Block, ResNet, ZeroShortcut

TOLERANCE = 1e-3  # between our logits and the exported network's, over the largest of them


class Deployed(nn.Module):
    """The network with what stands before it: uint8 images (n, height, width, 3) -> logits."""

    def __init__(self, model: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(images))
        return logits


def write_safetensors(path: Path, model: nn.Module, normalize: Normalize, facts: Any) -> str:
    """Our networks' names, and all that a test needs: `read_weights` reads it."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    normal = {name: value.tolist() for name, value in normalize.state_dict().items()}
    known = {"spec": model.spec, "normalize": normal, **facts}
    known[CHECKSUM] = digest(state, known)
    content = safetensors.torch.save(state, {FACTS: json.dumps(known)})
    write_whole(path, lambda file: file.write(content))
    return "train.py reads it, with --model.weights"


def write_state_dict(path: Path, model: nn.Module, normalize: Normalize, facts: Any) -> str:  # noqa: ARG001
    """What torchvision's network of the same name loads, strictly; of others, their own names."""
    state, spec = model.state_dict(), model.spec
    loads = "our networks and akin ones load it"
    if isinstance(model, ResNet) and model.stages == 4:
        state = torchvision_state(model)
        name, classes = spec["name"], spec["num_classes"]  # type: ignore[index]
        loads = f"torchvision.models.{name}(num_classes={classes}) loads it"
    elif not isinstance(model, ResNet):
        loads = "timm.create_model loads it"
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, lambda file: file.write(content.getbuffer()))
    return loads


def torchvision_state(model: ResNet) -> dict[str, Tensor]:
    """The state dict of torchvision's ResNet that computes the same.

    Shortcut A becomes the projection of B that does what it does: it picks channels.

    Raises:
        UsageError: torchvision has none that does.
    """
    spec, state = model.spec, model.state_dict()
    differs = {
        "model.shortcut=C": spec["shortcut"] == "C",
        "model.stride_in=1x1": spec["stride_in"] == "1x1",
        "model.blurpool=true": spec["blurpool"],
    }
    if any(differs.values()):
        reason = next(name for name, it_does in differs.items() if it_does)
        raise UsageError(f"torchvision's ResNets have no {reason}; export .safetensors or .onnx")
    for name, block in model.named_modules():
        if isinstance(block, Block) and isinstance(block.downsample, ZeroShortcut):
            before, after = block.downsample.padding[4:]
            norm = block.last_norm
            width = norm.num_features - before - after
            picks = norm.weight.new_zeros(norm.num_features, width, 1, 1)
            picks[range(before, before + width), range(width)] = 1.0
            ones, zeros = (
                fill(norm.weight.detach()) for fill in (torch.ones_like, torch.zeros_like)
            )
            # BatchNorm divides by the square root of variance + eps: 1 in all.
            projection = {
                "0.weight": picks,
                "1.weight": ones,
                "1.bias": zeros,
                "1.running_mean": zeros.clone(),
                "1.running_var": ones - norm.eps,
                "1.num_batches_tracked": norm.num_batches_tracked,
            }
            state |= {f"{name}.downsample.{key}": value for key, value in projection.items()}
    return state


def write_onnx(path: Path, model: nn.Module, normalize: Normalize, facts: Any) -> str:
    """Input `images`, uint8 (n, height, width, 3), as they are decoded; output `logits`.

    Its metadata say which network it is, and `facts`, as JSON.

    Raises:
        FailureError: onnxruntime says another thing of random images than we do.
    """
    import numpy as np  # all three take seconds to import
    import onnxruntime

    side = facts["view"]["resolution"]
    deployed = Deployed(model, normalize).cpu().eval().to(memory_format=torch.contiguous_format)
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    images = torch.from_numpy(pixels)
    program = torch.onnx.export(
        deployed, (images[:2],), dynamo=True, verbose=False, input_names=["images"],
        output_names=["logits"], dynamic_shapes={"images": {0: "n"}},
    )  # fmt: skip
    proto: Any = program.model_proto  # type: ignore[union-attr]
    proto.metadata_props.add(key=FACTS, value=json.dumps({"spec": model.spec, **facts}))
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = deployed(images).numpy()
    (found,) = session.run(["logits"], {"images": pixels})
    difference = float(np.abs(found - expected).max() / (1 + np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise FailureError(f"{path} was not written: onnxruntime's logits differ by {difference:g}")
    write_whole(path, lambda file: file.write(content))
    return f"onnxruntime's logits differ from ours by {difference:.1g} of the largest at most"


Writer = Callable[[Path, nn.Module, Normalize, dict[str, Any]], str]
WRITERS: dict[str, Writer] = {
    ".safetensors": write_safetensors,
    ".pth": write_state_dict,
    ".pt": write_state_dict,
    ".onnx": write_onnx,
}


def find_writer(path: Path) -> Writer:
    """What writes a file of this ending.

    Raises:
        UsageError: nothing does, or there is no folder for it.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"--export={path}: the name ends in one of {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--export={path}: there is no folder {path.parent}; make it first")
    return WRITERS[path.suffix]
