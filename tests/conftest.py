"""What tests of several files share: small real files to train on, and folders of odd images."""

import io
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for write_datasets and train, which are no package

import write_datasets  # noqa: E402

# No test asserts a time: a busy machine fails none. (The import above also comes before FFCV's
# first Loader, after which Python 3.11 fails to parse what pytest imports for its summary.)
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.beton and val.beton of 64 images each, of the sample."""
    folder = tmp_path_factory.mktemp("sample")
    write_datasets.main([f"--output.folder={folder}", "--writer.limit=64", "--writer.workers=1"])
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder({"train/a/1.png": bytes, ...})` writes the files and returns their folder."""

    def make(files: Mapping[str, bytes], name: str = "source") -> Path:
        for place, content in files.items():
            target = tmp_path / name / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return tmp_path / name

    return make


@pytest.fixture
def noise() -> Callable[..., bytes]:
    """`noise(seed, width, height, format, **options)`: a file of random pixels."""

    def make(seed: int, width: int, height: int, kind: str = "PNG", **options: object) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind, **options)
        return out.getvalue()

    return make
