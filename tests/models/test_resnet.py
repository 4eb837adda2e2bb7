"""The networks: parameter counts, shapes, start values, choices, and what is refused."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_ffcv.errors import UsageError
from resnet_ffcv.models import build_model
from resnet_ffcv.models.resnet import BlurredConv2d

# He et al. 2015, table 6, exactly; torchvision's published counts; A and C by arithmetic.
PARAMETERS = [
    ("resnet20", 10, None, 269_722),
    ("resnet32", 10, None, 464_154),
    ("resnet44", 10, None, 658_586),
    ("resnet56", 10, None, 853_018),
    ("resnet110", 10, None, 1_727_962),
    ("resnet18", 1000, None, 11_689_512),
    ("resnet34", 1000, None, 21_797_672),
    ("resnet50", 1000, None, 25_557_032),
    ("resnet101", 1000, None, 44_549_160),
    ("resnet152", 1000, None, 60_192_808),
    ("resnet18", 1000, "A", 11_515_688),
    ("resnet34", 1000, "A", 21_623_848),
    ("resnet34", 1000, "C", 22_716_840),
]


def build_without_memory(name: str, num_classes: int, **options: str | None) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "classes", "shortcut", "expected"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(
    name: str, classes: int, shortcut: str | None, expected: int
) -> None:
    model = build_without_memory(name, classes, shortcut=shortcut)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_names_and_shapes_are_torchvisions(depth: int, stride_in: str) -> None:
    model = build_without_memory(f"resnet{depth}", 1000, stride_in=stride_in)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    shapes = [(name, value.shape) for name, value in model.state_dict().items()]
    assert sorted(shapes) == sorted((name, v.shape) for name, v in theirs.state_dict().items())


@pytest.mark.parametrize("depth", [8, 14, 20, 62, 1202])
def test_any_network_of_6n_plus_2_layers(depth: int) -> None:
    model = build_without_memory(f"resnet{depth}", 10)
    # Weighted layers: the convolutions and the classifier; shortcut A has none.
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (33, 47)])
def test_every_choice_runs_at_odd_sizes(
    name: str, shortcut: str, stride_in: str, size: tuple[int, int]
) -> None:
    model = build_without_memory(name, 7, shortcut=shortcut, stride_in=stride_in)
    assert model(torch.zeros(2, 3, *size, device="meta")).shape == (2, 7)


def shortcuts(model: nn.Module) -> list[nn.Module | None]:
    layers = [getattr(model, f"layer{n}") for n in range(1, 5) if hasattr(model, f"layer{n}")]
    return [block.downsample for layer in layers for block in layer]


def test_shortcut_a_takes_every_other_pixel_between_zero_channels() -> None:
    model = build_model("resnet8", 10)
    first, second, _ = shortcuts(model)
    assert first is None
    assert second is not None
    x = torch.randn(2, 16, 33, 31)
    expected = torch.zeros(2, 32, 17, 16)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(second(x), expected)
    assert not list(second.parameters())


def test_shortcut_a_of_the_first_bottleneck_adds_channels_only() -> None:
    first = shortcuts(build_model("resnet50", 10, shortcut="A"))[0]
    assert first is not None
    x = torch.randn(2, 64, 5, 5)
    expected = torch.zeros(2, 256, 5, 5)
    expected[:, 96:160] = x
    assert torch.equal(first(x), expected)


@pytest.mark.parametrize(
    ("shortcut", "expected"), [("A", [2, 3, 4]), ("B", [2, 3, 4]), ("C", [1, 1, 2, 2, 3, 3, 4, 4])]
)
def test_where_shortcuts_are_not_the_identity(shortcut: str, expected: list[int]) -> None:
    model = build_without_memory("resnet18", 10, shortcut=shortcut)
    changed = [n // 2 + 1 for n, path in enumerate(shortcuts(model)) if path is not None]
    assert changed == expected


@pytest.mark.parametrize(
    ("stride_in", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1)), (None, (1, 2, 1))]
)
def test_where_a_bottleneck_has_its_stride(
    stride_in: str | None, strides: tuple[int, int, int]
) -> None:
    model = build_without_memory("resnet50", 10, stride_in=stride_in)
    block = model.layer2[0]  # type: ignore[index]
    found = tuple(getattr(block, f"conv{n}").stride[0] for n in (1, 2, 3))
    assert found == strides


def test_convolutions_start_normal_with_fan_out() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", 10)
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        weight = convolution.weight
        expected = math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))
        scaled = weight.detach() / expected
        # Four standard errors of a normal sample's mean and deviation.
        assert abs(scaled.mean()) < 4 / math.sqrt(weight.numel())
        assert abs(scaled.std() - 1) < 4 / math.sqrt(2 * weight.numel())
    largest = model.layer4[1].conv2.weight.detach()  # type: ignore[index,union-attr]
    kurtosis = (largest**4).mean() / (largest**2).mean() ** 2
    assert kurtosis == pytest.approx(3, abs=0.05)  # a uniform one has 1.8


def test_norms_start_at_one_and_the_paper_has_no_zero_start() -> None:
    norms = [m for m in build_model("resnet20", 10).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 19
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_is_of_each_blocks_last_norm(name: str, last: str) -> None:
    model = build_model(name, 10, zero_init=True)
    for place, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            is_last = place.startswith("layer") and place.endswith(last)
            assert (module.weight == (0 if is_last else 1)).all(), place


def test_blocks_with_zero_init_start_as_their_shortcuts() -> None:
    x = torch.rand(2, 16, 8, 8)  # not below 0, as the stem's output
    assert torch.equal(build_model("resnet20", 10, zero_init=True).layer1(x), x)  # type: ignore[operator]
    assert not torch.equal(build_model("resnet20", 10).layer1(x), x)  # type: ignore[operator]


def test_norms_are_before_the_activations() -> None:
    block = build_model("resnet8", 10).layer1[0].eval()  # type: ignore[index]
    seen: dict[str, Tensor] = {}
    for name in ("bn1", "conv2", "bn2"):
        getattr(block, name).register_forward_hook(
            lambda _, given, out, name=name: seen.update(
                {f"{name}.in": given[0].clone(), name: out.clone()}
            )
        )
    x = torch.randn(2, 16, 8, 8)
    y = block(x)
    # The in-place ReLU changes a norm's output only after the hooks have copied it.
    assert torch.equal(seen["conv2.in"], seen["bn1"].relu())
    assert torch.equal(y, (seen["bn2"] + x).relu())


@pytest.mark.parametrize(
    ("name", "options", "shortcut", "stride_in"),
    [
        ("resnet20", {}, "A", None),
        ("resnet18", {}, "B", None),
        ("resnet50", {}, "B", "3x3"),
        ("resnet50", {"shortcut": "C", "stride_in": "1x1"}, "C", "1x1"),
        ("resnet34", {"stride_in": "1x1"}, "B", None),  # the shared base of the recipes says so
        ("resnet20", {"shortcut": "B"}, "B", None),
        ("timm/mobilenetv3_small_050", {}, None, None),
    ],
)
def test_the_spec_is_what_was_built(
    name: str, options: dict[str, str], shortcut: str | None, stride_in: str | None
) -> None:
    model = build_without_memory(name, 12, **options)
    expected = {"name": name, "num_classes": 12, "shortcut": shortcut, "stride_in": stride_in}
    assert model.spec == {**expected, "blurpool": False}


@pytest.mark.parametrize(("name", "strided"), [("resnet18", 6), ("resnet50", 6), ("resnet20", 2)])
def test_blurpool_changes_no_parameter_and_blurs_each_stride(name: str, strided: int) -> None:
    plain, blurred = (build_model(name, 10, blurpool=blurpool) for blurpool in (False, True))
    names = [(n, v.shape) for n, v in plain.state_dict().items()]
    assert [(n, v.shape) for n, v in blurred.state_dict().items()] == names
    blurred.load_state_dict(plain.state_dict())
    assert blurred.spec == {**plain.spec, "blurpool": True}
    found = [module for module in blurred.modules() if isinstance(module, BlurredConv2d)]
    assert len(found) == strided  # two for each of three stages, or one where the shortcut is A
    images = torch.randn(2, 3, 64, 64)
    assert plain.eval()(images).shape == blurred.eval()(images).shape
    assert not torch.allclose(plain(images), blurred(images))


def test_a_blurred_convolution_is_a_convolution_of_the_blurred() -> None:
    convolution = BlurredConv2d(5, 7, 3, 2, 1, bias=False)
    images = torch.randn(2, 5, 9, 12, dtype=torch.float64)
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    around = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect").numpy()
    blurred = sum(
        (taps[y] * taps[x]).item() * around[:, :, y : y + 9, x : x + 12]
        for y in range(3)
        for x in range(3)
    )
    weight = convolution.weight.double()
    expected = nn.functional.conv2d(torch.from_numpy(blurred), weight, None, 2, 1)
    torch.testing.assert_close(convolution.double()(images), expected)


def test_timms_networks_have_the_classes_asked_for() -> None:
    model = build_model("timm/mobilenetv3_small_050", 12).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 12)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet19", {}, "the nearest is resnet18"),
        ("resnet21", {}, "the nearest is resnet20"),
        ("resnet100", {}, "the nearest is resnet101"),
        ("resnet2", {}, "the nearest is resnet8"),  # n = 0
        ("resnet", {}, "no such model; the nearest is resnet20"),
        ("resnt32", {}, "the nearest is resnet32"),
        ("resnet-20", {}, "the nearest is resnet20"),
        ("ResNet50", {}, "the nearest is resnet50"),
        ("resnet020", {}, "the nearest is resnet20"),
        ("resnet50d", {}, "the nearest is timm/resnet50d"),
        ("", {}, "no such model; the nearest is resnet20"),
        ("timm/resnet50x", {}, "the nearest is timm/resnet50"),
        ("timm/", {}, "timm has no such model"),
        ("resnet20", {"shortcut": "D"}, "model.shortcut=D: it is A, B or C"),
        ("resnet50", {"stride_in": "2x2"}, "model.stride_in=2x2: it is 1x1 or 3x3"),
        ("resnet18", {"stride_in": "2x2"}, "model.stride_in=2x2: it is 1x1 or 3x3"),
        ("timm/resnet18", {"shortcut": "A"}, "for our ResNets only"),
        ("timm/resnet18", {"stride_in": "1x1"}, "for our ResNets only"),
        ("timm/resnet18", {"zero_init": True}, "for our ResNets only"),
        ("timm/resnet18", {"blurpool": True}, "for our ResNets only"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, options: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_without_memory(name, 10, **options)
    message = str(caught.value)
    assert expected in message
    assert (name if "no such" in expected else "") in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet18"])
@pytest.mark.parametrize("classes", [0, -1])
def test_a_model_without_classes_is_refused(name: str, classes: int) -> None:
    with pytest.raises(UsageError, match=f"at least one class, not {classes}"):
        build_without_memory(name, classes)
