"""The networks: ours, timm's, and the weights they start from."""

from resnet_ffcv.models.conventions import IMAGENET_MEAN, IMAGENET_STD, conventional_view
from resnet_ffcv.models.dense import as_fully_convolutional
from resnet_ffcv.models.resnet import build_model
from resnet_ffcv.models.weights import load_weights, read_weights

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "as_fully_convolutional",
    "build_model",
    "conventional_view",
    "load_weights",
    "read_weights",
]
