#!/usr/bin/env python3
"""Trains and tests an image classifier on .beton files.

python train.py                                        the sample, with the defaults below
python train.py --config rn_configs/rn34.yaml          a recipe; any key as --section.key=value
python train.py --run.resume=runs/NAME                 go on with a run that was stopped
python train.py --run.eval_only=true --model.weights=FILE --data.val=FILE
python train.py --model.weights=FILE --predict IMAGE   the five likeliest classes of one picture
python train.py --model.weights=FILE --export FILE     for other programs: .onnx, .pth, .safetensors
"""

from collections.abc import Sequence
from typing import Any

try:
    from resnet_ffcv import commandline
    from resnet_ffcv.config import TrainConfig
    from resnet_ffcv.errors import UsageError
except ModuleNotFoundError as error:
    hint = "run `make setup` once, then `source .venv/bin/activate`"
    raise SystemExit(f"error: {error.name} is not installed in this Python: {hint}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

FLAGS = {
    "predict IMAGE": "the likeliest classes of this picture, turned as EXIF says, by model.weights",
    "export FILE": "write model.weights as .onnx, .pth (torchvision's names) or .safetensors",
}

SHOWN = (  # how an image is shown to weights
    *("model.", "data.train", "data.val", "data.normalize", "data.resolution"),
    *("data.center_ratio", "data.filter", "test.resolution"),
)
USED = {  # keys that a task other than training makes use of
    "--predict": (*SHOWN, "training.device"),
    "--export": SHOWN,
    "run.eval_only": (
        *(*SHOWN, "run.eval_only", "data.num_workers", "data.verify", "data.max_", "test."),
        *("training.device", "training.precision"),
    ),
}


def main(argv: Sequence[str]) -> dict[str, Any]:
    arguments = commandline.parse(argv, TrainConfig, __doc__, FLAGS)
    config, given = arguments.config, arguments.given
    tasks = [
        *(f"--{flag}" for flag in arguments.flags),
        *(["run.eval_only"] if config.run.eval_only else []),
        *(["run.resume"] if config.run.resume is not None else []),
    ]
    if len(tasks) > 1:
        raise UsageError(f"{' and '.join(tasks)} are different things to do; give one of them")
    for task in USED.keys() & set(tasks):
        unused = [name for name in arguments.typed if not name.startswith(USED[task])]
        if unused:
            raise UsageError(f"{task} makes no use of {', '.join(unused)}; leave that out")
    # PyTorch takes seconds to import: not before the arguments are known to be right.
    from resnet_ffcv import jobs

    if "predict" in arguments.flags:
        return jobs.predict(config, given, arguments.flags["predict"])
    if "export" in arguments.flags:
        return jobs.export(config, given, arguments.flags["export"])
    if config.run.eval_only:
        return jobs.evaluate(config, given)
    if config.run.resume is not None:
        return jobs.resume(config.run.resume, given)
    return jobs.train(config)


if __name__ == "__main__":
    commandline.run_command(main)
