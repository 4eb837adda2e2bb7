"""The run folder: its name, checkpoints that fit each other, its log for TensorBoard, pictures."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from saved import checkpoint, record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_ffcv import environment, jobs, runs
from resnet_ffcv.checkpoints import read_checkpoint
from resnet_ffcv.config import RunConfig, TrainConfig, TrainingConfig
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.opening import temporary_path
from resnet_ffcv.runs import Run

CPU = torch.device("cpu")


def create(folder: Path) -> Run:
    training = TrainingConfig(precision="fp32")
    config = TrainConfig(run=RunConfig(folder=str(folder)), training=training)
    return Run.create(runs.make_folder(config), config, CPU)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    if name not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_runs_of_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda _: "now")
    # As when another run makes the folder between a look and the making.
    monkeypatch.setattr(Path, "exists", lambda _: False)
    names = [runs.make_folder(TrainConfig()).name for _ in range(3)]
    assert names == ["resnet20-now", "resnet20-now-2", "resnet20-now-3"]


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        create(tmp_path / "run")


@pytest.mark.parametrize("kept", [0, 2])
def test_tensorboard_shows_the_log_and_nothing_that_a_resume_discarded(
    tmp_path: Path, kept: int
) -> None:
    run, records = create(tmp_path / "run"), [record(epoch, 10.0 * epoch) for epoch in range(1, 4)]
    for each in records:
        run.log(each)
    if kept:
        run.save_checkpoint("last", checkpoint(records[:kept]))
    run.tensorboard.flush()  # then it is killed
    assert scalars(run.folder, "val_top1") == [(10, 10.0), (20, 20.0), (30, 30.0)]

    again, _ = Run.reopen(run.folder, CPU, "fp32")
    assert again.records == records[:kept]
    again.log(record(kept + 1, 7.0))
    again.finish({})
    expected = [(10 * epoch, 10.0 * epoch) for epoch in range(1, kept + 1)]
    assert scalars(run.folder, "val_top1") == [*expected, (10 * (kept + 1), 7.0)]


def test_resuming_a_finished_run_leaves_tensorboards_folder_as_it_is(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.log(record(1, 10.0))
    run.save_checkpoint("last", checkpoint(run.records))
    run.finish({})
    before = list((run.folder / "tensorboard").iterdir())
    Run.reopen(run.folder, CPU, "fp32")[0].finish({})
    assert list((run.folder / "tensorboard").iterdir()) == before


def test_a_best_checkpoint_that_a_kill_left_out_is_written_by_the_resume(tmp_path: Path) -> None:
    run, records = create(tmp_path / "run"), [record(1, 10.0), record(2, 20.0)]
    run.save_checkpoint("best", checkpoint(records[:1]))
    run.save_checkpoint("last", checkpoint(records))  # the best, but killed before it is said
    Run.reopen(run.folder, CPU, "fp32")
    best = run.folder / "checkpoints" / "best"
    assert read_checkpoint(best).step == 20
    run.save_checkpoint("last", checkpoint([*records, record(3, 15.0)]))
    Run.reopen(run.folder, CPU, "fp32")
    assert read_checkpoint(best).step == 20


def test_another_place_that_a_run_goes_on_in_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path / "run")
    first = json.loads((run.folder / "environment.json").read_text())
    run.save_checkpoint("last", checkpoint([record(1, 10.0)]))
    Run.reopen(run.folder, CPU, "fp32")
    assert json.loads((run.folder / "environment.json").read_text()) == first
    monkeypatch.setattr(environment, "_commit", lambda: "f" * 40 + "-dirty")
    for _ in range(2):  # the second finds itself where it was
        Run.reopen(run.folder, CPU, "fp32")
    found = json.loads((run.folder / "environment.json").read_text())
    (resumed,) = found.pop("resumed")
    assert found == first
    assert resumed == {"step": 10, **first, "commit": "f" * 40 + "-dirty"}
    run.save_checkpoint("last", checkpoint([record(1, 10.0), record(2, 20.0)]))
    for precision in ("fp16", "bf16"):  # what the first of them made was lost: it leaves the list
        Run.reopen(run.folder, CPU, precision)
    found = json.loads((run.folder / "environment.json").read_text())
    assert found["resumed"] == [resumed, {**resumed, "step": 20, "precision": "bf16"}]
    (run.folder / "environment.json").write_text("[")
    with pytest.raises(FailureError, match=r"environment\.json cannot be read"):
        Run.reopen(run.folder, CPU, "fp32")


@pytest.mark.parametrize("name", ["$5_^$", "a$b", "[red]x", "{\\frac", "100%"])
def test_class_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "run")
    run.draw_batch(np.zeros((2, 4, 4, 3)), [name, "cat"])
    assert (run.folder / "batch.png").stat().st_size > 0
    figure = runs.draw_images(np.zeros((1, 4, 4, 3)), [name])
    assert figure.axes[0].get_title() == name


# Folders from somebody else, and two processes in one folder ----------------------------


def contents(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What would show that something was written: places, sizes and times."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (x.st_ino, x.st_size, x.st_mtime_ns) for path, x in found.items()}


def stopped_run(folder: Path) -> Run:
    run = create(folder)
    run.save_checkpoint("last", checkpoint([record(1, 10.0)]))
    return run


@pytest.mark.parametrize("name", [*runs.FILES, ".log.jsonl.part", "tensorboard", "checkpoints/x"])
def test_a_folder_with_a_link_that_leads_out_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = stopped_run(tmp_path / "run").folder
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    before = contents(run)
    config = TrainConfig(run=RunConfig(folder=str(run)))
    for begin in (
        lambda: runs.make_folder(config),
        lambda: jobs.resume(str(run), {"run.resume": str(run)}),
    ):
        with pytest.raises(FailureError, match=r"is a link that leads out of"):
            begin()
    assert victim.read_text() == "mine"
    assert contents(run) == before


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_log_that_became_a_link_is_not_written_through(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    run, victim = create(tmp_path / "run"), tmp_path / "victim"
    victim.write_text("mine")
    (run.folder / "log.jsonl").unlink()
    make(victim, run.folder / "log.jsonl")
    run.log(record(1, 10.0))
    assert victim.read_text() == "mine"
    assert json.loads((run.folder / "log.jsonl").read_text())["val_top1"] == 10.0


@pytest.mark.parametrize("name", ["checkpoints/last", "environment.json", "config.yaml"])
def test_a_pipe_in_a_runs_folder_is_one_line(tmp_path: Path, name: str) -> None:
    run = stopped_run(tmp_path / "run").folder
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises((FailureError, UsageError), match=name.rpartition("/")[2]):
        jobs.resume(str(run), {"run.resume": str(run), "training.device": "cpu"})


@pytest.mark.parametrize(
    "content",
    ["", "[", "[]", "3", '{"resumed": 3}', '{"resumed": [3]}', '{"resumed": [{"step": "x"}]}',
     '{"resumed": [{"step": -1}]}', '{"resumed": [{"step": 1e999}]}', "[" * 100_000,
     '{"a": ' * 100_000, "{" + " " * (1 << 20) + "}"],
)  # fmt: skip
def test_a_damaged_environment_is_one_line(tmp_path: Path, content: str) -> None:
    run = stopped_run(tmp_path / "run").folder
    (run / "environment.json").write_text(content)
    with pytest.raises(FailureError, match=r"environment\.json") as caught:
        Run.reopen(run, CPU, "fp32")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).touch()
    with pytest.raises(FailureError, match=r"File exists|Not a directory"):
        create(folder).log(record(1, 10.0))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run").folder
    parts = [temporary_path(run / name, "part") for name in runs.FILES]
    others = [run / ".notes.0123456789abcdef.part", run / ".log.jsonl.part"]
    for path in (*parts, *others):
        path.touch()
    Run.reopen(run, CPU, "fp32")
    assert not any(path.exists() for path in parts)
    assert all(path.exists() for path in others)


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    """A second lock in one process is refused as in two: it is of the open folder."""
    run = stopped_run(tmp_path / "run").folder
    before = contents(run)
    with (
        runs.hold(run),
        pytest.raises(FailureError, match=f"is training in {run}; wait until it ends, or stop it"),
    ):
        jobs.resume(str(run), {"run.resume": str(run)})
    assert contents(run) == before
    with runs.hold(run):  # it was given back
        pass
    with pytest.raises(FailureError, match="No such file"), runs.hold(tmp_path / "none"):
        pass
