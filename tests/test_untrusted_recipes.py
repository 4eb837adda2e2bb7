"""Recipes from somebody else end in a short line at once, whatever they hold."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv import config
from resnet_ffcv.config import TrainConfig
from resnet_ffcv.errors import UsageError
from resnet_ffcv.recipes import LONGEST_VALUE, MOST_BYTES, MOST_VALUES, read_yaml

LETTERS = "abcdefghij"


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        config.build(TrainConfig, read_yaml(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 600
    return message


def aliases_of_aliases(wrap: str) -> str:
    """Ten levels of ten: 10,000,000,000 values."""
    levels = [f"{b}: &{b} {wrap.replace('*', ','.join([f'*{a}'] * 10))}\n"
              for a, b in pairwise(LETTERS)]  # fmt: skip
    return "".join(levels)


TOO_MANY = "more than 10,000 keys and values"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [x, x]\n" + aliases_of_aliases("[*]"), TOO_MANY),
        ("a: &a {x: 1}\n" + aliases_of_aliases("{<<: [*]}"), TOO_MANY),
        ("data: {" + ", ".join(f"k{i}: 1" for i in range(60_000)) + "}\n", TOO_MANY),
        ("data: &a {train: *a}\n", TOO_MANY),
        ("data: &a {<<: *a}\n", TOO_MANY),
        ("data: {" + ", ".join(f"k{i}: 1" for i in range(4_000)) + "}\n", "unknown key data.k0"),
        ("[" * 100_000, "nested too deeply"),
        ("data: {train: " + "x" * (LONGEST_VALUE + 1) + "}\n", "more than 4,096 characters"),
        ("training: {epochs: " + ":".join(["1"] * 300_000) + "}\n", "more than 4,096 characters"),
        ("training: {epochs: " + "1" * 4000 + "}\n", "training.epochs="),
        ("training: {epochs: " + "1" * 4096 + "}\n", "training.epochs="),
        ("lr: {base: '" + "1" * 4000 + "'}\n", "lr.base='111"),
        ("lr: {milestones: [" + "[], " * 4000 + "]}\n", "lr.milestones=[[], []"),
        ("data: {train: [" + ", ".join(["x" * 90] * 4000) + "]}\n", "data.train=['xxx"),
        ("data: {5: 1}\n", "data: 5 is not the name of a key"),
        ("? [a, b]\n: {x: 1}\n", "found unhashable key"),
        ("? " + "x" * 4000 + "\n: 1\n", "xxx... is not a section"),
        ('data: {train: "a\\0b"}\n', "data.train='a\\x00b' is not a non-empty text"),
        ('base: "a\\0b"\n', "null byte"),
        ("# " + "x" * MOST_BYTES, "has more than 1,048,576 bytes"),
        ("base: /dev/zero\n", "/dev/zero: is not a regular file"),
        ("data: !!python/object/apply:os.system ['true']\n", "could not determine"),
        ("data: !" + "x" * 10_000 + " 1\n", "could not determine"),
        (b"\xff\xfe\xfa", "not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_recipe_that_asks_for_too_much_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    assert message in refusal(tmp_path / "x.yaml", content)


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: is not a regular file"):
        read_yaml(tmp_path / "pipe")


def test_an_alias_counts_as_all_that_it_stands_for(tmp_path: Path) -> None:
    keys, sections = 100, 48
    shared = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(keys)) + "}\n"
    text = shared + "".join(f"s{n}: *a\n" for n in range(sections))
    count = 1 + (1 + sections) * (1 + 1 + 2 * keys)
    assert count <= MOST_VALUES
    (tmp_path / "x.yaml").write_text(text)
    ((_, values),) = read_yaml(tmp_path / "x.yaml")
    assert len(values) == (1 + sections) * keys
    assert TOO_MANY in refusal(tmp_path / "x.yaml", text + "t: *a\n")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(
    st.recursive(
        LEAVES | st.binary(),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4),
        max_leaves=30,
    )
)
def test_whatever_yaml_holds_it_is_a_recipe_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    names = ("data", "training", "lr", "base", "test")
    texts = [yaml.safe_dump({name: content}) for name in names]
    texts += [yaml.safe_dump({"lr": {"base": content}, "data": {"growth": content}})]
    for text in texts:
        path.write_text(text)
        message = ""
        try:
            config.build(TrainConfig, read_yaml(path))
        except UsageError as error:
            message = str(error)
        assert "\n" not in message.replace("\\n", "")
