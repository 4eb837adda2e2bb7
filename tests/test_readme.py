"""The README's example runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import stock

ROOT = Path(__file__).parent.parent


def test_the_example_of_a_stock_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    y, x = np.mgrid[0:90, 0:120]
    images = [
        np.stack([2 * x, 2 * y, x + y + place], 2).astype(np.uint8)[: 60 + place % 30]
        for place in range(70)
    ]
    stock.write(tmp_path / "ffcv.beton", images, "jpg", 90)
    stock.write(tmp_path / "dct.beton", images, "dct", 90)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    names: dict[str, object] = {}
    exec(code, names)
    means = []
    for loader in (names["by_ffcv"], names["by_us"]):
        ((found, labels),) = [(a.clone(), b.clone()) for a, b in loader]  # type: ignore[attr-defined]
        assert found.shape == (64, 224, 224, 3)
        assert len(set(labels.flatten().tolist())) == 64
        means.append(found.float().mean().item())
    torch.set_num_threads(threads)
    assert abs(means[0] - means[1]) < 12  # other windows of the same images
