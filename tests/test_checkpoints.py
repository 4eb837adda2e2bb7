"""Checkpoints that lie end in one line that names the file and the key, before they are used."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved import checkpoint, record

from resnet_ffcv.checkpoints import read_checkpoint, restore_model, restore_optimizer
from resnet_ffcv.config import TrainingConfig
from resnet_ffcv.errors import FailureError
from resnet_ffcv.generators import generator_states, restore_generators, seed_generators
from resnet_ffcv.models import build_model
from resnet_ffcv.training import build_optimizer

Content = dict[str, Any]
OPTIMIZERS = ("sgd", "adam", "adamw", "nadam")


def put(content: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced, or gone for `put` itself; tuples and lists alike."""
    if not keys:
        return value
    first, rest = keys[0], keys[1:]
    if isinstance(content, tuple | list):
        made = [put(x, rest, value) if n == first else x for n, x in enumerate(content)]
        return type(content)(made)
    made = dict(content)
    made[first] = put(made.get(first), rest, value)
    if value is put and not rest:
        del made[first]
    return made


def refusal(path: Path, content: Any) -> str:
    torch.save(content, path)
    with pytest.raises(FailureError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def use(path: Path, optimizer: str) -> None:
    """What a resume does with it, a step and a draw of each generator."""
    states = generator_states()
    try:
        state = read_checkpoint(path)
        model = build_model("resnet8", 2)
        made = build_optimizer(model, TrainingConfig(optimizer=optimizer))
        restore_model(model, state.model, str(path), "model")
        restore_optimizer(made, state.optimizer, str(path))
        restore_generators(state.generators)
        torch.rand(700)
        torch.randn(7)
        np.random.rand(700)  # noqa: NPY002
        model(torch.zeros(2, 3, 8, 8)).sum().backward()
        made.step()
    finally:
        restore_generators(states)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_was_saved_is_put_back_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    saved = checkpoint([record(1, 10.0), record(2, 20.0)], optimizer)
    torch.save(saved, tmp_path / "last")
    found = read_checkpoint(tmp_path / "last")
    assert found.records == saved["records"]
    model = build_model("resnet8", 2).to(memory_format=torch.channels_last)
    made = build_optimizer(model, TrainingConfig(optimizer=optimizer))
    restore_optimizer(made, found.optimizer, "here")
    ours, expected = made.state_dict(), saved["optimizer"]
    assert ours["param_groups"] == expected["param_groups"]
    assert ours["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        for name, value in state.items():
            assert torch.equal(ours["state"][number][name], value)
            assert ours["state"][number][name].stride() == value.stride()
    use(tmp_path / "last", optimizer)


BROAD = torch.zeros(1).expand(10**6, 10**6)
WORD = 2**32
LIES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "step": (("step",), -1),
    "step must be an integer, got a string": (("step",), "x"),
    "step must be an integer <=": (("step",), 10**30),
    "records must be a list, got a string": (("records",), "x"),
    "records[0]: epoch is missing": (("records",), [{}]),
    "records[0].val_loss": (("records", 0, "val_loss"), math.nan),
    "records[1].seconds": (("records", 1, "seconds"), math.inf),
    "records[1].train_top1": (("records", 1, "train_top1"), 10**400),
    "records[0].epoch": (("records", 0, "epoch"), BROAD),
    "meter: sums is missing": (("meter",), {"seen": 0}),
    "meter.sums: must be torch.float64": (
        ("meter",),
        {"sums": torch.zeros(2), "bad_step": torch.tensor(-1), "seen": 0, "classes": 2},
    ),
    "meter.sums: no counts": (
        ("meter",),
        {
            "sums": torch.full((3,), torch.nan, dtype=torch.float64),
            "seen": 3,
            "bad_step": torch.tensor(-1),
            "classes": 2,
        },
    ),
    "damaged must be a mapping": (("damaged",), 5),
    "damaged": (("damaged",), {-1: "x"}),
    "classes must be a list": (("classes",), 7),
    "classes[1] must be a string": (("classes", 1), 1),
    "classes: 3 names of 2 classes": (("classes",), ["a", "b", "c"]),
    "classes[0] must be a string of length <= 1000": (("classes", 0), "x" * 10**6),
    "dataset": (("dataset",), "0" * 63 + "\n"),
    "val_dataset": (("val_dataset",), 3),
    "normalize.mean must be `Tensor`": (("normalize", "mean"), 1),
    "normalize: mean and std must be (3, 1, 1), got (2,)": (("normalize", "mean"), torch.ones(2)),
    "normalize: mean and std must be finite": (("normalize", "std"), torch.zeros(3, 1, 1)),
    "normalize: tensor 'mean' has 4,": (("normalize", "mean"), BROAD),
    "view must have": (("view", "val"), "/etc/passwd"),
    "view must have resolution": (("view", "filter"), put),
    "view.resolution=1000000 is not": (("view", "resolution"), 10**6),
    "view.resolution='x' is not": (("view", "resolution"), "x"),
    "view.center_ratio=nan is not": (("view", "center_ratio"), math.nan),
    "view.filter=[": (("view", "filter"), [BROAD]),
    "spec.name must be a string of another form": (("spec", "name"), "timm/hf_hub:attacker/model"),
    "spec.name must be a string, got": (("spec", "name"), 5),
    "spec.num_classes: no tensor is of 10 classes": (("spec", "num_classes"), 10),
    "spec.shortcut must not be": (("spec", "shortcut"), "x" * 10**6),
    "spec.stride_in": (("spec", "stride_in"), "2x2"),
    "spec.blurpool": (("spec", "blurpool"), 1),
    "tensor 'conv1.weight' has 4,000,000,000,000 bytes": (("model", "conv1.weight"), BROAD),
    "'fc.bias' is not an array in memory": (("model", "fc.bias"), torch.zeros(2).to_sparse()),
    "'bn1.bias' is of torch.complex64": (
        ("model", "bn1.bias"),
        torch.zeros(16, dtype=torch.complex64),
    ),
    "trained[...] must be `Tensor`": (("trained",), {"x": 1}),
    "trained: tensor 'x' has": (("trained",), {"x": BROAD}),
    "optimizer: state is missing": (("optimizer",), {}),
    "optimizer.param_groups[0].lr": (("optimizer", "param_groups", 0, "lr"), math.inf),
    "optimizer.param_groups[0].params": (("optimizer", "param_groups", 0, "params"), [-1]),
    "optimizer.state.0: tensor 'momentum_buffer' has": (
        ("optimizer", "state", 0, "momentum_buffer"),
        BROAD,
    ),
    "optimizer.state[...][...] must be `Tensor`": (
        ("optimizer", "state", 0, "momentum_buffer"),
        0.5,
    ),
    "scaler: a part": (("scaler",), {"scale": 2.0}),
    "scaler.scale": (("scaler",), {"scale": math.nan}),
    "generators.numpy[1]": (("generators", "numpy", 1), 2**31 - 1),
    "generators.numpy[0][5]": (("generators", "numpy", 0, 5), WORD),
    "generators.numpy[0] must be": (("generators", "numpy", 0), [1, 2]),
    "generators.numpy[2]": (("generators", "numpy", 2), 2),
    "generators.numpy[3]": (("generators", "numpy", 3), math.nan),
    "generators.torch: not a state": (("generators", "torch"), torch.zeros(5056)),
    "generators.torch: not a state of": (("generators", "torch"), torch.zeros(9).byte()),
    "generators.torch: the position": (("generators", "torch"), torch.zeros(5056).byte()),
    "generators.python[1]": (("generators", "python", 1), (1,) * 624),
    "generators.python: the position": (("generators", "python", 1), (1,) * 624 + (625,)),
    "generators.python[0]": (("generators", "python", 0), 2),
}


@pytest.mark.parametrize("expected", LIES)
def test_a_checkpoint_that_lies_is_refused_by_the_key(tmp_path: Path, expected: str) -> None:
    keys, value = LIES[expected]
    content = put(checkpoint([record(1, 10.0), record(2, 20.0)]), keys, value)
    assert expected.lower() in refusal(tmp_path / "last", content).lower()


@pytest.mark.parametrize(
    "key",
    ["step", "records", "optimizer", "generators", "dataset", "classes", "normalize", "view",
     "scaler", "spec"],
)  # fmt: skip
def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path, key: str) -> None:
    content = put(checkpoint([record(1, 10.0)]), (key,), put)
    assert f"{key} is missing" in refusal(tmp_path / "last", content)


