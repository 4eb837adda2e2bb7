"""How images are shown to weights that do not say it themselves."""

import math
from typing import Any

import torch
from timm.models import PretrainedCfg, create_model, get_pretrained_cfg

from resnet_ffcv.models.resnet import is_cifar_model, timm_architecture

# torchvision's and timm's constants for ImageNet, of pixels from 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TORCHVISION = {"resolution": 224, "center_ratio": 0.875, "filter": "triangle"}
# akamaster/pytorch_resnet_cifar10, trainer.py:88; also with ImageNet's constants.
AKAMASTER = {"resolution": 32, "center_ratio": 1.0, "filter": "triangle"}


def conventional_view(name: str) -> dict[str, Any]:
    """What stands for the facts of a checkpoint, for weights of a network that `build_model` makes.

    Returns:
        "convention": whose it is; "view": resolution in pixels, center_ratio and filter, by the
        names of the section `data`; "normalize": mean and std (3, 1, 1), of pixels from 0 to 1. Of
        timm/NAME they are timm's own of that name, as its validate.py has them; of a name without a
        tag, of its default weights.

    Raises:
        UsageError: no such network.
    """
    if not name.startswith("timm/"):
        cifar = is_cifar_model(name)
        return {
            "convention": "akamaster's" if cifar else "torchvision's",
            "view": AKAMASTER if cifar else TORCHVISION,
            "normalize": _per_channel(IMAGENET_MEAN, IMAGENET_STD),
        }
    architecture = timm_architecture(name)
    timms: Any = get_pretrained_cfg(architecture)
    if timms is None:  # a name from before, for which timm makes another's network
        with torch.device("meta"):
            timms = PretrainedCfg(**create_model(architecture).pretrained_cfg)
    crop, side = timms.crop_mode, (timms.test_input_size or timms.input_size)[1]
    crop_pct = timms.test_crop_pct or timms.crop_pct
    return {
        "convention": "timm's" if crop == "center" else f"timm's (but for its crop, {crop}),",
        "view": {
            "resolution": side,
            "center_ratio": min(1.0, side / math.floor(side / crop_pct)),  # timm rounds down
            "filter": "triangle" if timms.interpolation == "bilinear" else "cubic",
        },
        "normalize": _per_channel(timms.mean, timms.std),
    }


def _per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, torch.Tensor]:
    return {"mean": torch.tensor(mean).view(3, 1, 1), "std": torch.tensor(std).view(3, 1, 1)}
