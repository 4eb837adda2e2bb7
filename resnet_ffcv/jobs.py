"""What train.py does: train, go on with a run, evaluate, name the classes of a picture."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from timm.data import ImageNetInfo
from torch import nn

from resnet_ffcv import commandline, testing
from resnet_ffcv import config as configuration
from resnet_ffcv.checkpoints import Checkpoint
from resnet_ffcv.commandline import console, show_table
from resnet_ffcv.config import ModelConfig, TrainConfig, TrainingConfig
from resnet_ffcv.data import (
    Data,
    Normalize,
    build_normalize,
    check_same_classes,
    load_data,
    load_test_data,
    open_file,
    read_picture,
    readable_name,
    short_sides,
    view,
    view_side,
    view_window,
)
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.export import find_writer
from resnet_ffcv.generators import generator_states, restore_generators, seed_generators
from resnet_ffcv.models import build_model, conventional_view, load_weights, read_weights
from resnet_ffcv.models.weights import NEW_HEAD, SPEC
from resnet_ffcv.opening import refuse_links_out
from resnet_ffcv.runs import Record, Run, hold, make_folder
from resnet_ffcv.testing import Clock, Counts, Images, Setting
from resnet_ffcv.training import (
    Display,
    Trainer,
    build_optimizer,
)

OTHER_CLASSES = "the classes are those of data.val, or where it is not given ImageNet's 1,000"
DIVERGED = "weights of a run that diverged"

Given = dict[str, Any]  # the keys that a file or the command line set

# What a run may be resumed with without becoming another run.
RESUME_MAY_CHANGE = (
    "run.resume",
    "run.checkpoint_every",
    "run.checkpoint_steps",
    "data.train",
    "data.val",
    "data.num_workers",
    "data.max_pixels",
    "data.max_memory",
    "data.verify",
    "training.device",
    "training.precision",
)


def train(config: TrainConfig) -> dict[str, Any]:
    """A new run of the recipe."""
    device = pick_device(config.training)
    config = pick_precision(config, device)  # the run goes on with it, wherever that is
    trainer_parts = _prepare(config, device)
    folder = make_folder(config)
    with hold(folder):
        run = Run.create(folder, config, device)
        return _train(config, run, None, device, *trainer_parts)


def resume(folder: str, given: Given) -> dict[str, Any]:
    """Goes on with the run in `folder`, with the configuration that it has there."""
    place = Path(folder)
    if not (place / "config.yaml").exists():
        raise UsageError(f"run.resume={folder}: no run there (it has no config.yaml)")
    refuse_links_out(place)
    with hold(place):
        return _resume(place, given)


def _resume(folder: Path, given: Given) -> dict[str, Any]:
    own = configuration.read_yaml(folder / "config.yaml")
    config = configuration.build(TrainConfig, [*own, ("command line", given)])
    before = configuration.to_dict(configuration.build(TrainConfig, own))
    for section, keys in configuration.to_dict(config).items():
        for name, value in keys.items():
            if value != before[section][name] and f"{section}.{name}" not in RESUME_MAY_CHANGE:
                raise UsageError(
                    "run.resume goes on with the run's own configuration; "
                    f"{section}.{name} cannot change"
                )
    device = pick_device(config.training)
    config = pick_precision(config, device)
    run, checkpoint = Run.reopen(folder, device, config.training.precision)
    if checkpoint is None:
        console.print(f"{folder} has no checkpoint: the run begins anew", soft_wrap=True)
    else:  # it replaces the weights that the run began with, which may be gone
        began = replace(config.model, weights=None, pretrained_head="keep")
        config = replace(config, model=began)
    trainer_parts = _prepare(config, device)
    return _train(config, run, checkpoint, device, *trainer_parts)


def _prepare(
    config: TrainConfig, device: torch.device
) -> tuple[Data, nn.Module, torch.optim.Optimizer]:
    seed_generators(config.training.seed)
    data = load_data(config.data, config.test, config.training.seed, device, config.augment)
    _check_start(config.model, data.classes)
    model = build_network(config, len(data.classes), device)
    _check_fit(config, model, device, smallest_batch=data.smallest_batch)
    return data, model, build_optimizer(model, config.training)


def _check_start(config: ModelConfig, classes: list[str]) -> None:
    """Raises UsageError where a new run would begin with a classifier of other classes."""
    if config.weights is None:
        if config.pretrained_head == "new":
            raise UsageError("model.pretrained_head=new is for model.weights, which is not given")
    elif config.pretrained_head == "keep":
        learned = read_weights(config.weights).get("classes", classes)
        if learned != classes:
            raise UsageError(
                f"model.weights={config.weights} is of other classes than data.train; {NEW_HEAD}"
            )


def build_network(
    config: TrainConfig, num_classes: int, device: torch.device, *, hint: str = NEW_HEAD
) -> nn.Module:
    chosen = config.model
    model = build_model(
        chosen.name,
        num_classes,
        shortcut=chosen.shortcut,
        stride_in=chosen.stride_in,
        zero_init=chosen.zero_init,
        blurpool=chosen.blurpool,
    )
    if chosen.weights is not None:
        load_weights(model, chosen.weights, head=chosen.pretrained_head, hint=hint)
    return model.to(device).to(memory_format=torch.channels_last)


def _check_fit(
    config: TrainConfig, model: nn.Module, device: torch.device, smallest_batch: int = 2
) -> None:
    """Raises UsageError where the model does not take images of the recipe's sizes.

    BatchNorm wants two values of each channel: a batch of one image may have but one.
    """
    images = min(smallest_batch, 2)  # more tell no more
    sides = {
        "data.resolution": config.data.resolution,
        "data.start_resolution": config.data.start_resolution,
        "test.resolution": config.test.resolution,
    }
    states = generator_states()
    try:
        for key, side in sides.items():
            if side is not None:
                _try_size(model, config.model.name, (images, side), device, key)
    finally:
        restore_generators(states)


def _try_size(
    model: nn.Module, name: str, size: tuple[int, int], device: torch.device, key: str
) -> None:
    images, side = size
    try:
        with torch.inference_mode():
            copy.deepcopy(model).train()(torch.zeros(images, 3, side, side, device=device)).float()
    except Exception as error:  # each network has its own
        one = ", or data.batch_size, for batches of more" if images == 1 else ""
        raise UsageError(
            f"model.name={name} does not take {images} x {side} x {side} pixels "
            f"({error}); change it, or {key}{one}"
        ) from error


def pick_device(config: TrainingConfig) -> torch.device:
    """The device that `training.device` and `training.precision` ask for, if it is there."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise FailureError("training.device=cuda, but PyTorch finds no CUDA device here")
    device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean it; bf16 and fp16 make no use of it
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("training.precision=fp16 needs CUDA; on a CPU take bf16 or fp32")
    return device


