"""The README's examples run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import stock

ROOT = Path(__file__).parent.parent


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The examples in Python, in a folder with the files that they read."""
    y, x = np.mgrid[0:90, 0:120]
    images = [
        np.stack([2 * x, 2 * y, x + y + place], 2).astype(np.uint8)[: 60 + place % 30]
        for place in range(70)
    ]
    stock.write(tmp_path / "ffcv.beton", images, "jpg", 90)
    stock.write(tmp_path / "dct.beton", images, "dct", 90)
    monkeypatch.chdir(tmp_path)
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_example_of_our_loader(examples: list[str]) -> None:
    names: dict[str, object] = {}
    exec(examples[0], names)
    assert names["images"].shape == (64, 224, 224, 3)  # type: ignore[attr-defined]
    assert names["labels"].shape == (64,)  # type: ignore[attr-defined]
    assert names["state"]["epoch"] == 1  # type: ignore[index]


def test_the_example_of_a_stock_loader(examples: list[str]) -> None:
    threads = torch.get_num_threads()
    names: dict[str, object] = {}
    exec(examples[1], names)
    means = []
    for loader in (names["by_ffcv"], names["by_us"]):
        ((found, labels),) = [(a.clone(), b.clone()) for a, b in loader]  # type: ignore[attr-defined]
        assert found.shape == (64, 224, 224, 3)
        assert len(set(labels.flatten().tolist())) == 64
        means.append(found.float().mean().item())
    torch.set_num_threads(threads)
    assert abs(means[0] - means[1]) < 12  # other windows of the same images
