"""Fixtures every test may use; each area keeps its own beside its tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the open ECG excerpts; the test skips where they are absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ECG_REAL_DATA", default))
    if not (folder / "README.md").is_file():
        pytest.skip("no real ECG excerpts: set ECG_REAL_DATA to the folder that holds them")
    return folder