def test_a_checkpoint_from_before_some_keys_is_read(tmp_path: Path) -> None:
    content = checkpoint([record(1, 10.0)])
    for key in ("trained", "val_dataset", "meter", "damaged", "config"):
        del content[key]
    del content["spec"]["blurpool"]
    torch.save(content, tmp_path / "last")
    found = read_checkpoint(tmp_path / "last")
    assert (found.trained, found.val_dataset, found.meter, found.damaged) == (None, None, None, {})
    assert found.spec["blurpool"] is False


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizers_flags_are_its_own(tmp_path: Path, optimizer: str) -> None:
    """fused=True would hand buffers of any size to a kernel that does not look at sizes."""
    content = checkpoint([record(1, 10.0)], optimizer)
    flags = {"fused": True, "foreach": True, "capturable": True, "weight_decay": 9.0, "more": 1}
    (group,) = content["optimizer"]["param_groups"]
    content["optimizer"]["param_groups"] = [{**group, **flags, "lr": 0.25}]
    torch.save(content, tmp_path / "last")
    made = build_optimizer(build_model("resnet8", 2), TrainingConfig(optimizer=optimizer))
    (expected,) = made.state_dict()["param_groups"]
    restore_optimizer(made, read_checkpoint(tmp_path / "last").optimizer, "here")
    assert made.state_dict()["param_groups"] == [{**expected, "lr": 0.25}]


