"""A small finished run of digits, made once, that all ablations vary."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = {
    "seeds": "7,8",
    "threads": "1",
    "generate.engine": "eager",
    "generate.steps": "1",
    "generate.guidance_scale": "1.0",
    "generate.balanced_per_group": "6",
    "generate.biased_total": "20",
    "prompts.per_group": "6",
    "data.train_images": "200",
    "model.config": "{model_type: resnet, embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1], layer_type: basic}",
    "train.epochs": "1",
    "finetune.epochs": "1",
    "finetune.batch_size": "8",
    "sensitivity.batch_size": "8",
    "evaluate.replicates": "100",
}


def aimfair(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "aimfair", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests do not change it: its ablations apart."""
    folder = tmp_path_factory.mktemp("runs") / "parent"
    flags = [part for key, value in SETTINGS.items() for part in (f"--{key}", value)]
    done = aimfair("demo", "--run", str(folder), "--quiet", *flags)
    assert done.returncode == 0, done.stderr
    return folder
