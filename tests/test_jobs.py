"""train.py's other jobs: evaluation alone, the classes of a picture, weights from elsewhere."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import train
from benchmarks import wrong_tests
from resnet_ffcv import data, jobs
from resnet_ffcv.config import TrainConfig, TrainingConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model, read_weights


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


def evaluate(weights: Path | str, val: Path, *arguments: str) -> dict[str, Any]:
    common = ["--run.eval_only=true", "--data.num_workers=1", "--training.precision=fp32"]
    return train.main([*common, f"--model.weights={weights}", f"--data.val={val}", *arguments])


def change_checkpoint(finished: dict[str, Any], path: Path, **changes: Any) -> Path:
    checkpoint = torch.load(f"{finished['run']}/checkpoints/last", weights_only=True)
    torch.save({**checkpoint, **changes}, path)
    return path


def test_a_normalisation_that_is_given_is_taken_before_the_checkpoints(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    val = sample_folder / "val.beton"
    imagenet = {
        "mean": torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        "std": torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    }
    expected = evaluate(change_checkpoint(finished, tmp_path / "x", normalize=imagenet), val)
    weights = f"{finished['run']}/checkpoints/last"
    result = evaluate(weights, val, "--data.normalize=imagenet")
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert result["loss"] != pytest.approx(finished["loss"], rel=1e-3)


def test_a_checkpoints_own_normalisation_needs_no_training_file(
    sample_folder: Path, finished: dict[str, Any]
) -> None:
    weights, val = f"{finished['run']}/checkpoints/last", sample_folder / "val.beton"
    gone = "--data.train=gone.beton"
    result = evaluate(weights, val, gone, "--data.normalize=mean")  # as its recipe says
    assert result["loss"] == pytest.approx(finished["loss"], rel=1e-6)
    with pytest.raises(FailureError, match=r"no file gone\.beton"):
        evaluate(weights, val, gone, "--data.normalize=mean_std")


def test_safetensors_that_say_their_network_alone_are_seen_as_foreign(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = torch.load(f"{finished['run']}/checkpoints/last", weights_only=True)
    metadata = {"resnet_ffcv": json.dumps({"spec": checkpoint["spec"]})}
    path = tmp_path / "x.safetensors"
    state = {name: value.contiguous() for name, value in checkpoint["model"].items()}
    safetensors.torch.save_file(state, path, metadata)
    # Nothing of data.train, which is not there.
    result = evaluate(path, sample_folder / "val.beton", "--data.train=no.beton")
    torch.save(checkpoint["model"], tmp_path / "x.pt")
    names = ("--model.name=resnet14", "--model.shortcut=B")
    expected = evaluate(tmp_path / "x.pt", sample_folder / "val.beton", *names)
    assert result["loss"] == expected["loss"]


def test_what_does_not_fit_a_checkpoint_is_one_line(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    val, last = sample_folder / "val.beton", f"{finished['run']}/checkpoints/last"
    means = {"mean": torch.zeros(3, 24, 24), "std": torch.ones(3, 1, 1)}
    path = change_checkpoint(finished, tmp_path / "means", normalize=means)
    with pytest.raises(UsageError, match=r"mean of 24 x 24 pixels .*, data\.resolution is 48"):
        evaluate(path, val, "--data.resolution=48")
    evaluate(path, val)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    for arguments in (["--run.eval_only=true"], ["--predict", str(tmp_path / "x.png")]):
        with pytest.raises(UsageError, match="pretrained_head=new is to train with"):
            train.main([f"--model.weights={last}", "--model.pretrained_head=new", *arguments])
    state = build_model("resnet14", 3, shortcut="B").state_dict()
    torch.save(state, tmp_path / "three.pt")
    with pytest.raises(FailureError, match="the classes are those of data") as caught:
        evaluate(tmp_path / "three.pt", val, "--model.name=resnet14", "--model.shortcut=B")
    assert "pretrained_head" not in str(caught.value)


def test_a_classifier_of_other_classes_is_no_beginning(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = torch.load(f"{finished['run']}/checkpoints/last", weights_only=True)
    path = change_checkpoint(finished, tmp_path / "x", classes=checkpoint["classes"][::-1])
    spec = [f"--model.{name}={checkpoint['spec'][name]}" for name in ("name", "shortcut")]
    arguments = [
        *(f"--data.{split}={sample_folder / split}.beton" for split in ("train", "val")), *spec,
        "--training.epochs=1", f"--run.folder={tmp_path / 'run'}", "--data.num_workers=1",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"is of other classes than data\.train; model\.pr"):
        train.main([*arguments, f"--model.weights={path}"])
    with pytest.raises(UsageError, match=r"is for model\.weights, which is not given"):
        train.main([*arguments, "--model.pretrained_head=new"])
    assert not (tmp_path / "run").exists()
    result = train.main([*arguments, f"--model.weights={path}", "--model.pretrained_head=new"])
    assert result["images"] == 64
    run = f"--run.resume={tmp_path / 'run'}"
    path.unlink()  # a run that goes on wants them no more
    assert train.main([run])["top1"] == result["top1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predict=x.png", "--export=x.onnx"], "--predict and --export are different"),
        (["--run.eval_only=true", "--run.resume=x"], r"run\.eval_only and run\.resume are"),
    ],
)
def test_one_thing_is_done_at_a_time(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train.main(words)


@pytest.mark.parametrize(
    ("words", "task", "unused"),
    [
        (["--predict=x.png"], "--predict", ["test.protocol=ten_crop"]),
        (["--export=x.onnx"], "--export", ["data.crop=center", "lr.base=0.1"]),
        (["--run.eval_only=true"], "run.eval_only", ["training.epochs=3"]),
    ],
)
def test_a_key_that_a_task_does_not_use_is_refused(
    words: list[str], task: str, unused: list[str]
) -> None:
    names = ", ".join(key.partition("=")[0] for key in unused)
    with pytest.raises(UsageError, match=f"{task} makes no use of {names}; leave that out"):
        train.main([*words, "--model.weights=no", *(f"--{key}" for key in unused)])
    with pytest.raises(FailureError, match="weights no cannot be read"):  # of a recipe they are not
        train.main([*words, "--model.weights=no", "--config", "rn_configs/rn18_fast.yaml"])


def test_a_loss_that_is_not_finite_is_no_result(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    model = torch.load(f"{finished['run']}/checkpoints/last", weights_only=True)["model"]
    model["fc.bias"][3] = float("nan")
    path = change_checkpoint(finished, tmp_path / "x", model=model)
    with pytest.raises(FailureError, match="is not finite"):
        evaluate(path, sample_folder / "val.beton")


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


def test_weights_of_a_cifar_network_from_elsewhere_see_the_whole_image(
    sample_folder: Path, tmp_path: Path
) -> None:
    """As akamaster/pytorch_resnet_cifar10 tests them: ImageNet's constants, 32 x 32 pixels."""
    torch.manual_seed(0)
    model = build_model("resnet20", 10)
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    model.eval()
    names = {"fc.weight": "linear.weight", "fc.bias": "linear.bias"}
    state = {f"module.{names.get(name, name)}": v for name, v in model.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    val = sample_folder / "val.beton"
    with np.load("sample_data/cifar10-sample.npz") as arrays:
        chosen = np.sort(np.random.default_rng(0).permutation(500)[:64])
        images, labels = arrays["images"][3500:][chosen], arrays["labels"][3500:][chosen]
    inputs = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        logits = model(torch.from_numpy(inputs).permute(0, 3, 1, 2).float())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()).item()
    for recipe in ([], ["--config", "rn_configs/rn20.yaml", "--data.normalize=imagenet"]):
        result = train.main(
            [
                *recipe,
                "--run.eval_only=true",
                f"--model.weights={tmp_path / 'resnet20.th'}",
                f"--data.val={val}",
                "--training.precision=fp32",
            ]
        )
        assert result["loss"] == pytest.approx(loss, rel=1e-4)
        assert result["top1"] == pytest.approx(
            100 * (logits.argmax(1).numpy() == labels).mean(), abs=1e-6
        )


