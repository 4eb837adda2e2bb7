"""Exported files, read by the programs they are for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import train
from resnet_ffcv import export
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model, read_weights


def settled(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, 7, **options)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


def checkpoint_of(model: nn.Module, path: Path, side: int = 32) -> Path:
    """A checkpoint as train.py leaves it, of a model that sees `side` pixels."""
    torch.save(
        {
            "model": model.state_dict(),
            "spec": model.spec,
            "classes": [f"class {number}" for number in range(7)],
            "normalize": {
                "mean": torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
                "std": torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1),
            },
            "view": {"resolution": side, "center_ratio": 0.875, "filter": "triangle"},
        },
        path,
    )
    return path


def run_export(weights: Path, target: Path) -> dict[str, Any]:
    return train.main([f"--model.weights={weights}", "--export", str(target)])


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet18", {"shortcut": "A"}), ("resnet50", {}), ("resnet34", {})],
)
@torch.inference_mode()
def test_torchvision_loads_the_state_dict_and_says_the_same(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    ours = settled(name, **options)
    result = run_export(checkpoint_of(ours, tmp_path / "last"), tmp_path / "x.pth")
    assert f"torchvision.models.{name}(num_classes=7)" in result["note"]
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    theirs.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    images = torch.randn(2, 3, 96, 80)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("resnet18", {"shortcut": "C"}, "model.shortcut=C"),
        ("resnet50", {"stride_in": "1x1"}, "model.stride_in=1x1"),
        ("resnet18", {"blurpool": True}, "model.blurpool=true"),
    ],
)
def test_what_torchvision_does_not_have_is_refused(
    name: str, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    weights = checkpoint_of(build_model(name, 7, **options), tmp_path / "last")
    with pytest.raises(UsageError, match=named):
        run_export(weights, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(("name", "side"), [("resnet20", 32), ("timm/resnet18", 64)])
def test_onnxruntime_says_what_the_network_says_of_uint8_images(
    name: str, side: int, tmp_path: Path
) -> None:
    model = settled(name)
    result = run_export(checkpoint_of(model, tmp_path / "last", side), tmp_path / "x.onnx")
    assert result["bytes"] == (tmp_path / "x.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["resnet_ffcv"])
    assert facts == {
        key: read_weights(tmp_path / "last")[key] for key in ("spec", "classes", "view")
    }
    for count in (1, 5):
        pixels = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        (found,) = session.run(["logits"], {"images": pixels})
        mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
        inputs = torch.from_numpy((pixels / 255 - mean) / std).float().permute(0, 3, 1, 2)
        with torch.inference_mode():
            expected = model(inputs).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_safetensors_hold_all_that_a_checkpoint_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint_of(settled("resnet20", shortcut="B"), tmp_path / "last")
    result = run_export(weights, tmp_path / "x.safetensors")
    assert "32 of 37 pixels" in capsys.readouterr().err
    run_export(weights, tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    assert result["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert result["std"] == pytest.approx([0.2, 0.3, 0.25])
    expected, found = (read_weights(path) for path in (weights, tmp_path / "x.safetensors"))
    for name in ("spec", "classes", "view"):
        assert found[name] == expected[name]
    for part in ("model", "normalize"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][n], expected[part][n]) for n in found[part])
    arguments = [f"--model.weights={weights}", "--export", str(tmp_path / "z.safetensors")]
    train.main([*arguments, "--test.resolution=40"])
    assert "40 of 46 pixels" in capsys.readouterr().err
    assert read_weights(tmp_path / "z.safetensors")["view"]["resolution"] == 40


@pytest.mark.parametrize("ending", ["last", "x.pth", "x.safetensors"])
def test_a_bit_of_weights_that_is_flipped_is_found(tmp_path: Path, ending: str) -> None:
    path, model = tmp_path / ending, settled("resnet20")
    weights = checkpoint_of(model, tmp_path / "last")
    if ending != "last":
        run_export(weights, path)
    content = bytearray(path.read_bytes())
    place = content.index(model.state_dict()["layer2.0.bn1.running_mean"].numpy().tobytes())
    content[place + 43] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(FailureError, match=f"{ending} are damaged: .* from (its|their) checksum"):
        read_weights(path)


def test_weights_without_checksums_are_read(tmp_path: Path) -> None:
    state = {"a": torch.ones(9)}
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(state, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    for name in ("legacy.pth", "unchecked.pth", "x.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["model"]["a"], state["a"])


def test_a_network_that_onnxruntime_takes_for_another_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    weights = checkpoint_of(settled("resnet20"), tmp_path / "last")
    with pytest.raises(FailureError, match="onnxruntime's logits differ by"):
        run_export(weights, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_an_ending_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in one of \.safetensors, \.pth, \.pt, \.onnx"):
        run_export(tmp_path / "no such weights", tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".onnx"])
def test_weights_that_are_not_numbers_are_not_exported(ending: str, tmp_path: Path) -> None:
    model = settled("resnet20")
    model.fc.bias.data[3] = torch.inf  # type: ignore[union-attr]
    weights = checkpoint_of(model, tmp_path / "last")
    with pytest.raises(FailureError, match="last holds numbers that are not finite"):
        run_export(weights, tmp_path / f"x{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_folder_that_is_not_there_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*missing; make it first"):
        run_export(tmp_path / "no such weights", tmp_path / "missing" / "x.onnx")
