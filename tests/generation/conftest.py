"""Small models."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(models: dict[str, Path]) -> Path:
    """A Stable Diffusion of a few thousand random weights."""
    return models["stable_diffusion"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family, by its name."""
    from tests.generation.tiny_models import FAMILIES, save  # imports diffusers, which most tests do without

    folder = tmp_path_factory.mktemp("models")
    return {name: save(build, folder / name) for name, build in FAMILIES.items()}