def test_wordnet_ids_are_read_as_words() -> None:
    assert data.readable_name("n01440764").startswith("tench")
    assert data.readable_name("airplane") == "airplane"


def test_a_picture_of_the_first_batch_has_short_names_and_whole_ones() -> None:
    assert data.short_name("n01440764") == "tench"
    assert data.short_name("cars, red") == "cars, red"


def test_a_new_head_takes_weights_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "hundred.pth"
    torch.save(build_model("resnet14", 100, shortcut="B").state_dict(), path)
    config = TrainConfig()
    chosen = {"name": "resnet14", "shortcut": "B", "weights": str(path), "pretrained_head": "new"}
    config = jobs.replace(config, model=jobs.replace(config.model, **chosen))
    model = jobs.build_network(config, 10, torch.device("cpu"))
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
        (["--test.sides=32,48,32"], UsageError, r"test\.sides names a short side twice"),
        (["--model.name=resnet21"], UsageError, "no such model"),
        (
            ["--model.name=timm/vit_tiny_patch16_224"],
            UsageError,
            r"vit_tiny_patch16_224 does not take 2 x 32 x 32 pixels \(.*224.*data\.resolution$",
        ),
        *(
            (
                [
                    "--model.name=timm/vit_tiny_patch16_224",
                    "--data.crop=center",
                    "--data.resolution=224",
                    f"--{key}=192",
                ],
                UsageError,
                rf"vit_tiny_patch16_224 does not take 2 x 192 x 192 pixels \(.*{key}$",
            )
            for key in ("data.start_resolution", "test.resolution")
        ),
        (  # 64 = 3 * 21 + 1, and a ResNet-18 has one place at the end of 32 x 32 pixels
            ["--model.name=resnet18", "--data.batch_size=21"],
            UsageError,
            r"1 x 32 x 32 pixels .*data\.batch_size, for batches of more$",
        ),
        (["--training.nesterov=true", "--training.momentum=0"], UsageError, "(?i)nesterov"),
        (["--training.optimizer=adamw", "--training.momentum=1"], UsageError, "momentum|adamw"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    sample_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"--data.{name}={sample_folder / name}.beton" for name in ("train", "val")]
    with pytest.raises(error, match=message) as caught:
        train.main([*files, *arguments])
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()  # nothing is left of a run that cannot begin


