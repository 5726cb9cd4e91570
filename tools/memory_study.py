"""Measures what a ViT-L-size model takes: sensitivity, selection and selective tuning against full tuning with AdamW.

    python -m tools.memory_study [--images 4] [--pixels 64] [--size large|base|tiny]

Every row is a process of its own, on the CPU with one thread, and its figure the most memory that was resident in it at
any time (VmHWM, of Linux), mapped files included. All load the same model folder with random weights and work on the
same images; "full" is plain PyTorch: transformers' model, torch.optim.AdamW over all weights. The exit status is 1 if a
stage of selective tuning takes more than its budget, 14 bytes per weight and half a GiB for everything else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from aimfair.data.images import ImageSet
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.execution import prepare
from aimfair.training.feed import Normalize
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import FinetuneSettings, ModelSettings, SensitivitySettings

SIZES: dict[str, dict[str, Any]] = {
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256},
}

ROWS = (
    ("nothing", "process with the model loaded"),
    ("full", "full fine-tuning, torch.optim.AdamW"),
    ("full_checkpointing", "full fine-tuning, torch.optim.AdamW, checkpointing"),
    ("sensitivity_signed", "sensitivity, statistics: signed"),
    ("sensitivity_all", "sensitivity, statistics: all"),
    ("select_0.01", "selection of 1%"),
    ("select_0.1", "selection of 10%"),
    ("finetune_0.01", "fine-tuning of 1%"),
    ("finetune_0.1", "fine-tuning of 10%"),
    ("finetune_0.1_checkpointing", "fine-tuning of 10%, checkpointing"),
)
"""What is measured, in an order in which each finds what it reads, and in words."""

BUDGETED = ("sensitivity_signed", "select_0.01", "select_0.1", "finetune_0.01", "finetune_0.1")
"""The rows that have to stay within :func:`budget`."""

STEPS = 2
"""Batches of each source, and steps of each tuning: optimizer states are there from the first on."""


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--row", choices=[name for name, _ in ROWS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = make_model(options, Path(folder))
        print(f"{weights / 1e6:.0f}M weights ({4 * weights / 2**30:.2f} GiB), batches of {options.images} images of")
        print(f"{options.pixels} x {options.pixels}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
        print(f"budget of selective tuning: {budget(weights) / 2**30:.2f} GiB\n")
        over = []
        print("| | peak GiB | seconds |\n|---|---|---|")
        for name, words in ROWS:
            arguments = ["--row", name, "--folder", folder, "--images", str(options.images)]
            command = [sys.executable, "-m", __spec__.name, *arguments, "--pixels", str(options.pixels)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            result = json.loads(done.stdout.splitlines()[-1])
            if name in BUDGETED and result["bytes"] > budget(weights):
                over.append(words)
            print(f"| {words} | {result['bytes'] / 2**30:.2f} | {result['seconds']:.0f} |", flush=True)

    if over:
        sys.exit(f"over the budget: {', '.join(over)}")


def budget(weights: int) -> int:
    """Bytes: weights, and two statistics of each or their gradients and state; libraries, activations and one spare
    tensor of each kind. Full tuning with AdamW takes 16 for each weight."""
    return 14 * weights + 2**29


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """The model and its images, and the folder of the model in processes that measure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="in a batch")
    parser.add_argument("--pixels", type=int, default=64, help="along each side of an image")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def make_model(options: argparse.Namespace, folder: Path) -> int:
    """A folder ``model`` with random weights; how many they are."""
    config = {"model_type": "vit", "image_size": options.pixels, "patch_size": 16, **SIZES[options.size]}
    model = build_model(ModelSettings(config=config), 2, 100)
    save_model(model, folder / "model")
    return sum(parameter.numel() for parameter in model.parameters())


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Does one row and says what it took."""
    start = time.monotonic()
    what, _, rest = options.row.partition("_")
    model = load_model(options.folder / "model")
    settings = ModelSettings(checkpointing="checkpointing" in rest)
    work = {"nothing": lambda *_: None, "full": full, "sensitivity": sensitivity, "select": select, "finetune": tune}
    work[what](model, settings, rest, options)
    return {"bytes": resident(), "seconds": time.monotonic() - start}


def full(model: torch.nn.Module, settings: ModelSettings, _: str, options: argparse.Namespace) -> None:
    prepare(model, settings)  # checkpointing alone has a meaning for what calls the model itself
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    train, normalize = images(options, 1), Normalize(settings, torch.device("cpu"))
    model.train()
    for step in range(STEPS):
        batch = slice(step * options.images, (step + 1) * options.images)
        scores = model(normalize(train.images[batch])).logits
        F.cross_entropy(scores, torch.from_numpy(train.target[batch])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def sensitivity(model: torch.nn.Module, settings: ModelSettings, kept: str, options: argparse.Namespace) -> None:
    sources = {name: images(options, seed) for seed, name in enumerate(SOURCES)}
    how = SensitivitySettings.model_validate({"batch_size": options.images, "statistics": kept})
    measure_sensitivity(model, sources, how, settings, seed=1).save(options.folder / f"{kept}.safetensors")


def select(model: torch.nn.Module, _: ModelSettings, density: str, options: argparse.Namespace) -> None:
    probe = Sensitivity.load(options.folder / "signed.safetensors", model)
    method = Tune(rule="ratio", density=float(density))
    select_mask(probe, "ratio", method, seed=1).save(options.folder / f"{density}.safetensors")


def tune(model: torch.nn.Module, settings: ModelSettings, rest: str, options: argparse.Namespace) -> None:
    density = rest.partition("_")[0]
    mask = ParameterMask.load(options.folder / f"{density}.safetensors", model)
    how = FinetuneSettings(lr=1e-5, epochs=1, batch_size=options.images)
    checkpoint = Checkpoint(options.folder / "tuned", 0)  # one after every step
    Training(model, images(options, 1), images(options, 2), how, settings, 1, mask, checkpoint=checkpoint).fit()
    save_model(model, options.folder / "tuned")


def images(options: argparse.Namespace, seed: int) -> ImageSet:
    rng, count = np.random.default_rng(seed), STEPS * options.images
    pixels = rng.integers(0, 256, (count, options.pixels, options.pixels, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 2, np.zeros(count, np.int64), tuple(map(str, range(count))))


def resident(name: str = "VmHWM") -> int:
    """Bytes of this process in memory: ``VmHWM``, at most so far; ``RssAnon``, now, without pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"this system does not tell {name}; the study runs on Linux")


if __name__ == "__main__":
    main()