def first_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Content], Any]:
    return lambda optimizer: change(optimizer["state"][0])


STATE_LIES: dict[str, Callable[[Content], Any]] = {
    "optimizer.state.0.exp_avg: must be torch.float32 of shape (16, 3, 3, 3)": first_state(
        lambda state: state.update(exp_avg=torch.zeros(1))
    ),
    "optimizer.state.0.exp_avg_sq: must be": first_state(
        lambda state: state.update(exp_avg_sq=torch.zeros(16, 3, 3, 3).long())
    ),
    "optimizer.state.0.step: must be torch.float32 of shape ()": first_state(
        lambda state: state.update(step=torch.zeros(16, 3, 3, 3))
    ),
    "optimizer.state.0.step: must be 0 or more, got nan": first_state(
        lambda state: state.update(step=torch.tensor(math.nan))
    ),
    "optimizer.state.0: must have exp_avg": first_state(lambda state: state.pop("exp_avg")),
    "optimizer.state.0: must have": first_state(
        lambda state: state.update(max_exp_avg_sq=torch.zeros(16, 3, 3, 3))
    ),
    "optimizer.state: of more than": lambda optimizer: optimizer["state"].update(
        {10**9: optimizer["state"][0]}
    ),
    "optimizer.param_groups: of another": lambda optimizer: optimizer["param_groups"].append(
        {"params": [], "lr": 0.1}
    ),
}


@pytest.mark.parametrize("expected", STATE_LIES)
def test_an_optimizers_state_has_its_parameters_shapes(tmp_path: Path, expected: str) -> None:
    content = copy.deepcopy(checkpoint([record(1, 10.0)], "adamw"))
    STATE_LIES[expected](content["optimizer"])
    torch.save(content, tmp_path / "last")
    made = build_optimizer(build_model("resnet8", 2), TrainingConfig(optimizer="adamw"))
    saved = read_checkpoint(tmp_path / "last").optimizer
    with pytest.raises(FailureError) as caught:
        restore_optimizer(made, saved, "here")
    assert str(caught.value).startswith(f"here: {expected}")
    assert not made.state