@pytest.mark.parametrize("images", [1, 2, 300])
def test_the_trial_of_a_model_changes_nothing(images: int) -> None:
    torch.manual_seed(1)
    model = build_model("resnet8", 10).eval()
    model.fc = torch.nn.Sequential(torch.nn.Dropout(), model.fc)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = torch.rand(3, generator=torch.Generator().set_state(torch.get_rng_state()))
    jobs._check_fit(TrainConfig(), model, torch.device("cpu"), smallest_batch=images)
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_folders_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/tmp/[/a] [red]x :smile: " + "long" * 30)
    images = SimpleNamespace(indices=range(3))
    trainer = SimpleNamespace(
        config=TrainConfig(),
        data=SimpleNamespace(train=images, val=images),
        model=torch.nn.Linear(2, 2),
        device="cpu",
        step=0,
        total_steps=5,
        run=SimpleNamespace(folder=folder),
    )
    jobs._announce(trainer)
    assert f"; {folder}\n" in capsys.readouterr().err


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FailureError, match="finds no CUDA device"):
        jobs.pick_device(TrainingConfig(device="cuda"))
    assert jobs.pick_device(TrainingConfig()) == torch.device("cpu")


@pytest.mark.parametrize(
    ("has", "asked", "expected"),
    [("avx512_bf16", "auto", "bf16"), ("avx512_f", "auto", "fp32"), ("avx2", "bf16", "bf16")],
)
def test_bf16_is_taken_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has: str,
    asked: str,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True, "amx_bf16": False})
    config = TrainConfig(training=TrainingConfig(precision=asked))
    picked = jobs.pick_precision(config, torch.device("cpu"))
    assert picked.training.precision == expected
    assert ("emulated" in capsys.readouterr().err) == (has == "avx2")


def test_weights_that_are_not_numbers_name_no_class(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    state = read_weights(f"{finished['run']}/checkpoints/last")["model"]
    state["fc.bias"].fill_(math.nan)
    weights = change_checkpoint(finished, tmp_path / "last", model=state)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(FailureError, match="is not finite: weights of a run that diverged"):
        train.main([f"--model.weights={weights}", "--predict", str(tmp_path / "x.png")])


def test_weights_of_other_classes_are_not_tested(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    others = [f"class {number}" for number in range(10)]
    weights, val = change_checkpoint(finished, tmp_path / "x", classes=others), "val.beton"
    with pytest.raises(FailureError, match=f"x and .*{val} have different classes"):
        evaluate(weights, sample_folder / val)
    with pytest.raises(FailureError, match=f"x and .*{val} have different classes"):
        wrong_tests.main(["--weights", str(weights), "--val", str(sample_folder / val)])


def test_an_export_below_a_file_is_one_line(finished: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    weights = f"--model.weights={finished['run']}/checkpoints/last"
    with pytest.raises(UsageError, match=r"x\.safetensors: there is no folder .*file; make it"):
        train.main([weights, "--export", str(tmp_path / "file" / "x.safetensors")])


@pytest.mark.parametrize(
    "view",
    [{"val": "other.beton"}, {"train": "other.beton"}, {"num_workers": 10**9}, {"resolution": 5000},
     {"center_ratio": 0}, {"filter": "nearest"}],
)  # fmt: skip
def test_a_checkpoint_sets_nothing_but_how_images_are_shown(
    sample_folder: Path, finished: dict[str, Any], tmp_path: Path, view: dict[str, Any]
) -> None:
    saved = torch.load(f"{finished['run']}/checkpoints/last", weights_only=True)["view"]
    weights = change_checkpoint(finished, tmp_path / "x", view={**saved, **view})
    with pytest.raises(FailureError, match=r"x: view"):
        evaluate(weights, sample_folder / "val.beton")


@pytest.mark.parametrize("name", ["resnet1208", "resnet99998", "x" * 10**6, "timm/hf_hub:a/b"])
def test_a_network_has_a_largest_depth_and_a_short_name(
    finished: dict[str, Any], tmp_path: Path, name: str
) -> None:
    spec = read_weights(f"{finished['run']}/checkpoints/last")["spec"]
    weights = change_checkpoint(finished, tmp_path / "x", spec={**spec, "name": name})
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises((UsageError, FailureError), match="name") as caught:
        train.main([f"--model.weights={weights}", "--predict", str(tmp_path / "x.png")])
    assert len(str(caught.value)) < 600
