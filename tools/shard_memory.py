"""Memory per process of a ViT-L that several processes hold together.

    python -m tools.shard_memory FOLDER --make
    torchrun --nproc-per-node 2 -m -- tools.shard_memory FOLDER

Weights are those of a ViT-L/16 of transformers but for its position embeddings: images of 32 x 32 pixels, so that a CPU
can compute it and activations take nothing. FOLDER gets the model, 1.2 GB, and what is made of it. Without torchrun one
process does the same.
"""

import argparse
import threading
import time
from pathlib import Path

import numpy as np
import torch

from aimfair.base.interrupt import Interrupt
from aimfair.base.ranks import Ranks
from aimfair.data.images import ImageSet
from aimfair.selective.whole_statistics import load_shards, save_whole
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model, load_sharded, save_model
from aimfair.training.processes import Processes
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import DistributedSettings, FinetuneSettings, ModelSettings, SensitivitySettings
from tools.memory_study import SIZES, resident

MODEL = ModelSettings(config={"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZES["large"]})
CPU = torch.device("cpu")


def images(count: int) -> ImageSet:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(pixels, labels, labels, tuple(map(str, range(count))))


def gigabytes() -> float:
    """Memory of this process, without pages of files."""
    return resident("RssAnon") / 1e9


class Report:
    """Prints, for each step, the largest memory since the one before, less that of an empty process."""

    def __init__(self, ranks: Ranks):
        self._ranks, self._empty, self._peak = ranks, gigabytes(), 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, gigabytes())
            time.sleep(0.02)

    def __call__(self, step: str) -> None:
        peaks = self._ranks.gather(f"{self._peak - self._empty:.2f}")
        if self._ranks.leads:
            print(f"{step}: {', '.join(peaks)} GB", flush=True)
        self._peak = 0.0
        self._ranks.meet()


def main(folder: Path) -> None:
    with Ranks.join(Interrupt()) as ranks:
        ranks.connect(CPU, 60)
        processes = Processes(ranks, DistributedSettings(strategy="fsdp2"))
        start = folder / "model"
        report, data = Report(ranks), images(8 * ranks.size)

        model = load_sharded(start, MODEL, CPU) if processes.sharded else load_model(start)
        report("weights")
        settings = SensitivitySettings(batch_size=2 * ranks.size, batches=2)
        probe = measure_sensitivity(model, dict.fromkeys(SOURCES, data), settings, MODEL, seed=0, processes=processes)
        report("sensitivity, 24 bytes per weight")
        if processes.sharded:
            save_whole(probe, folder / "statistics", model, write=ranks.leads)
            del probe
            probe = load_shards(folder / "statistics", model)
            report("statistics written and read")
        mask = probe.select("ratio", density=0.1)
        del probe  # or its memory would count in the next step
        report("selection of 10%")
        tuning = FinetuneSettings(epochs=1, batch_size=2 * ranks.size, state="compact")
        training = Training(model, data, data, tuning, MODEL, 0, mask=mask, processes=processes)
        training.fit()
        report("training of 10%, compact state")
        save_model(model, folder / "tuned")
        report("model written")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true", help="write the model, and nothing else")
    options = parser.parse_args()
    if options.make:
        save_model(build_model(MODEL, 2, 0), options.folder / "model")
    else:
        main(options.folder)
