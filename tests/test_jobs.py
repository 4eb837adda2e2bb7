"""train.py's other jobs: evaluation alone, the classes of a picture, weights from elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from resnet_ffcv import data, jobs
from resnet_ffcv.config import TrainConfig, TrainingConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model


@pytest.fixture(scope="module")
def finished(sample_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a short run whose view is not the default one."""
    run = tmp_path_factory.mktemp("jobs") / "run"
    return train.main(
        [
            f"--data.train={sample_folder / 'train.beton'}",
            f"--data.val={sample_folder / 'val.beton'}",
            "--data.crop=center",
            "--data.resolution=24",
            "--data.center_ratio=0.75",
            "--data.normalize=mean",
            "--data.num_workers=1",
            "--model.name=resnet14",
            "--model.shortcut=B",
            "--training.epochs=1",
            "--training.precision=fp32",
            f"--run.folder={run}",
        ]
    )


def test_evaluation_alone_gives_the_accuracy_of_the_run(
    sample_folder: Path, finished: dict[str, Any]
) -> None:
    weights = f"{finished['run']}/checkpoints/last"
    val = sample_folder / "val.beton"
    result = train.main(
        [
            "--run.eval_only=true",
            f"--model.weights={weights}",
            f"--data.val={val}",
            "--data.num_workers=1",
            "--training.precision=fp32",
        ]
    )
    for name in ("top1", "top5", "images", "protocol"):
        assert result[name] == finished[name]
    assert result["loss"] == pytest.approx(finished["loss"], rel=1e-6)
    with pytest.raises(FailureError, match="shortcut"):
        train.main(
            [
                "--run.eval_only=true",
                f"--model.weights={weights}",
                f"--data.val={val}",
                "--model.shortcut=A",
            ]
        )


def test_a_picture_gets_the_likeliest_classes_by_name(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    weights = f"{finished['run']}/checkpoints/last"
    pixels = np.random.default_rng(2).integers(0, 256, (40, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    result = train.main([f"--model.weights={weights}", "--predict", str(tmp_path / "x.png")])

    checkpoint = torch.load(weights, weights_only=True)
    model = build_model("resnet14", 10, shortcut="B")
    model.load_state_dict(checkpoint["model"])
    window = torch.from_numpy(pixels[8:32, 4:28]).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        logits = model.eval()(window[None] - checkpoint["normalize"]["mean"])[0]
    likely = logits.softmax(0).topk(5)
    names = [checkpoint["classes"][place] for place in likely.indices]
    assert result["classes"] == names
    assert result["probabilities"] == pytest.approx(likely.values.tolist(), rel=1e-4)


def test_weights_from_elsewhere_name_imagenets_classes(tmp_path: Path) -> None:
    model = build_model("resnet18", 1000)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    Image.new("RGB", (300, 260), (200, 30, 60)).save(tmp_path / "red.jpg")
    result = train.main(
        [
            f"--model.weights={tmp_path / 'resnet18.pth'}",
            "--model.name=resnet18",
            "--predict",
            str(tmp_path / "red.jpg"),
        ]
    )
    assert len(result["classes"]) == 5
    assert not any(name.startswith("n0") for name in result["classes"])  # words, not WordNet ids


def test_wordnet_ids_are_read_as_words() -> None:
    assert data.readable_name("n01440764").startswith("tench")
    assert data.readable_name("airplane") == "airplane"


def test_a_new_head_takes_weights_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "hundred.pth"
    torch.save(build_model("resnet14", 100, shortcut="B").state_dict(), path)
    config = TrainConfig()
    chosen = {"name": "resnet14", "shortcut": "B", "weights": str(path), "pretrained_head": "new"}
    config = jobs.replace(config, model=jobs.replace(config.model, **chosen))
    model = jobs._build(config, 10, torch.device("cpu"))
    expected = torch.load(path, weights_only=True)["layer3.1.conv2.weight"]
    assert torch.equal(model.state_dict()["layer3.1.conv2.weight"], expected)
    assert model.fc.weight.shape == (10, 64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--run.eval_only=true"], UsageError, r"--model\.weights=FILE"),
        (["--predict", "x.png"], UsageError, r"--model\.weights=FILE"),
        (["--training.precision=fp16", "--training.device=cpu"], UsageError, "needs CUDA"),
        (
            ["--run.eval_only=true", "--model.weights=no.pt"],
            FailureError,
            r"weights no\.pt cannot be read",
        ),
        (["--data.train=no.beton"], FailureError, "write_datasets.py"),
        (["--model.name=resnet21"], UsageError, "no such model"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    sample_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type,
    message: str,
) -> None:
    monkeypatch.chdir(sample_folder.parent)
    files = [f"--data.{name}={sample_folder / name}.beton" for name in ("train", "val")]
    with pytest.raises(error, match=message) as caught:
        train.main([*files, *arguments])
    assert "\n" not in str(caught.value)


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FailureError, match="finds no CUDA device"):
        jobs.pick_device(TrainingConfig(device="cuda"))
    assert jobs.pick_device(TrainingConfig()) == torch.device("cpu")
