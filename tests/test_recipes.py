"""Every file in rn_configs/ is a valid recipe with a head that says how to run it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_ffcv import config
from resnet_ffcv.config import AugmentConfig, TrainConfig
from resnet_ffcv.data import short_sides
from resnet_ffcv.models import build_model
from resnet_ffcv.schedules import learning_rate, resolution

FOLDER = Path(__file__).parent.parent / "rn_configs"
RECIPES = sorted(p for p in FOLDER.glob("*.yaml") if not p.name.startswith("base_"))


def test_the_recipes_of_the_paper_are_all_there() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"rn20", "rn32", "rn44", "rn56", "rn110", "rn18", "rn34", "rn50", "sample"}
    assert names >= {"rn34_autoaugment", "rn32_autoaugment", "rn18_fast", "rn50_fast"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_builds_and_says_how_to_run_it(path: Path) -> None:
    recipe = config.build(TrainConfig, config.read_yaml(path))
    folder = Path(recipe.data.train).parent.name
    classes = {"imagenet": 1000, "cifar100": 100}.get(folder, 10)
    chosen = recipe.model
    build_model(
        chosen.name, classes, shortcut=chosen.shortcut, stride_in=chosen.stride_in,
        zero_init=chosen.zero_init, blurpool=chosen.blurpool,
    )  # fmt: skip
    head = path.read_text().split("\nbase:")[0]
    assert f"python train.py --config rn_configs/{path.name}" in head
    assert "python write_datasets.py" in head
    assert "Meant for:" in head
    assert re.search(r"\d %[ .;,]|docs/results|Ours: not run yet", head), "no figure to expect"


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_recipes_have_the_papers_schedule(depth: int) -> None:
    recipe = config.build(TrainConfig, config.read_yaml(FOLDER / f"rn{depth}.yaml"))
    assert (recipe.training.iterations, recipe.data.batch_size) == (64_000, 128)
    assert (recipe.training.weight_decay, recipe.training.momentum) == (1e-4, 0.9)

    def rate(step: int) -> float:
        return learning_rate(
            recipe.lr, step, total_steps=64_000, steps_per_epoch=391, in_epochs=False, losses=[]
        )

    knots = [rate(step) for step in (1_000, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert knots == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rate(0) == pytest.approx(0.01 if depth == 110 else 0.1)


@pytest.mark.parametrize("name", ["rn20", "rn32", "rn44", "rn56", "rn110", "rn20_cifar100"])
def test_cifar_recipes_have_the_papers_images(name: str) -> None:
    recipe = config.build(TrainConfig, config.read_yaml(FOLDER / f"{name}.yaml"))
    data = recipe.data
    assert (data.crop, data.padding, data.padding_fill, data.flip) == ("pad", 4, "black", True)
    assert (data.normalize, data.resolution, data.center_ratio) == ("pixel_mean", 32, 1.0)
    assert (recipe.model.shortcut, recipe.test.protocol, recipe.data.split) == ("A", "center", 0)
    assert recipe.augment == AugmentConfig()


def test_the_autoaugment_recipes_are_the_origins() -> None:
    small, large = (
        config.build(TrainConfig, config.read_yaml(FOLDER / f"{name}_autoaugment.yaml"))
        for name in ("rn32", "rn34")
    )
    assert small.augment == AugmentConfig(policy="autoaugment_cifar10", policy_first=True)
    assert (small.data.padding_fill, small.data.normalize) == ("mean", "mean_std")
    assert large.augment == AugmentConfig(policy="autoaugment_imagenet")
    for recipe, epochs, drops in ((small, 180, (82, 123)), (large, 120, (30, 60))):
        assert recipe.training.epochs == epochs
        rates = [
            learning_rate(
                recipe.lr, 7 * epoch, total_steps=7 * epochs, steps_per_epoch=7, in_epochs=True,
                losses=[],
            )
            for epoch in range(epochs)
        ]  # fmt: skip
        changed = [epoch for epoch in range(1, epochs) if rates[epoch] != rates[epoch - 1]]
        assert (rates[0], *changed) == (0.1, *drops)


@pytest.mark.parametrize(("name", "base"), [("rn18", 0.5), ("rn50", 0.425), ("imagenette", 0.1)])
def test_the_fast_recipes_are_after_ffcvs(name: str, base: float) -> None:
    recipe = config.build(TrainConfig, config.read_yaml(FOLDER / f"{name}_fast.yaml"))
    assert recipe.model.blurpool
    assert recipe.training.label_smoothing == 0.1
    assert recipe.training.ema > 0
    assert not recipe.training.decay_all
    assert (recipe.lr.schedule, recipe.lr.base, recipe.lr.final) == ("triangular", base, 0.0)
    assert recipe.test.name == "center+flip"
    for protocol in ("ten_crop", "multiscale"):  # the flag of the centre is in nobody's way
        other = replace(recipe.test, protocol=protocol)
        assert other.name == protocol
        assert min(short_sides(recipe.data, other)) == recipe.test.resolution


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_imagenet_recipes_have_the_papers_optimisation(depth: int) -> None:
    recipe = config.build(TrainConfig, config.read_yaml(FOLDER / f"rn{depth}.yaml"))
    assert (recipe.training.iterations, recipe.data.batch_size) == (600_000, 256)
    assert (recipe.lr.schedule, recipe.lr.base, recipe.lr.gamma) == ("plateau", 0.1, 0.1)
    assert (recipe.model.stride_in, recipe.data.center_ratio) == ("1x1", 0.875)
    window = (recipe.data.crop, recipe.data.least_side, recipe.data.most_side)
    assert (*window, recipe.augment.pca) == ("scale", 256, 480, 0.1)
    assert recipe.test.protocol == "ten_crop"


def test_the_fast_recipes_stretch() -> None:
    for epochs, first, last in ((16, 12, 14), (88, 66, 76)):  # of those that grow
        recipe = config.build(
            TrainConfig,
            [
                *config.read_yaml(FOLDER / "rn18_fast.yaml"),
                ("command line", {"training.epochs": epochs}),
            ],
        )
        data = recipe.data
        sides = [
            resolution(data.start_resolution or 0, data.resolution, data.growth, epoch / epochs)
            for epoch in range(epochs)
        ]
        assert sides == sorted(sides)
        assert set(sides[:first]) == {160}
        assert set(sides[last:]) == {192}
        assert set(sides[first:last]) <= {160, 176, 192}
        assert 176 in sides
