"""Loading weights: from others' networks to the same logits, and what is refused."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.models import build_model, load_weights, read_weights, reading

State = dict[str, Tensor]


def as_if_trained(model: nn.Module, size: int = 32) -> nn.Module:
    """Gives the norms scales, shifts and statistics of data, so that every layer has its effect."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0  # statistics of the next batch
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size))
    return model.eval()


def logits(model: nn.Module, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        found: Tensor = model.eval()(torch.randn(2, 3, size, size, generator=generator))
    return found


def assert_same_logits(found: nn.Module, expected: nn.Module, size: int) -> None:
    wanted = logits(expected, size)
    assert (wanted[0] - wanted[1]).abs().max() > 0.1  # the images matter
    torch.testing.assert_close(logits(found, size), wanted, atol=1e-5, rtol=1e-5)


def refusal(model: nn.Module, path: Path, **options: str) -> str:
    """The message with which a file is refused: one line, naming the file; the model unchanged."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FailureError) as caught:
        load_weights(model, path, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> nn.Module:
    return build_model("resnet8", 10)


# Others' networks -----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvisions_weights_give_torchvisions_logits(depth: int, tmp_path: Path) -> None:
    theirs = as_if_trained(getattr(torchvision.models, f"resnet{depth}")(), 97)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_model(f"resnet{depth}", 1000, shortcut="B", stride_in="3x3")
    load_weights(ours, tmp_path / "tv.pth")
    assert_same_logits(ours, theirs, 97)


def test_the_papers_stride_is_torchvisions_moved_to_the_first_convolution(tmp_path: Path) -> None:
    theirs = as_if_trained(torchvision.models.resnet50(), 97)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_model("resnet50", 1000, stride_in="1x1")
    load_weights(ours, tmp_path / "tv.pth")
    assert not torch.allclose(logits(ours, 97), logits(theirs, 97), atol=0.1)
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)  # type: ignore[index,union-attr]
    assert_same_logits(ours, theirs, 97)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class AkamasterBlock(nn.Module):
    """akamaster/pytorch_resnet_cifar10, resnet.py: BasicBlock with option A."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = Lambda(
                lambda x: F.pad(
                    x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Akamaster(nn.Module):
    """akamaster/pytorch_resnet_cifar10, resnet.py: ResNet."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [AkamasterBlock(planes, planes, 1) for _ in range(blocks - 1)]
        return nn.Sequential(AkamasterBlock(in_planes, planes, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        logits: Tensor = self.linear(out.view(out.size(0), -1))
        return logits


@pytest.mark.parametrize("blocks", [1, 3, 9])
@pytest.mark.parametrize("zipped", [True, False])  # their files are from before PyTorch 1.6
def test_akamasters_weights_give_akamasters_logits(
    blocks: int, zipped: bool, tmp_path: Path
) -> None:
    theirs = as_if_trained(Akamaster(blocks))
    file = {"state_dict": nn.DataParallel(theirs).state_dict(), "best_prec1": 91.7}
    assert "module.linear.weight" in file["state_dict"]
    torch.save(file, tmp_path / "a.th", _use_new_zipfile_serialization=zipped)
    ours = build_model(f"resnet{6 * blocks + 2}", 10)
    load_weights(ours, tmp_path / "a.th")
    assert_same_logits(ours, theirs, 32)


def test_files_without_counters_of_batches_load(model: nn.Module, tmp_path: Path) -> None:
    other = as_if_trained(build_model("resnet8", 10))
    state = {k: v for k, v in other.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    load_weights(model, tmp_path / "old.pth")
    assert_same_logits(model, other, 32)


def test_timms_networks_load_their_state_dicts(tmp_path: Path) -> None:
    name = "timm/mobilenetv3_small_050"
    theirs, ours = build_model(name, 12), build_model(name, 12)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "t.pth")
    load_weights(ours, tmp_path / "t.pth")
    assert torch.equal(logits(ours, 64), logits(theirs, 64))


# Wrappers and containers ----------------------------------------------------------------


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
    "DataParallel of compiled": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_stripped(
    wrap: Callable[[nn.Module], Any], suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    other = as_if_trained(build_model("resnet8", 10))
    state, path = wrap(other).state_dict(), tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    load_weights(model, path)
    assert_same_logits(model, other, 32)


def checkpoint(model: nn.Module, **more: Any) -> dict[str, Any]:
    return {"model": model.state_dict(), "spec": model.spec, **more}


def test_our_checkpoints_load_and_say_what_they_are(model: nn.Module, tmp_path: Path) -> None:
    other = as_if_trained(build_model("resnet8", 10))
    classes = [f"class {n}" for n in range(10)]
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    torch.save(
        checkpoint(other, classes=classes, optimizer=optimizer.state_dict()), tmp_path / "last"
    )
    load_weights(model, tmp_path / "last")
    assert_same_logits(model, other, 32)
    content = read_weights(tmp_path / "last")
    assert content["spec"] == other.spec
    assert content["classes"] == classes


def test_safetensors_carry_the_spec_as_metadata(model: nn.Module, tmp_path: Path) -> None:
    other = as_if_trained(build_model("resnet8", 10))
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(
        other.state_dict(), path, {"resnet_ffcv": json.dumps({"spec": other.spec})}
    )
    load_weights(model, path)
    assert_same_logits(model, other, 32)
    assert read_weights(path)["spec"] == other.spec
    assert "name resnet8, this one has resnet14" in refusal(build_model("resnet14", 10), path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_without_a_spec_are_a_state_dict(
    metadata: dict[str, str] | None, model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    assert read_weights(path).keys() == {"model"}


# A new classifier -----------------------------------------------------------------------


@pytest.mark.parametrize("as_checkpoint", [True, False])
@pytest.mark.parametrize("classes", [10, 100])
def test_a_new_head_keeps_the_models_own(
    as_checkpoint: bool, classes: int, model: nn.Module, tmp_path: Path
) -> None:
    other = as_if_trained(build_model("resnet8", classes))
    torch.save(checkpoint(other) if as_checkpoint else other.state_dict(), tmp_path / "w.pth")
    own = {name: value.clone() for name, value in model.fc.state_dict().items()}  # type: ignore[union-attr]
    load_weights(model, tmp_path / "w.pth", head="new")
    for name, value in model.state_dict().items():
        expected = own[name[3:]] if name.startswith("fc.") else other.state_dict()[name]
        assert torch.equal(value, expected), name


def test_a_new_head_ignores_akamasters_linear(model: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in Akamaster(1).state_dict().items()}
    own = model.fc.weight.clone()  # type: ignore[union-attr,operator]
    torch.save({"state_dict": state}, tmp_path / "a.th")
    load_weights(model, tmp_path / "a.th", head="new")
    assert torch.equal(model.fc.weight, own)  # type: ignore[union-attr,arg-type]
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050", "convnext_atto", "deit_tiny_distilled_patch16_224"],
)  # classifier, head.fc, (head, head_dist)
def test_a_new_head_of_timms_networks(name: str, tmp_path: Path) -> None:
    theirs, ours = build_model(f"timm/{name}", 30), build_model(f"timm/{name}", 12)
    torch.save(theirs.state_dict(), tmp_path / "t.pth")
    own = [m.weight.clone() for m in heads(ours)]
    assert "model.pretrained_head=new" in refusal(ours, tmp_path / "t.pth")
    load_weights(ours, tmp_path / "t.pth", head="new")
    assert all(torch.equal(a.weight, b) for a, b in zip(heads(ours), own, strict=True))
    first = next(iter(ours.parameters()))
    assert torch.equal(first, next(iter(theirs.parameters())))


def heads(model: nn.Module) -> list[nn.Linear]:
    found = model.get_classifier()  # type: ignore[operator]
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize(
    ("as_checkpoint", "expected"),
    [
        (True, "num_classes 100, this one has 10;"),
        (
            False,
            "2 of another shape (fc.weight (100, 64), not (10, 64), fc.bias (100,), not (10,))",
        ),
    ],
)
def test_other_classes_are_refused_with_what_to_do(
    as_checkpoint: bool, expected: str, model: nn.Module, tmp_path: Path
) -> None:
    other = build_model("resnet8", 100)
    torch.save(checkpoint(other) if as_checkpoint else other.state_dict(), tmp_path / "w.pth")
    message = refusal(model, tmp_path / "w.pth")
    assert expected in message
    assert "model.pretrained_head=new takes all but the classifier" in message


def test_there_is_no_third_kind_of_head(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fresh: it is keep or new"):
        load_weights(model, tmp_path / "w.pth", head="fresh")


# Files that do not fit ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "wanted", "other", "own"),
    [
        ("name", "resnet8", "resnet14", ("resnet8", {}), ("resnet14", {})),
        ("shortcut", "B", "A", ("resnet8", {"shortcut": "B"}), ("resnet8", {})),
        ("stride_in", "3x3", "1x1", ("resnet50", {}), ("resnet50", {"stride_in": "1x1"})),
    ],
)
@pytest.mark.parametrize("head", ["keep", "new"])
def test_a_checkpoint_of_another_model_is_refused(
    key: str, given: str, wanted: str, other: Any, own: Any, head: str, tmp_path: Path
) -> None:
    torch.save(checkpoint(build_model(other[0], 10, **other[1])), tmp_path / "last")
    message = refusal(build_model(own[0], 10, **own[1]), tmp_path / "last", head=head)
    assert f"{key} {given}, this one has {wanted}" in message


def change(state: State, name: str, value: Tensor | None) -> State:
    """`state` with one entry set, or gone for None."""
    changed = {**state, name: torch.zeros(0) if value is None else value}
    if value is None:
        del changed[name]
    return changed


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bn1.weight", None, "1 missing (bn1.weight)"),
        ("conv2.weight", torch.zeros(1), "1 unexpected (conv2.weight)"),
        (
            "conv1.weight",
            torch.zeros(16, 1, 3, 3),
            "1 of another shape (conv1.weight (16, 1, 3, 3), not (16, 3, 3, 3))",
        ),
    ],
)
@pytest.mark.parametrize("head", ["keep", "new"])
def test_a_name_or_shape_that_does_not_fit_is_refused(
    name: str, value: Tensor | None, expected: str, head: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(change(dict(model.state_dict()), name, value), tmp_path / "w.pth")
    message = refusal(model, tmp_path / "w.pth", head=head)
    hint = "model.name and model.shortcut say which network they are of"  # not at a new head
    assert message.endswith(f"does not fit the model: {expected}; {hint}")


def test_many_names_are_counted_and_the_first_named(model: nn.Module, tmp_path: Path) -> None:
    projected = build_model("resnet8", 10, shortcut="B").state_dict()
    torch.save(projected, tmp_path / "b.pth")
    extra = [name for name in projected if "downsample" in name]
    assert f"{len(extra)} unexpected ({', '.join(extra[:3])}, ...)" in refusal(
        model, tmp_path / "b.pth"
    )
    torch.save(model.state_dict(), tmp_path / "a.pth")
    message = refusal(build_model("resnet8", 10, shortcut="B"), tmp_path / "a.pth")
    assert "10 missing (layer2.0.downsample.0.weight, layer2.0.downsample.1.weight, " in message


# Files that are no weights --------------------------------------------------------------


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    kind: str, model: nn.Module, tmp_path: Path
) -> None:
    content = {"model": model.state_dict(), "spec": model.spec, "more": Bomb(tmp_path / "ran")}
    path = tmp_path / "bomb.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(model, path)
    assert "objects that could run code" in message
    assert "weights_only" not in message  # torch's own message advises to switch it off
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()  # the bomb was live


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"no weights but a text, of some length\n" * 9])
def test_other_files_are_refused_with_what_to_give(
    suffix: str, content: bytes, model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    message = refusal(model, path)
    assert "cannot be read: the file is damaged, of another kind than its name says, or" in message
    assert "give NAME.safetensors, or by any other name a checkpoint of train.py" in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_files_are_refused(suffix: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(model.state_dict(), path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "the file is damaged" in refusal(model, path)


def test_a_whole_pickled_module_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "whole.pt")
    assert "objects that could run code" in refusal(model, tmp_path / "whole.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_such_file(suffix: str, model: nn.Module, tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(model, tmp_path / f"none{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "cannot be read" in refusal(model, tmp_path / f"folder{suffix}")


@pytest.mark.parametrize(
    "content",
    [
        3,
        [torch.zeros(1)],
        {},
        {"state_dict": 3},
        {"state_dict": None},
        {"model": {}},
        {1: torch.zeros(1)},
        {"conv1.weight": 3.0},
        {"spec": {}},
    ],
)
def test_files_without_a_state_dict_are_refused(
    content: Any, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no weights: no state dict of tensors" in refusal(model, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (None, "must be a mapping, got null"),
        (3, "must be a mapping, got an integer"),
        ({}, "name is missing"),
        ({"name": "resnet8"}, "num_classes is missing"),
        ({"name": 5}, "must be a string, got an integer"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_spec_that_says_too_little_is_refused(
    spec: Any, fault: str, suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    path, state = tmp_path / f"w{suffix}", model.state_dict()
    if suffix == ".pth":
        torch.save({"model": state, "spec": spec}, path)
    else:
        safetensors.torch.save_file(state, path, {"resnet_ffcv": json.dumps({"spec": spec})})
    message = refusal(model, path)
    assert f"{path}: spec" in message
    assert fault in message.lower()


def test_a_spec_that_is_no_json_is_refused(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, {"resnet_ffcv": "resnet8"})
    assert "cannot be read" in refusal(model, path)


# Files that would not end ---------------------------------------------------------------


def rezip(source: Path, target: Path, change: Callable[[zipfile.ZipInfo], Any]) -> None:
    """The archive again; `change` returns a member's new content, or None for its own."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            info, content = zipfile.ZipInfo(member.filename), old.read(member)
            changed = change(info)
            new.writestr(info, content if changed is None else changed)


def compress(member: zipfile.ZipInfo) -> None:
    member.compress_type = zipfile.ZIP_DEFLATED


def rename(name: str) -> Callable[[zipfile.ZipInfo], None]:
    def change(member: zipfile.ZipInfo) -> None:
        if member.filename.endswith("/data/0"):
            member.filename = name

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (compress, "data.pkl' in the archive is compressed"),
        (rename("/etc/data/0"), "'/etc/data/0' in the archive is outside of the archive"),
        (rename("w/../data/0"), "'w/../data/0' in the archive is outside of the archive"),
        (rename("w/data/1"), "an archive with a name given twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_torch_does_not_write_is_refused(
    change: Callable[[zipfile.ZipInfo], Any], fault: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pth")
    rezip(tmp_path / "w.pth", tmp_path / "same.pth", lambda _: None)
    load_weights(model, tmp_path / "same.pth")
    rezip(tmp_path / "w.pth", tmp_path / "bad.pth", change)
    assert fault in refusal(model, tmp_path / "bad.pth")


def patch_directory(content: bytes, field: int, value: bytes) -> bytes:
    """The archive with bytes of each central directory entry replaced, from byte `field` on."""
    place, made = content.find(b"PK\1\2"), bytearray(content)
    while place >= 0:
        made[place + field : place + field + len(value)] = value
        place = content.find(b"PK\1\2", place + 4)
    return bytes(made)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        (8, b"\1\0", "is encrypted"),
        (42, b"\0\0\0\0", "is on top of another"),
        (20, b"\xff\xff\xff\x7f" * 2, "is on top of another"),
        (24, b"\xff\xff\xff\x7f", "is compressed"),
    ],
)
def test_members_on_top_of_each_other_are_refused(
    field: int, value: bytes, fault: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pth")
    rezip(tmp_path / "w.pth", tmp_path / "z.pth", lambda _: None)
    path = tmp_path / "bad.pth"
    path.write_bytes(patch_directory((tmp_path / "z.pth").read_bytes(), field, value))
    assert fault in refusal(model, path)


def test_an_archive_of_too_many_members_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        for number in range(reading.MOST_MEMBERS + 1):
            file.writestr(f"w/data/{number}", b"")
    assert "more than 65,536 members" in refusal(model, tmp_path / "w.pth")


@pytest.mark.parametrize("around", ["before", "after", "comment"])
def test_an_archive_with_something_around_it_is_refused(
    around: str, model: nn.Module, tmp_path: Path
) -> None:
    """torch and zipfile might each find another archive in it."""
    path = tmp_path / "w.pth"
    torch.save(model.state_dict(), path)
    if around == "comment":
        with zipfile.ZipFile(path, "a") as file:
            file.comment = b"x"
    else:
        content = path.read_bytes()
        path.write_bytes(content[:100] + content if around == "before" else content + content[:100])
    refusal(model, path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda _: torch.zeros(1).expand(10**6, 10**6), "has 4,000,000,000,000 bytes, of which"),
        (lambda x: x.to_sparse(), "is not an array in memory"),
        (lambda x: x.to("meta"), "is not an array in memory"),
        (lambda x: x.to(torch.complex64), "is of torch.complex64"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.qint8), "is of torch.qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_numbers_are_refused(
    make: Callable[[Tensor], Tensor], fault: str, zipped: bool, model: nn.Module, tmp_path: Path
) -> None:
    path, state = tmp_path / "w.pth", dict(model.state_dict())
    state["fc.weight"] = make(state["fc.weight"])
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    message = refusal(model, path)
    assert f"tensor 'fc.weight' {fault}" in message or "cannot be read" in message


def test_slices_and_shared_memory_are_plain_numbers(model: nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    wide = torch.rand(20, 128)
    state |= {"fc.weight": wide[3:13, ::2], "fc.bias": wide[0, :10]}
    torch.save(state, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.state_dict()["fc.weight"], wide[3:13, ::2])


def test_an_older_file_that_says_to_hold_terabytes_is_refused(
    model: nn.Module, tmp_path: Path
) -> None:
    path, name = tmp_path / "w.pth", "fc.bias"
    torch.save({name: torch.zeros(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"K\n", content.index(b"cpu"))  # ten numbers in the storage
    path.write_bytes(content[:place] + b"\x8a\x05\0\0\0\0\x10" + content[place + 2 :])
    assert "the file is damaged" in refusal(model, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pipe_or_device_is_no_file_of_weights(
    suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert "is not a regular file" in refusal(model, tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"spec": ' * 100_000, "cannot be read"),
        ("[1]", "must be a mapping, got a list"),
        ('"x"', "must be a mapping, got a string"),
        ('{"normalize": {"mean": 1}}', "normalize: mean must be a list, got an integer"),
        ('{"normalize": {"mean": [[[1], [1, 2]]], "std": []}}', "normalize.mean: rows of diff"),
        (" " * (reading.MOST_FACTS + 1), "more than 33,554,432 bytes of metadata"),
    ],
)
def test_facts_of_another_structure_are_refused(
    facts: str, fault: str, model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, {"resnet_ffcv": facts})
    message = refusal(model, path)
    assert fault in message.lower()
    assert len(message) < 600
