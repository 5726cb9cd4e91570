"""The script that trains the shipped model: what it writes loads, and one seed gives one model."""

import subprocess
import sys

import pytest

from aimfair.diffusion.model import fingerprint

pytestmark = pytest.mark.slow


def train(out, *options):
    short = ("--vae-steps", "2", "--steps", "2", "--rounds", "1", "--batch", "4")
    command = [sys.executable, "-m", "tools.digits_diffusion.train", "--out", str(out), *short, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return fingerprint(out)


def test_one_seed_gives_one_model(tmp_path):
    first = train(tmp_path / "first")
    assert train(tmp_path / "again") == first
    assert train(tmp_path / "other", "--seed", "1") != first


def test_it_loads_as_the_pipelines_model(tmp_path):
    import torch

    from aimfair.diffusion.text_to_image import Diffusion
    from aimfair.generation.settings import GenerateSettings

    train(tmp_path / "model")
    diffusion = Diffusion(tmp_path / "model", GenerateSettings(engine="eager", steps=2), torch.device("cpu"))
    images = diffusion.sample(["a handwritten seven in green ink, thick strokes"], [1]).images
    assert images.shape == (1, 32, 32, 3)
