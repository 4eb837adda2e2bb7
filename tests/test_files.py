"""A disk that is full, as /dev/full is: what is said, and that nothing is left."""

from pathlib import Path

import pytest
import torch

from resnet_ffcv.errors import FailureError
from resnet_ffcv.files import write_whole
from resnet_ffcv.runs import Run


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figures"
    write_whole(path, lambda file: file.write(b"1 2 3"))
    (tmp_path / ".figures.part").symlink_to("/dev/full")
    with pytest.raises(FailureError, match="figures could not be written: No space left on device"):
        write_whole(path, lambda file: file.write(b"4 5 6"))
    assert path.read_bytes() == b"1 2 3"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_and_the_log_say_that_the_disk_is_full(tmp_path: Path) -> None:
    run = Run(tmp_path, [])
    (tmp_path / "checkpoints/.last.part").symlink_to("/dev/full")
    with pytest.raises(FailureError, match="last could not be written: No space left on device"):
        run.save_checkpoint("last", {"weights": torch.zeros(100_000)})
    assert run.last_checkpoint is None
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(FailureError, match=r"log\.jsonl could not be written: No space left"):
        run.log({"epoch": 1, "step": 1})
    run.tensorboard.close()
