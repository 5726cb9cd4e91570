"""What the tests of runs share."""

from pathlib import Path

import pytest

from aimfair.config import Config
from aimfair.config import load as config_file

DEMO = Path(config_file.__file__).parents[1] / "configs" / "demo.yaml"


@pytest.fixture
def config() -> Config:
    return config_file.load(DEMO)
