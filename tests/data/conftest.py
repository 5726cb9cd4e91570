"""Small data sets in the layouts of the real ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimfair.base.log import Log


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


class Warnings(Log):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        super().__init__(None)
        self.messages: list[str] = []

    def warn(self, message: str, **fields: object) -> None:
        self.messages.append(message)


@pytest.fixture
def log() -> Warnings:
    return Warnings()


def save_image(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> None:
    """An image that no other number gives, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
