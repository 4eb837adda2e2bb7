"""The networks: ours, timm's, and the weights they start from."""

from resnet_ffcv.models.dense import FullyConvolutional, as_fully_convolutional
from resnet_ffcv.models.resnet import ResNet, build_model, is_cifar_model
from resnet_ffcv.models.weights import load_weights, read_weights

__all__ = [
    "FullyConvolutional",
    "ResNet",
    "as_fully_convolutional",
    "build_model",
    "is_cifar_model",
    "load_weights",
    "read_weights",
]
