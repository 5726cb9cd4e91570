"""What the tests of runs share."""

from pathlib import Path

import pytest

from aimfair import config_file
from aimfair.config import Config

DEMO = Path(config_file.__file__).parent / "configs" / "demo.yaml"


@pytest.fixture
def config() -> Config:
    return config_file.load(DEMO)
