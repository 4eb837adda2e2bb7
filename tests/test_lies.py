"""A few of the files that lie, of the thousands of `python -m benchmarks.reliability`."""

from pathlib import Path

import pytest

from benchmarks.reliability.lies import STOCK_EVERY, Case, try_case, write_weights
from benchmarks.reliability.mutating import Liar, write_seeds


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> list[Liar]:
    folder = tmp_path_factory.mktemp("seeds")
    return [Liar(path) for path in write_seeds(folder)]


def test_a_lie_is_told_and_taken_back(liars: list[Liar]) -> None:
    for number, liar in enumerate(liars * 20):
        manifest = liar.manifest.read_bytes() if liar.manifest.exists() else b""
        lie = liar.draw(number)
        undo = lie.tell(liar.path)
        told = liar.path.read_bytes() != liar.content or lie.manifest not in (None, manifest)
        undo()
        assert told, lie.words
        assert liar.path.read_bytes() == liar.content, lie.words
        assert manifest == (liar.manifest.read_bytes() if manifest else b""), lie.words


def test_files_that_lie_are_refused_by_name_or_read(liars: list[Liar], tmp_path: Path) -> None:
    write_weights(tmp_path)
    for number in range(1, 3 * len(liars)):
        if number % STOCK_EVERY:  # FFCV's decoders take seconds to compile
            case = Case(liars[number % len(liars)].path, number)
            words = try_case(case, liars[number % len(liars)], tmp_path / "weights.safetensors")
            assert not case.problems, words
