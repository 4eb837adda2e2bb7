"""The views that stand for what weights from elsewhere do not say, against what their authors' own
code says of them."""

import pytest
import timm
import timm.data
import torch
import torchvision
from torchvision.transforms import InterpolationMode

from resnet_ffcv.errors import UsageError
from resnet_ffcv.models import conventional_view

FILTERS = {InterpolationMode.BILINEAR: "triangle", "bilinear": "triangle", "bicubic": "cubic"}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_weights_are_seen_as_torchvision_shows_images(name: str) -> None:
    transform = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    found = conventional_view(name)
    view, normalize = found["view"], found["normalize"]
    assert [view["resolution"]] == transform.crop_size
    assert [round(view["resolution"] / view["center_ratio"])] == transform.resize_size
    assert view["filter"] == FILTERS[transform.interpolation]
    assert normalize["mean"].flatten().tolist() == pytest.approx(transform.mean)
    assert normalize["std"].flatten().tolist() == pytest.approx(transform.std)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet18.tv_in1k", "resnet50.a1_in1k", "vit_tiny_patch16_224"),
        *("inception_v3", "tf_efficientnet_b0", "coatnet_rmlp_2_rw_384.sw_in12k_ft_in1k"),
        *("tv_resnet34", "resnet50_mlp.untrained"),
    ],
)
def test_timms_weights_are_seen_as_timm_says(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    said = timm.data.resolve_model_data_config(model, use_test_size=True)  # as validate.py
    found = conventional_view(f"timm/{name}")
    assert ("its crop, " in found["convention"]) == (said["crop_mode"] != "center")
    view, normalize = found["view"], found["normalize"]
    assert (view["resolution"],) * 2 == said["input_size"][1:]
    shown = timm.data.create_transform(**said)  # Resize to this, of the center's side
    if said["crop_mode"] == "center":
        assert round(view["resolution"] / view["center_ratio"]) == shown.transforms[0].size
    assert view["filter"] == FILTERS[said["interpolation"]]
    assert normalize["mean"].flatten().tolist() == pytest.approx(said["mean"])
    assert normalize["std"].flatten().tolist() == pytest.approx(said["std"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnt50", "resnet50"), ("resnet18.tv_in", "resnet18.tv_in1k"), ("", "")],
)
def test_a_name_that_timm_does_not_have_is_refused(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"timm has no such model; the nearest is timm/{nearest}"):
        conventional_view(f"timm/{name}")
