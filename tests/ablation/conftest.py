"""The run that all ablations vary."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def parent(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests do not change it: its ablations apart."""
    return Path(shutil.copytree(tiny / "run", tmp_path_factory.mktemp("runs") / "parent"))
