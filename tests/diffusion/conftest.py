"""Variants of the small models."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def unknown(model: Path, tmp_path: Path) -> Path:
    """The small Stable Diffusion, as a class that has no family here."""
    folder = Path(shutil.copytree(model, tmp_path / "unknown"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionPAGPipeline"))
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder for the models of the tests: 4 channels to 2 x 2 pixels."""
    from tests.diffusion.tiny_models import small_decoder  # imports diffusers

    return small_decoder(tmp_path_factory.mktemp("decoder"), latent_channels=4, levels=2)