def pick_precision(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The configuration with the type that training.precision=auto means on `device`.

    A processor without bf16 emulates it, several times slower than fp32, which is then said.
    """
    asked = config.training.precision
    if asked not in ("auto", "bf16"):
        return config
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        has_bf16 = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if asked == "bf16":
        if not has_bf16:
            console.print(
                "warning: bf16 is emulated here, at a fraction of training.precision=fp32's speed"
            )
        return config
    precision = "bf16" if has_bf16 else "fp32"
    return replace(config, training=replace(config.training, precision=precision))


def _train(
    config: TrainConfig,
    run: Run,
    checkpoint: Checkpoint | None,
    device: torch.device,
    data: Data,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    commandline.say_when_stopped(lambda: _how_to_go_on(run))
    with commandline.progress() as progress:
        trainer = Trainer(config, model, optimizer, data, run, device, _Bar(progress))
        if checkpoint:
            trainer.restore(checkpoint, run.folder / "checkpoints" / "last")
        if trainer.step >= trainer.total_steps:
            console.print(f"the run in {run.folder} is at its end; it is tested once more")
        _announce(trainer)
        tested = trainer.train()
        if data.test:
            tested = trainer.test(data.test, "test", flip=config.test.flips)
    train_seconds = run.total("train_seconds") or math.inf  # 0 if a checkpoint says so
    wait_seconds = run.total("wait_seconds")
    timed = sum(r["images_per_s"] * r["train_seconds"] for r in run.records)  # by this process
    damaged = data.train.damaged
    result = {
        **_accuracy(tested),
        "parameters": count_parameters(model),
        **_protocol(config),
        "epochs": trainer.step / trainer.steps_per_epoch,
        "images_per_s": timed / train_seconds,
        "damaged": len(damaged),
        "run": str(run.folder),
    }
    run.finish(result)
    _show_result(
        f"{config.model.name} in {run.folder}, on {config.data.val}",
        result,
        {
            "waiting for data": f"{wait_seconds / train_seconds:.1%}",
            "minutes": f"{run.total('seconds') / 60:.1f}",
            **({"damaged, left out": f"{len(damaged):,} images"} if damaged else {}),
        },
    )
    return result


def evaluate(config: TrainConfig, given: Given) -> dict[str, Any]:
    """Tests model.weights on data.val; trains nothing and writes nothing."""
    device = pick_device(config.training)
    weights = _read_weights(config)
    config = adopt_checkpoint(config, given, weights)
    images, classes = load_test(config, weights, device)
    model = build_network(config, len(classes), device, hint=OTHER_CLASSES)
    _check_fit(config, model, device)
    normalize = _normalize(config, given, weights).to(device)
    precision = pick_precision(config, device).training.precision
    with commandline.progress() as progress:
        bar, clock = _Bar(progress), Clock()
        bar.begin("test", len(images.indices))
        setting = Setting(normalize, device, precision, bar.advance)
        counts = testing.evaluate(model, images, setting, flip=config.test.flips, clock=clock)
    if not math.isfinite(counts.loss):
        raise FailureError(
            f"the loss of {config.model.weights} on {config.data.val} is not finite: {DIVERGED}, "
            "or of other images"
        )
    result = {
        **_accuracy(counts),
        "parameters": count_parameters(model),
        **_protocol(config),
        "epochs": None,
        "images_per_s": counts.seen / clock.seconds,
        "run": None,
        "weights": config.model.weights,
        "data": config.data.val,
    }
    _show_result(f"{config.model.weights} on {config.data.val}", result, {})
    return result


def load_test(
    config: TrainConfig, weights: dict[str, Any], device: torch.device
) -> tuple[Images, list[str]]:
    """The images of data.val as the test shows them, and their classes.

    Raises:
        FailureError: the weights have learned others.
    """
    images, classes = load_test_data(config.data, config.test, device)
    learned = weights.get("classes", classes)
    check_same_classes(str(config.model.weights), learned, config.data.val, classes)
    return images, classes


def predict(config: TrainConfig, given: Given, picture: str) -> dict[str, Any]:
    """The five likeliest classes of one picture, by name."""
    device = pick_device(config.training)
    weights = _read_weights(config)
    config = adopt_checkpoint(config, given, weights)
    pixels = read_picture(Path(picture), view_window(config.data, config.test))
    classes = weights.get("classes") or _classes_of_foreign_weights(config, given)
    model = build_network(config, len(classes), device, hint=OTHER_CLASSES).eval()
    _check_fit(config, model, device)
    normalize = _normalize(config, given, weights)
    with torch.inference_mode():
        inputs = normalize(torch.from_numpy(pixels)[None]).to(device)
        scores = model(inputs).float().softmax(1)[0]
    if not torch.isfinite(scores).all():
        raise FailureError(
            f"what {config.model.weights} says of {picture} is not finite: {DIVERGED}"
        )
    likely = scores.topk(min(5, len(classes)))
    names = [readable_name(classes[place]) for place in likely.indices.tolist()]
    probabilities = likely.values.tolist()
    rows = [(name, f"{p:.1%}") for name, p in zip(names, probabilities, strict=True)]
    show_table(picture, ("class", "probability"), rows)
    return {"image": picture, "classes": names, "probabilities": probabilities}


def export(config: TrainConfig, given: Given, file: str) -> dict[str, Any]:
    """Writes model.weights as a file of another program; its ending says which."""
    path = Path(file)
    write = find_writer(path)
    weights = _read_weights(config)
    config = adopt_checkpoint(config, given, weights)
    classes = weights.get("classes") or _classes_of_foreign_weights(config, given)
    model = build_network(config, len(classes), torch.device("cpu"), hint=OTHER_CLASSES).eval()
    _check_fit(config, model, torch.device("cpu"))
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise FailureError(f"{config.model.weights} holds numbers that are not finite: {DIVERGED}")
    normalize = _normalize(config, given, weights)
    with console.status(f"writing {path}"):
        found = write(path, model, normalize, {"classes": classes, "view": view(config)})
    size = path.stat().st_size
    # Per channel, of pixels from 0 to 1; who loads the file elsewhere has to do the same.
    mean, std = (part.flatten(1).mean(1).tolist() for part in (normalize.mean, normalize.std))
    own = ", which is an average: each place has its own" if normalize.mean.shape[1] > 1 else ""
    rows = [
        ("file", str(path)),
        ("bytes", f"{size:,}"),
        ("", found),
        ("shown to it", _pixels_shown(config)),
        ("mean", " ".join(f"{value:.4f}" for value in mean) + own),
        ("deviation", " ".join(f"{value:.4f}" for value in std)),
    ]
    show_table(f"{config.model.name} of {config.model.weights}", ("", ""), rows)
    return {"export": file, "bytes": size, "note": found, "mean": mean, "std": std}


def _read_weights(config: TrainConfig) -> dict[str, Any]:
    """What model.weights says; where it does not say how images were shown to it, a convention."""
    if config.model.weights is None:
        raise UsageError("give the weights: --model.weights=FILE")
    if config.model.pretrained_head == "new":
        raise UsageError("model.pretrained_head=new is to train with: it has learned nothing yet")
    weights = read_weights(config.model.weights)
    if {"view", "normalize"} <= weights.keys():
        return weights
    name = weights["spec"]["name"] if "spec" in weights else config.model.name
    return {**conventional_view(name), **weights}


def adopt_checkpoint(config: TrainConfig, given: Given, weights: dict[str, Any]) -> TrainConfig:
    """The configuration with what `_read_weights` found, where no key was given for it."""
    found = {"data": weights["view"]}
    if "spec" in weights:
        found["model"] = {name: weights["spec"][name] for name in SPEC if name != "num_classes"}
    for section, values in found.items():
        free = {name: v for name, v in values.items() if f"{section}.{name}" not in given}
        config = replace(config, **{section: replace(getattr(config, section), **free)})
    if "convention" in weights:
        console.print(
            f"{config.model.weights} does not say how images were shown to it; by "
            f"{weights['convention']} convention, unless keys say otherwise: "
            f"{_pixels_shown(config)}, data.filter={config.data.filter}",
            soft_wrap=True,
        )
    return config


def _pixels_shown(config: TrainConfig) -> str:
    side = view_side(config.data, config.test)
    return f"{side} of {round(side / config.data.center_ratio)} pixels"


def _normalize(config: TrainConfig, given: Given, weights: dict[str, Any]) -> Normalize:
    normalize = Normalize(**weights["normalize"])
    # A recipe asks for what the checkpoint has learned by; the training file may be gone.
    is_asked_for = config.data.normalize == normalize.kind and "convention" not in weights
    if "data.normalize" in given and not is_asked_for:
        return build_normalize(config.data)
    side = view_side(config.data, config.test)
    is_one_size = normalize.mean.shape[1:] != (1, 1)
    if is_one_size and config.test.protocol == "multiscale":
        raise UsageError(
            f"{config.model.weights} subtracts a mean for each pixel of one size; "
            "test.protocol=multiscale has many"
        )
    if is_one_size and normalize.mean.shape[1:] != (side, side):
        raise UsageError(
            f"{config.model.weights} subtracts a mean of {normalize.mean.shape[2]} x "
            f"{normalize.mean.shape[1]} pixels (data.normalize=pixel_mean), data.resolution is "
            f"{side}; leave data.resolution out, or give another data.normalize"
        )
    return normalize


def _classes_of_foreign_weights(config: TrainConfig, given: Given) -> list[str]:
    if "data.val" in given:
        return open_file(config.data.val, "data.val").manifest.classes
    return list(ImageNetInfo().label_names())


def _accuracy(counts: Counts) -> dict[str, Any]:
    return {
        "top1": counts.top1,
        "top5": counts.top5,
        "loss": counts.loss,
        "images": counts.seen,
    }


def _protocol(config: TrainConfig) -> dict[str, Any]:
    many = config.test.protocol == "multiscale"
    return {
        "protocol": config.test.name,
        "resolution": view_side(config.data, config.test),
        "sides": list(short_sides(config.data, config.test)) if many else None,
    }


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _announce(trainer: Trainer) -> None:
    config, data = trainer.config, trainer.data
    parameters = count_parameters(trainer.model)
    console.print(
        f"{config.model.name}, {parameters:,} parameters, on {trainer.device}; "
        f"{len(data.train.indices):,} images to learn from, {len(data.val.indices):,} to validate; "
        f"steps {trainer.step:,} to {trainer.total_steps:,}; {trainer.run.folder}",
        soft_wrap=True,
    )


def _how_to_go_on(run: Run) -> str:
    checkpoint = run.last_checkpoint or "none yet"
    return f"Last checkpoint: {checkpoint}; go on with --run.resume={run.folder}"


def _show_result(title: str, result: Given, more: dict[str, str]) -> None:
    sides, speed = result["sides"] or [result["resolution"]], result["images_per_s"]
    facts = {
        "parameters": f"{result['parameters']:,}",
        **({} if result["epochs"] is None else {"epochs": f"{result['epochs']:g}"}),
        "top-1": f"{result['top1']:.2f} %",
        "top-5": "-" if result["top5"] is None else f"{result['top5']:.2f} %",
        "test": f"{result['protocol']} at {', '.join(map(str, sides))} pixels",
        "images": f"{result['images']:,}",
        "images/s": f"{speed:,.0f}" if speed > 10 else f"{speed:.1f}",
        **more,
    }
    show_table(title, ("", ""), list(facts.items()))


class _Bar(Display):
    """The loop's display for people: a bar for each pass, a line for each epoch."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None, note="")

    def begin(self, what: str, images: int) -> None:
        self.progress.reset(self.task, total=images, description=what)

    def advance(self, images: float) -> None:
        self.progress.advance(self.task, images)

    def look(self, counts: Counts) -> None:
        self.progress.update(self.task, note=f"loss {counts.loss:.3f}, top-1 {counts.top1:.1f} %")

    def end(self, record: Record) -> None:
        console.print(
            f"epoch {record['epoch']:3d}  "
            f"train {record['train_loss']:.3f} {record['train_top1']:5.1f} %  "
            f"val {record['val_loss']:.3f} {record['val_top1']:5.1f} %  "
            f"{record['images_per_s']:,.0f} images/s, "
            f"{record['wait_seconds'] / record['train_seconds']:.0%} waiting"
        )
