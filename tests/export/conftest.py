"""A whole run, as small as one can be, of a data set whose every name tries to be more than a name."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimfair.config import Config
from aimfair.run.directory import Run
from aimfair.stages.pipeline import STAGES, run_stages

TITLE = "Inks\n---\nlicense: mit\n# Heading <b>bold</b> ${jndi} [a](javascript:b) | x"
TARGET, PROTECTED = "class | [x](javascript:y)", "ink: <i>"
CLASSES = ("`ring` *x* | y", "~~bar~~ <script>alert(1)</script>")
VALUES = ("- green", "red http://evil.example @someone")
SIZE = 32
SEEDS = (3, 7)


def config(root: Path) -> Config:
    return Config.model_validate(
        {
            "title": TITLE,
            "seeds": SEEDS,
            "device": "cpu",
            "threads": 1,
            "data": {
                "kind": "table",
                "root": root,
                "target": TARGET,
                "protected": PROTECTED,
                "image_size": SIZE,
                "majority": [1, 0],
            },
            "prompts": {
                "per_group": 3,
                "targets": [["zero"], ["one"]],
                "protected": [["green"], ["red"]],
                "contexts": {"stroke": ["thin strokes", "medium strokes", "thick strokes"]},
                "contexts_per_prompt": 1,
            },
            "generate": {"engine": "eager", "steps": 1, "balanced_per_group": 4, "biased_total": 16},
            "model": {
                "config": {
                    "model_type": "resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 16],
                    "depths": [1, 1],
                    "layer_type": "basic",
                }
            },
            "train": {"epochs": 3, "batch_size": 16, "lr": 0.01},
            "sensitivity": {"batch_size": 8},
            "finetune": {"epochs": 1, "batch_size": 8},
            "methods": {"full": {"rule": "all"}, "random": {"rule": "random", "density": 0.3}},
            "default_method": "random",
            "evaluate": {"replicates": 200},
        }
    )


def draw(number: int, y: int, a: int, width: int, height: int) -> Image.Image:
    """A ring or a bar in green or red."""
    generator = np.random.default_rng(number)
    rows, columns = np.indices((height, width)) - np.array([height, width]).reshape(2, 1, 1) / 2
    shape = np.abs(np.hypot(rows, columns) - width / 4) < 4 if y == 0 else np.abs(rows) < 4
    pixels = generator.integers(180, 256, (height, width, 3))
    pixels[shape] = ((30, 140, 40), (200, 30, 30))[a]
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 images of 50 x 60 pixels, and their table."""
    root = tmp_path_factory.mktemp("inks")
    lines = [f'file,split,"{TARGET}","{PROTECTED}"']
    for split, sizes in {"train": (4, 20, 20, 4), "val": (6, 6, 6, 6), "test": (8, 10, 12, 10)}.items():
        for group, size in enumerate(sizes):
            for number in range(size):
                y, a = divmod(group, 2)
                name = f"{split}-{group}-{number}.png"
                draw(len(lines), y, a, 50, 60).save(root / name)
                lines.append(f'{name},{split},"{CLASSES[y]}","{VALUES[a]}"')
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("run") / "inks"
        with Run.open(path, config(photographs), quiet=True) as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about each other: they are not what is tested here
            run_stages(run, STAGES)
    return path


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """The finished run, open; exports go to other folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = Run.config_of(finished)
    assert settings is not None
    with Run.open(finished, settings, quiet=True) as opened:
        yield opened
