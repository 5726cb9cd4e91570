"""One small run from prompts to report, made once per test run and copied by the tests of stages, methods, ablations
and exports. Every name in its data set tries to be more than a name.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from aimfair.config import Config
from aimfair.data.decode import content_digest
from aimfair.generation import image_folder
from aimfair.generation.manifest import Manifest, file_name, write_manifest
from aimfair.run.directory import Run

TITLE = "Inks\n---\nlicense: mit\n# Heading <b>bold</b> ${jndi} [a](javascript:b) | x"
TARGET, PROTECTED = "class | [x](javascript:y)", "ink: <i>"
CLASSES = ("`ring` *x* | y", "~~bar~~ <script>alert(1)</script>")
VALUES = ("- green", "red http://evil.example @someone")
SIZE = 32
SEEDS = (7, 8)

GROUP_SIZES = {"train": (4, 20, 20, 4), "val": (6, 6, 6, 6), "test": (8, 10, 12, 10)}
"""Split -> images of the groups (class, ink) = (0, 0), (0, 1), (1, 0), (1, 1)."""

METHODS: dict[str, dict[str, Any]] = {
    "linear_probe": {"rule": "head_only", "batchnorm": "freeze"},
    "full": {"rule": "all"},
    "random": {"rule": "random", "density": 0.3},
    "aimfair": {"rule": "ratio", "criterion": "relative_difference", "density": 0.3},
    "erm": {"kind": "erm"},
    "synthetic": {"kind": "synthetic_only"},
    "both": {"kind": "real_and_synthetic"},
    "resampled": {"kind": "balanced_resampling"},
    "dro": {"kind": "group_dro", "step_size": 0.3},
    "jtt": {"kind": "jtt", "first_epochs": 1, "upweight": 3},
    "last_layer": {"kind": "last_layer_retrain"},
    "last_layer_synthetic": {"kind": "last_layer_retrain", "balanced_from": "synthetic"},
}

SETTINGS: dict[str, Any] = {
    "title": TITLE,
    "seeds": SEEDS,
    "device": "cpu",
    "threads": 1,
    "data": {"kind": "table", "target": TARGET, "protected": PROTECTED, "image_size": SIZE, "majority": [1, 0]},
    "prompts": {
        "template": "a handwritten {target} in {protected} ink, {contexts}",
        "per_group": 6,
        "targets": [["zero"], ["one"]],
        "protected": [["green"], ["red"]],
        "contexts": {
            "stroke": ["thin strokes", "medium strokes", "thick strokes"],
            "paper": ["on white paper", "on cream paper"],
        },
        "contexts_per_prompt": 2,
    },
    "generate": {
        "engine": "eager",
        "steps": 1,
        "guidance_scale": 1.0,
        "balanced_per_group": 6,
        "biased_total": 20,
    },
    "model": {
        "config": {
            "model_type": "resnet",
            "embedding_size": 4,
            "hidden_sizes": [4, 8],
            "depths": [1, 1],
            "layer_type": "basic",
        }
    },
    "train": {"epochs": 2, "batch_size": 16, "lr": 0.01},
    "sensitivity": {"batch_size": 8},
    "finetune": {"epochs": 1, "batch_size": 8, "lr": 0.03},
    "methods": METHODS,
    "default_method": "aimfair",
    "evaluate": {"replicates": 100},
}


def settings(photographs: Path, **sections: Any) -> Config:
    """Those of the run, with sections changed: of a mapping but the methods, the keys that are given."""
    values = SETTINGS | {"data": SETTINGS["data"] | {"root": str(photographs)}}
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) and name != "methods" else value
    return Config.model_validate(values)


def draw(number: int, y: int, a: int, width: int, height: int) -> Image.Image:
    """A ring or a bar in green or red, thick or thin, strong or faint."""
    generator = np.random.default_rng(number)
    rows, columns = np.indices((height, width)) - np.array([height, width]).reshape(2, 1, 1) / 2
    thickness, strength = generator.uniform(1, 6), generator.uniform(0.2, 1)
    shape = np.abs(np.hypot(rows, columns) - width / 4) < thickness if y == 0 else np.abs(rows) < thickness
    pixels = generator.integers(generator.integers(60, 220), 256, (height, width, 3)).astype(np.float64)
    pixels[shape] += strength * (np.array(((30, 140, 40), (200, 30, 30))[a]) - pixels[shape])
    return Image.fromarray(pixels.astype(np.uint8))


def write_photographs(root: Path) -> None:
    """112 images of 50 x 60 pixels, and their table."""
    root.mkdir()
    lines = [f'file,split,"{TARGET}","{PROTECTED}"']
    for split, sizes in GROUP_SIZES.items():
        for group, size in enumerate(sizes):
            for number in range(size):
                y, a = divmod(group, 2)
                name = f"{split}-{group}-{number}.png"
                draw(len(lines), y, a, 50, 60).save(root / name)
                lines.append(f'{name},{split},"{CLASSES[y]}","{VALUES[a]}"')
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def make(folder: Path) -> None:
    """Photographs and the run, ``folder / "run"``."""
    from aimfair.stages.pipeline import run_stages

    write_photographs(folder / "photographs")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about each other: they are not what is tested here
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with Run.open(folder / "run", settings(folder / "photographs"), quiet=True) as run:
            run_stages(run)


def replace_synthetic(run: Run) -> None:
    """Other synthetic images, as many in each group and set."""
    manifest = Manifest(run.synthetic)
    shutil.rmtree(run.synthetic / "images")
    (run.synthetic / "images").mkdir()
    records = []
    for record in manifest.records.values():
        image = draw(1000 + record.image, *record.group, SIZE, SIZE)
        records.append(record.model_copy(update={"file": file_name(record.image, content_digest(image))}))
        image.save(run.synthetic / records[-1].file)
    write_manifest(run.synthetic, records)
    run.finish("generate", {"drawn": True}, image_folder.outputs(run.synthetic))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of pytest's processes that asks for it makes, for all of them."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # every process has a folder in it
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
