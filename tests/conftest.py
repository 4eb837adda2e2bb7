"""Small real files to train on, written once a test run."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for write_datasets and train, which are no package

import write_datasets  # noqa: E402


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.beton and val.beton of 64 images each, of the sample."""
    folder = tmp_path_factory.mktemp("sample")
    write_datasets.main([f"--output.folder={folder}", "--writer.limit=64", "--writer.workers=1"])
    return folder
