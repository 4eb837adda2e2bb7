"""Strictness of the configuration: what is wrong is named, and nothing is converted silently."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv import config
from resnet_ffcv.config import TrainConfig, WriteConfig
from resnet_ffcv.errors import UsageError

RECIPES = Path(__file__).parent.parent / "rn_configs"


def build(**values: object) -> TrainConfig:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return config.build(TrainConfig, [("command line", named)])


def test_defaults_are_the_dataclasses_own() -> None:
    assert config.build(TrainConfig, []) == TrainConfig()
    assert config.build(WriteConfig, []) == WriteConfig()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("training.epochs", "7", 7),
        ("training.compile", "False", False),
        ("training.compile", True, True),
        ("lr.base", "5e-5", 5e-5),
        ("lr.base", 1, 1.0),
        ("lr.milestones", "0.1,0.9", (0.1, 0.9)),
        ("lr.milestones", [0.25], (0.25,)),
        ("model.shortcut", None, None),
        ("model.shortcut", "null", None),
        ("data.num_workers", "3", 3),
    ],
)
def test_values_are_read_in_their_type(name: str, value: object, expected: object) -> None:
    section, key = name.split(".")
    found = getattr(getattr(build(**{name: value}), section), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.epochs", 2.9),
        ("training.epochs", "2.9"),
        ("training.epochs", "1e3"),
        ("training.epochs", 0),
        ("training.epochs", True),
        ("training.compile", "yes"),
        ("training.compile", 1),
        ("lr.base", "nan"),
        ("lr.base", "inf"),
        ("lr.base", -0.1),
        ("lr.base", "fast"),
        ("lr.milestones", "0.5,2"),
        ("lr.cycles", 101),
        ("data.min_area", 0),
        ("lr.milestones", 0.5),
        ("training.optimizer", "SGD"),
        ("data.train", 5),
        ("data.train", None),
        ("data.train", ""),
        ("run.resume", ""),
        ("model.shortcut", "D"),
        ("training.seed", "99999999999999999999"),
        ("training.momentum", 1),
        ("data.padding", 99999),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        build(**{name: value})
    message = str(caught.value)
    assert message.startswith("command line: ")
    assert " is not " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("training.epoch", "training.epochs"),
        ("traning.epochs", "training.epochs"),
        ("lr.bas", "lr.base"),
        ("model.batch_size", "data.batch_size or test.batch_size?"),
        ("batch_size", "data.batch_size or test.batch_size?"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"unknown key {name}; did you mean {near}")):
        build(**{name: 1})


def test_a_section_gets_its_keys() -> None:
    with pytest.raises(UsageError, match=r"key lr; it is a section: lr\.schedule, lr\.base"):
        build(lr=1)


def test_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("training.epochs", "99")
    assert build().training.epochs == TrainConfig().training.epochs


def test_iterations_replace_epochs_of_a_lower_layer_but_not_of_their_own() -> None:
    layers = [("file", {"training.epochs": 3}), ("command line", {"training.iterations": 10})]
    training = config.build(TrainConfig, layers).training
    assert (training.epochs, training.iterations) == (None, 10)
    with pytest.raises(UsageError, match="not both"):
        build(training__epochs=1, training__iterations=2)


@pytest.mark.parametrize(
    "values",
    [
        {"training.epochs": None},
        {"training.epochs": "null"},
        {"training.epochs": "null", "training.iterations": None},
    ],
)
def test_a_run_has_a_length(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="both null"):
        build(**values)
    lower = ("file", {"training.iterations": 10})
    with pytest.raises(UsageError, match="both null"):
        config.build(TrainConfig, [lower, ("command line", {"training.iterations": "null"})])
    training = build(**values | {"training.iterations": "5"}).training
    assert (training.epochs, training.iterations) == (None, 5)


def test_a_number_out_of_range_is_told_what_it_counts() -> None:
    with pytest.raises(UsageError, match=r"from 0 to 1 \(plateau: whole epochs, as a fraction"):
        build(lr__patience=5)
    with pytest.raises(UsageError, match=r"numbers from 0 to 1, with commas between \(multistep"):
        build(lr__milestones="30,60")


def test_a_square_larger_than_the_images_is_refused() -> None:
    assert build(augment__cutout=32, data__resolution=32).augment.cutout == 32
    with pytest.raises(UsageError, match=r"cutout=33 is larger than the images, .*resolution=32"):
        build(augment__cutout=33, data__resolution=32)


@pytest.mark.parametrize("crop", ["pad", "scale"])
def test_images_grow_where_the_window_is_resized(crop: str) -> None:
    with pytest.raises(
        UsageError, match=rf"shows images smaller, which data\.crop={crop} does not"
    ):
        build(**{"data.start_resolution": 16, "data.crop": crop})


def test_nesterov_wants_momentum() -> None:
    with pytest.raises(UsageError, match=r"nesterov=true wants training\.momentum above 0"):
        build(training__nesterov=True, training__momentum=0)
    assert build(training__nesterov=True, training__momentum=0.5).training.nesterov
    assert build(training__nesterov=True, training__momentum=0, training__optimizer="adamw")


def test_a_base_lies_below_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("lr: {base: 0.5, gamma: 0.2}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nlr: {base: 0.7}\n")
    rates = config.build(TrainConfig, config.read_yaml(tmp_path / "top.yaml")).lr
    assert (rates.base, rates.gamma) == (0.7, 0.2)
    (tmp_path / "third.yaml").write_text("base: top.yaml\n")
    with pytest.raises(UsageError, match="may name no base itself"):
        config.read_yaml(tmp_path / "third.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: {base: 1", "not YAML"),
        ("- 1\n", "wants sections"),
        ("lr: 5\n", "lr is not a section"),
        ("lr: {base: 1, base: 2}\n", "base is given twice"),
        ("lr: {base: 1}\nlr: {gamma: 2}\n", "lr is given twice"),
        ("base: [1]\n", "base names one file"),
        ("base: ''\n", "base names one file"),
        ("", "wants sections"),
        ("# lr: {base: 1}\n", "wants sections"),
        ("lr: {base: 1, <<: {gamma: 0.5}, <<: {gamma: 0.6}}\n", "<< is given twice"),
        ("lr: {base: 2024-13-45}\n", "not YAML: month"),
        ("[" * 5000, "nested too deeply$"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        config.read_yaml(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*rn34\.yaml"):
        config.read_yaml(RECIPES / "rn_34.yaml")


def test_a_folder_gets_no_hint_at_itself() -> None:
    with pytest.raises(UsageError, match=r"rn_configs: is not a regular file$"):
        config.read_yaml(RECIPES)


def test_merge_keys_are_yaml(tmp_path: Path) -> None:
    # The second is merged again by the third, and has a key that it overrides.
    (tmp_path / "merged.yaml").write_text(
        "model: &one {name: resnet20, shortcut: A}\n"
        "data: &two {<<: *one, name: resnet32}\n"
        "lr: {<<: *two, shortcut: B}\n"
    )
    ((_, values),) = config.read_yaml(tmp_path / "merged.yaml")
    assert values == {
        "model.name": "resnet20", "model.shortcut": "A",
        "data.name": "resnet32", "data.shortcut": "A",
        "lr.name": "resnet32", "lr.shortcut": "B",
    }  # fmt: skip


@given(st.sampled_from(["bf16", "fp32"]), st.floats(0, 1e3), st.lists(st.floats(0, 1), max_size=4))
def test_the_resolved_configuration_reads_back_the_same(
    precision: str, rate: float, milestones: list[float]
) -> None:
    built = build(training__precision=precision, lr__base=rate, lr__milestones=milestones)
    sections = yaml.safe_load(config.to_yaml(built))
    flat = {f"{s}.{k}": v for s, keys in sections.items() for k, v in keys.items()}
    assert config.build(TrainConfig, [("again", flat)]) == built


@pytest.mark.parametrize("command", [TrainConfig, WriteConfig])
def test_every_key_says_why(command: type) -> None:
    for section in dataclasses.fields(command):
        for field in dataclasses.fields(section.type):
            assert len(field.metadata["why"]) > 10, f"{section.name}.{field.name}"
