"""benchmarks.accuracy, trainings and yardstick: the table of runs, and what it is made of."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from benchmarks import accuracy, photos, trainings, wrong_tests, yardstick
from resnet_ffcv import config
from resnet_ffcv.config import (
    AugmentConfig,
    DataConfig,
    LearningRateConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    TrainingConfig,
)
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, seed, top1)` makes the folder of a finished run."""

    def make(
        name: str, seed: int, top1: list[float], *, model: str = "resnet20", data: str = "cifar10",
        protocol: str = "center", images: tuple[int, int] = (50_000, 10_000),
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        recipe = TrainConfig(
            data=DataConfig(train=f"data/{data}/train.beton"),
            model=ModelConfig(model),
            training=TrainingConfig(seed=seed),
            run=RunConfig(folder=str(folder)),
        )
        (folder / "config.yaml").write_text(config.to_yaml(recipe))
        environment: dict[str, Any] = {"device": "a processor", "commit": "0123456789abcdef-dirty"}
        if seed:
            environment["resumed"] = [{"step": 9, "device": "another", "commit": "f" * 40}]
        (folder / "environment.json").write_text(json.dumps(environment))
        records = [
            {"epoch": number, "train_top1": 50.0, "val_top1": value, "seconds": 90.0,
             "images": images[0], "images_per_s": number * 500.0 + seed}
            for number, value in enumerate(top1, 1)
        ]  # fmt: skip
        (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        result = {
            "top1": top1[-1], "protocol": protocol, "images": images[1], "epochs": len(top1),
            "images_per_s": 1.0, "parameters": 269_722,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def test_runs_of_a_recipe_are_one_row_of_their_final_epochs(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [
        make_run("rn20-0", 0, [30.0, 95.0, 90.0]),
        make_run("rn20-1", 1, [30.0, 40.0, 92.0]),
        make_run("other-0", 0, [70.0], model="timm/resnet18"),
    ]
    table, picture = tmp_path / "table.md", tmp_path / "curves.png"
    found = accuracy.main([*map(str, folders), "--table", str(table), "--picture", str(picture)])
    other, ours = found["rows"]
    assert ours["runs"] == "rn20 (2)"
    assert ours["network"] == "resnet20 A"
    assert ours["top-1"] == f"91.00 +- {math.sqrt(2):.2f} %"  # not 95, the best
    assert (ours["error"], ours["paper's error"]) == ("9.00 %", "8.75 %")
    assert (ours["minutes"], ours["images/s"]) == ("4.5", "1,000")
    assert ours["device"] == "a processor, another"
    assert ours["commit"] == "012345678-dirty, fffffffff"
    assert (other["network"], other["paper's error"], other["top-1"]) == (
        "timm/resnet18", "-", "70.00 %",
    )  # fmt: skip
    lines = table.read_text().splitlines()
    assert [line.count("|") for line in lines] == [len(accuracy.HEADER) + 1] * 4
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("model", "data", "protocol", "error"),
    [
        ("resnet20", "cifar10", "center", "8.75 %"),
        ("resnet20", "cifar100", "center", "-"),
        ("resnet20", "cifar10-jpeg-q75", "center", "-"),
        ("resnet20", "sample", "center", "-"),
        ("resnet18", "imagenet", "ten_crop", "-"),  # of option B, which the paper has not
        ("resnet34", "imagenet", "ten_crop", "24.52 %"),
        ("resnet34", "imagenet", "multiscale", "21.84 %"),
        ("resnet34", "imagenet", "center", "-"),
        ("resnet34", "imagenette-224", "ten_crop", "-"),
    ],
)
def test_the_papers_error_is_of_its_images_network_and_protocol(
    make_run: Callable[..., Path], model: str, data: str, protocol: str, error: str
) -> None:
    whole = (1_281_167, 50_000) if data == "imagenet" else (45_000, 10_000)
    for name, images, expected in (
        ("x-0", whole, error),
        ("y-0", (whole[0] // 2, whole[1]), "-"),  # write_datasets.py --writer.limit=...
        ("z-0", (whole[0], whole[1] // 2), "-"),
    ):
        folder = make_run(name, 0, [90.0], model=model, data=data, protocol=protocol, images=images)
        (row,) = accuracy.main([str(folder)])["rows"]
        assert row["paper's error"] == expected


def test_two_folders_of_one_name_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folders = [make_run("rn20-0", 0, [30.0]), make_run("other/rn20-0", 0, [31.0])]
    with pytest.raises(FailureError, match="another run's folder is called rn20-0, too"):
        accuracy.main([*map(str, folders)])


def test_a_run_that_is_not_finished_is_no_result(make_run: Callable[..., Path]) -> None:
    folder = make_run("rn20-0", 0, [30.0])
    (folder / "result.json").unlink()
    with pytest.raises(FailureError, match="is not finished"):
        accuracy.main([str(folder)])
    with pytest.raises(FailureError, match=r"has no config\.yaml"):
        accuracy.main([str(folder.parent)])


@pytest.mark.parametrize(
    ("name", "content"),
    [("log.jsonl", '{"epoch": 1, '), ("log.jsonl", ""), ("result.json", ""),
     ("environment.json", None), ("config.yaml", "{")],
)  # fmt: skip
def test_a_damaged_run_is_named(
    make_run: Callable[..., Path], name: str, content: str | None
) -> None:
    folder = make_run("rn20-0", 0, [30.0])
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(FailureError, match=f"{folder} is damaged"):
        accuracy.main([str(folder)])


def test_kept_runs_make_the_same_table_and_their_weights_the_same_figure(
    sample_folder: Path, tmp_path: Path
) -> None:
    files = [f"--data.{split}={sample_folder / split}.beton" for split in ("train", "val")]
    run, kept = tmp_path / "rn8-0", tmp_path / "kept" / "rn8-0"
    options = ["--model.name=resnet8", "--training.epochs=1", f"--run.folder={run}"]
    trained = train.main([*files, *options])
    before = accuracy.main([str(run), "--keep", str(kept.parent)])
    again = tmp_path / "again"
    assert accuracy.main([str(kept), "--keep", str(again)]) == before
    for file in kept.iterdir():
        assert (again / "rn8-0" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FailureError, match="cannot be kept"):
        accuracy.main([str(run), "--keep", str(kept / "config.yaml")])
    weights = f"--model.weights={kept / 'weights.safetensors'}"
    tested = train.main(["--run.eval_only=true", weights, files[1]])
    assert tested["top1"] == trained["top1"]


@pytest.mark.parametrize(("theirs", "alike"), [([70.0, 71.0, 72.0], True), ([60.0, 61.0], False)])
def test_means_are_compared_by_the_standard_error(theirs: list[float], alike: bool) -> None:
    found: dict[str, Any] = yardstick.compare([71.0, 72.0, 73.0], theirs)
    variance = 1.0 if alike else 0.5
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 3 + variance / len(theirs)))
    assert found["difference"] == pytest.approx(72.0 - sum(theirs) / len(theirs))
    assert found["alike"] == alike


def test_trainings_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written once; a run is begun, gone on with, or left alone when it is finished."""
    commands: list[list[str]] = []
    monkeypatch.setattr(trainings, "run_script", lambda command: commands.append(list(command)))
    runs, files = tmp_path / "runs", tmp_path / "data"
    asked = ["--data", str(files), "--folder", str(runs), "--only", "rn20-quarter-"]
    with pytest.raises(UsageError, match="has no files yet"):
        trainings.main(asked)
    for seed, there in ((0, ("config.yaml", "result.json")), (1, ("config.yaml",))):
        (runs / f"rn20-quarter-{seed}").mkdir(parents=True)
        for name in there:
            (runs / f"rn20-quarter-{seed}" / name).touch()
    trainings.main([*asked, "--cifar", "images", "--data.num_workers=3"])
    (written, resumed) = commands
    assert written[0] == "write_datasets.py"
    assert f"--output.folder={files / 'cifar10-jpeg-q75'}" in written
    assert resumed == [
        "train.py",
        f"--run.resume={runs / 'rn20-quarter-1'}",
        "--data.num_workers=3",
    ]
    (files / "cifar10-jpeg-q75").mkdir(parents=True)
    (files / "cifar10-jpeg-q75" / "val.beton.json").touch()
    commands.clear()
    trainings.main([*asked[:4], "--only", "rn20-45k-quarter-1", "--data.num_workers=3"])
    ((program, *arguments),) = commands
    given = {"--data.split=5000", "--training.iterations=16000", "--training.seed=1"}
    assert program == "train.py"
    assert {*given, "--data.num_workers=3", "rn_configs/rn20.yaml"} <= set(arguments)
    with pytest.raises(UsageError, match="the runs are rn20-quarter-0, "):
        trainings.main(["--only", "rn9"])


@pytest.mark.parametrize(("key", "error"), [("no.key", UsageError), ("data.train", FailureError)])
def test_a_training_that_fails_says_how(tmp_path: Path, key: str, error: type) -> None:
    with pytest.raises(error, match=r"train\.py ended with exit code"):
        trainings.run_script(["train.py", f"--{key}={tmp_path / 'missing'}"])


def test_the_wrong_tests_want_weights_that_see_a_part_of_the_image(tmp_path: Path) -> None:
    def run(ratio: float, *more: str) -> None:
        model = build_model("resnet8", 10)
        half = torch.full((3, 1, 1), 0.5)
        normalize = {"mean": half, "std": half}
        facts = {"spec": model.spec, "classes": ["x"] * 10, "normalize": normalize}
        view = {"resolution": 32, "center_ratio": ratio, "filter": "triangle"}
        torch.save({**facts, "model": model.state_dict(), "view": view}, tmp_path / "last")
        wrong_tests.main(["--weights", str(tmp_path / "last"), "--val", "no.beton", *more])

    with pytest.raises(UsageError, match="sees whole images: their ten crops are all alike"):
        run(1.0)
    with pytest.raises(UsageError, match="--sides: the network sees 32 pixels at once"):
        run(0.875, "--sides", "32,31")
    with pytest.raises(FailureError, match="no file no"):
        run(0.875, "--sides", "32,33")


def test_the_tests_of_weights_want_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "resnet8.pth"
    torch.save(build_model("resnet8", 10).state_dict(), weights)
    with pytest.raises(FailureError, match=f"{weights} is no checkpoint of train.py"):
        wrong_tests.main(["--weights", str(weights), "--val", "val.beton"])
    with pytest.raises(UsageError, match="--sides: invalid sides value: '32,no'"):
        wrong_tests.main(["--weights", str(weights), "--val", "val.beton", "--sides", "32,no"])


def test_a_folder_that_is_no_folder_of_classes_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=f"{folder} has no folders of images, one a class"):
            photos.open_classes(folder)


def test_the_yardstick_compares_runs_of_one_recipe(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardstick, "check_recipe", lambda _: None)
    monkeypatch.setattr(yardstick, "build_loaders", lambda *_: None)
    monkeypatch.setattr(yardstick, "train", lambda _, seed, *__: 80.0 + seed)
    monkeypatch.setattr(yardstick, "read_manifest", lambda _: SimpleNamespace(mean=[0.5] * 3))
    runs = [make_run(f"rn20-{seed}", seed, [top1]) for seed, top1 in enumerate((81.0, 82.0))]
    others = [make_run(f"rn8-{seed}", seed, [70.0], model="resnet8") for seed in (0, 1)]

    def compare(*ours: Path) -> Any:
        given = ["--imagenette", "none", "--folder", str(tmp_path / "theirs"), "--ours"]
        return yardstick.main([*given, *map(str, ours)])

    for _ in range(2):  # trained, and as it was kept
        assert compare(*runs)["difference"] == 1.0
    with pytest.raises(UsageError, match="two runs or more, each of another seed"):
        compare(runs[0], others[0])
    with pytest.raises(UsageError, match="more than one recipe"):
        compare(runs[0], others[1])
    with pytest.raises(FailureError, match=r"0\.json is of another recipe"):
        compare(*others)


def test_the_yardstick_trains_one_recipe_alone() -> None:
    def check(*paths: str) -> None:
        layers = [layer for path in paths for layer in config.read_yaml(path)]
        yardstick.check_recipe(config.build(TrainConfig, layers))

    check("docs/runs/yardstick-ours-1/config.yaml")
    check("rn_configs/imagenette.yaml")
    with pytest.raises(UsageError, match=r"imagenette\.yaml, which has"):
        check("rn_configs/imagenette_fast.yaml")
    with pytest.raises(UsageError, match=r"imagenette\.yaml, which has"):
        check("docs/runs/rn20-quarter-0/config.yaml")


def test_the_yardstick_learns(tmp_path: Path) -> None:
    """Its loop tells bright images from dark ones."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for name, low in (("dark", 0), ("light", 155)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(low, low + 100, (40, 44, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    recipe = TrainConfig(
        data=DataConfig(
            resolution=32, least_side=36, most_side=48, center_ratio=0.8, batch_size=8, crop="scale"
        ),
        model=ModelConfig("resnet8"),
        augment=AugmentConfig(pca=0.1),
        training=TrainingConfig(precision="fp32"),
        lr=LearningRateConfig(schedule="constant", base=0.05),
    )
    loaders = yardstick.build_loaders(recipe, tmp_path, [0.5, 0.5, 0.5])
    assert [len(loader.dataset) for loader in loaders] == [48, 12]
    assert yardstick.train(recipe, 0, loaders) == 100.0
