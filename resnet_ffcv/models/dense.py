"""A network applied to every place of a larger image at once (He et al. 2015, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ffcv.errors import UsageError


class FullyConvolutional(nn.Module):
    """The network with its mean over all places made a mean over windows, its classifier a 1x1.

    (n, 3, h, w) -> logits (n, classes, h', w'): of the windows of `pool` x `pool` places of the
    last features, at each place where one fits.
    """

    def __init__(self, model: nn.Module, pool: int) -> None:
        super().__init__()
        self.model, self.pool = model, pool

    def forward(self, x: Tensor) -> Tensor:
        features = F.avg_pool2d(self.model.forward_features(x), self.pool, stride=1)  # type: ignore[operator]
        classifier = self.model.get_classifier()  # type: ignore[operator]
        return F.conv2d(features, classifier.weight[:, :, None, None], classifier.bias)


def as_fully_convolutional(
    model: nn.Module, resolution: int, device: torch.device
) -> FullyConvolutional:
    """The fully convolutional form of a network, of ours or timm's, trained at a resolution.

    Its windows are as large as the features of an image of `resolution` pixels a side: 7x7 for 224
    in ResNets.

    Raises:
        UsageError: the network has none: of an image of that resolution it says another thing.
    """
    model.eval()
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, resolution, resolution, generator=noise).to(device)
    try:
        with torch.inference_mode():
            dense = FullyConvolutional(model, model.forward_features(image).shape[-1])  # type: ignore[operator]
            expected, found = model(image).float(), dense(image).float()
        if found.shape == (*expected.shape, 1, 1):
            difference = (found[:, :, 0, 0] - expected).abs().max()
            if difference <= 1e-3 * (1 + expected.abs().max()):
                return dense
    except Exception as error:  # of networks that have no such parts; each has its own
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = "its classifier is no linear layer on the mean of its features"
    raise UsageError(
        f"test.protocol=multiscale is for ResNets and their like; this network has no fully "
        f"convolutional form ({reason})"
    )