def test_states_that_share_or_overlap_their_memory_become_the_optimizers_own(
    tmp_path: Path,
) -> None:
    content = copy.deepcopy(checkpoint([record(1, 10.0)]))
    state, shared = content["optimizer"]["state"], torch.zeros(2000)
    state[0]["momentum_buffer"] = shared.as_strided((16, 3, 3, 3), (1, 1, 1, 1))
    state[1]["momentum_buffer"] = shared[:16]
    torch.save(content, tmp_path / "last")
    use(tmp_path / "last", "sgd")  # torch refuses to write where two elements share a place


def test_weights_of_another_network_leave_it_unchanged() -> None:
    model = build_model("resnet8", 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FailureError, match=r"here: trained does not fit the network: .*missing"):
        restore_model(model, {"x": torch.ones(1)}, "here", "trained")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("draws", [0, 1, 5, 623, 624, 625, 1000])
def test_each_state_that_torch_makes_is_taken(tmp_path: Path, draws: int) -> None:
    states = generator_states()
    try:
        seed_generators(3)
        torch.rand(draws)
        torch.randn(1)
        content = checkpoint([record(1, 10.0)])
        torch.save(content, tmp_path / "last")
        restore_generators(read_checkpoint(tmp_path / "last").generators)
        assert torch.equal(torch.get_rng_state(), content["generators"]["torch"])
    finally:
        restore_generators(states)


def test_a_torch_generator_that_would_read_past_its_words_is_refused(tmp_path: Path) -> None:
    """torch takes any position and any rest up to 624 each: 624 of both reads 2.5 kB behind."""
    content = checkpoint([record(1, 10.0)])
    state = content["generators"]["torch"].clone()
    state[8:12] = torch.tensor([624], dtype=torch.int32).view(torch.uint8)
    state[16:24] = torch.tensor([624], dtype=torch.int64).view(torch.uint8)
    content["generators"]["torch"] = state
    assert "generators.torch: the position" in refusal(tmp_path / "last", content)


ANYTHING: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, math.nan, math.inf, "", "x",
    "x" * 10**5, "\x1b[2J", b"x", [], [[]], [1] * 700, {}, {"x": 1}, {1: 2}, (), (1, 2, 3),
    torch.zeros(0), torch.zeros(1), torch.ones(16, 3, 3, 3), torch.zeros(5056).byte(),
    torch.full((5056,), 255).byte(), torch.zeros(3).to_sparse(), torch.zeros(2).half(), BROAD,
]  # fmt: skip


def places(content: Any, depth: int = 4) -> list[tuple[Any, ...]]:
    """The keys of each value inside, of lists the first three and the last."""
    if depth == 0 or not isinstance(content, dict | list | tuple):
        return [()]
    keys = list(content) if isinstance(content, dict) else range(len(content))
    chosen = [*keys[:3], *keys[-1:]] if len(keys) > 40 else list(keys)
    return [(), *((key, *rest) for key in chosen for rest in places(content[key], depth - 1))]


@given(st.data())
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
def test_whatever_a_checkpoint_holds_it_is_used_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    optimizer = data.draw(st.sampled_from(["sgd", "nadam"]))
    content: Any = checkpoint([record(1, 10.0), record(2, 20.0)], optimizer)
    for _ in range(data.draw(st.integers(1, 2))):
        keys = data.draw(st.sampled_from(places(content)[1:]))
        content = put(content, keys, data.draw(st.sampled_from([*ANYTHING, put])))
    path = tmp_path_factory.getbasetemp() / "last"
    torch.save(content, path)
    message = ""
    try:
        use(path, optimizer)
    except FailureError as error:
        message = str(error)
    assert not message or str(path) in message
    assert "\n" not in message
    assert len(message) < 600
