"""The fully convolutional form against the plain one, torch's own functions and sliding crops."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ffcv.errors import UsageError
from resnet_ffcv.models import as_fully_convolutional, build_model

CPU = torch.device("cpu")


def settled(name: str, **options: object) -> nn.Module:
    """A network whose BatchNorms have seen images, so that its scores differ."""
    torch.manual_seed(0)
    model = build_model(name, 10, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "resolution", "pool"),
    [("resnet18", 224, 7), ("resnet50", 128, 4), ("resnet20", 32, 8), ("timm/resnet18", 96, 3)],
)
@torch.inference_mode()
def test_it_is_the_plain_network_at_its_resolution(name: str, resolution: int, pool: int) -> None:
    model = settled(name)
    dense = as_fully_convolutional(model, resolution, CPU)
    assert dense.pool == pool
    images = torch.randn(2, 3, resolution, resolution)
    torch.testing.assert_close(dense(images), model(images)[:, :, None, None])


@pytest.mark.parametrize("shape", [(224, 300), (256, 256), (251, 417), (480, 256)])
@torch.inference_mode()
def test_on_larger_images_it_is_the_parts_put_together(shape: tuple[int, int]) -> None:
    model = settled("resnet18")
    images = torch.randn(1, 3, *shape)
    features = images
    for part in (model.conv1, model.bn1, nn.ReLU(), model.maxpool, model.layer1, model.layer2,
                 model.layer3, model.layer4):  # fmt: skip
        features = part(features)
    pooled = F.avg_pool2d(features, 7, stride=1)
    linear = model.get_classifier()(pooled.permute(0, 2, 3, 1))
    expected = linear.softmax(-1).mean((1, 2))
    found = as_fully_convolutional(model, 224, CPU)(images).softmax(1).mean((2, 3))
    torch.testing.assert_close(found, expected)


class Unpadded(nn.Module):
    """Three convolutions without padding, so that what a window shows depends on it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2)
        )
        self.fc = nn.Linear(16, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)))  # type: ignore[no-any-return]


@torch.inference_mode()
def test_it_is_the_plain_network_on_each_of_the_sliding_crops() -> None:
    model, side, stride = Unpadded().eval(), 31, 4
    dense = as_fully_convolutional(model, side, CPU)
    images = torch.randn(2, 3, 47, 63)
    found = dense(images)
    assert found.shape[2:] == (5, 9)
    for y in range(found.shape[2]):
        for x in range(found.shape[3]):
            crop = images[:, :, y * stride :, x * stride :][:, :, :side, :side]
            torch.testing.assert_close(found[:, :, y, x], model(crop))


@pytest.mark.parametrize(
    "name", ["timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050", "timm/vgg11"]
)
def test_a_network_that_has_no_such_form_is_refused(name: str) -> None:
    model = build_model(name, 10)
    with pytest.raises(UsageError, match="has no fully convolutional form"):
        as_fully_convolutional(model, 224, CPU)
