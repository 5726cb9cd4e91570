"""Compares ways to select and to tune on validation digits alone; the demo's default is chosen by its table.

    python -m tools.selection_study RUN rows.jsonl            # computes what is missing in rows.jsonl
    python -m tools.selection_study RUN rows.jsonl --table    # prints it as a table

RUN is a finished run of the demo. For each of its seeds its biased model, sensitivity and synthetic images are used
again; what is judged is the fine-tuned model on every validation digit, drawn in both inks. Test digits are not read.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from aimfair.config import Config
from aimfair.config.load import load
from aimfair.data import digits
from aimfair.data.images import ImageSet
from aimfair.evaluation.metrics import METRICS, count_predictions
from aimfair.generation.manifest import Manifest
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.loop import Training
from aimfair.training.models import load_model
from aimfair.training.predict import predict

JUDGED_BY = ("accuracy", "worst_group_accuracy", "eo_mean")

METHODS: list[tuple[dict[str, Any], tuple[float, ...]]] = [
    ({"rule": "all"}, (0.002, 0.003, 0.005)),
    ({"rule": "all", "batchnorm": "freeze"}, (0.002,)),
    ({"rule": "head_only", "batchnorm": "freeze"}, (0.01, 0.03, 0.1)),
    ({"rule": "random", "density": 0.1}, (0.01, 0.03, 0.05)),
    ({"rule": "random", "density": 0.3}, (0.01, 0.02)),
    ({"rule": "intersection", "granularity": "tensor", "bias_density": 0.887, "domain_density": 0.887}, (0.002, 0.004)),
    ({"rule": "ratio", "criterion": "relative_difference", "density": 0.1}, (0.02, 0.03, 0.04)),
    ({"rule": "ratio", "criterion": "relative_difference", "density": 0.3}, (0.007, 0.01, 0.015)),
    ({"rule": "ratio", "criterion": "relative_difference", "density": 0.5}, (0.006,)),
    ({"rule": "ratio", "criterion": "relative_difference", "density": 0.3, "batchnorm": "freeze"}, (0.01,)),
    ({"rule": "ratio", "criterion": "relative_difference", "density": 0.3, "granularity": "row"}, (0.01,)),
    ({"rule": "ratio", "criterion": "difference", "density": 0.1}, (0.02, 0.03, 0.05)),
    ({"rule": "ratio", "criterion": "difference", "density": 0.3}, (0.01, 0.02)),
    ({"rule": "ratio", "criterion": "norm_ratio", "density": 0.1}, (0.03,)),
    ({"rule": "top_k", "criterion": "relative_difference", "density": 0.1}, (0.02,)),
    ({"rule": "top_k", "criterion": "relative_difference", "density": 0.3}, (0.01,)),
    ({"rule": "top_k", "criterion": "difference", "density": 0.1}, (0.005,)),
    ({"rule": "top_k", "criterion": "difference", "density": 0.3}, (0.003, 0.005)),
    ({"rule": "top_k", "criterion": "difference", "density": 0.3, "granularity": "row"}, (0.005,)),
    ({"rule": "top_k", "criterion": "fisher", "density": 0.1}, (0.005,)),
    ({"rule": "budget", "criterion": "difference", "density": 0.1}, (0.02,)),
    ({"rule": "budget", "criterion": "relative_difference", "density": 0.3}, (0.01,)),
]
"""What is compared: settings of a method, and learning rates around the best one of a first look."""


def cases() -> list[dict[str, Any]]:
    """The settings of each method at each of its learning rates."""
    return [{**method, "lr": lr} for method, rates in METHODS for lr in rates]


def judge(config: Config, run: Path, seed: int, case: dict[str, Any], data: dict[str, ImageSet]) -> dict[str, float]:
    """Density and metrics, in [0, 1], of one method with one seed."""
    folder = run / "seeds" / str(seed)
    model = load_model(folder / "baseline", config.model)
    probe = Sensitivity.load(folder / "sensitivity.safetensors", model)
    method = Tune(**case)
    mask = select_mask(probe, "study", method, seed)
    settings = method.training_settings(config.train, config.finetune)
    Training(model, data["balanced"], data["validation"], settings, config.model, seed, mask).fit()
    judged = data["judged"]
    predicted = predict(model, judged, config.model, batch_size=256, device=torch.device("cpu")).argmax(axis=1)
    counts = count_predictions(judged.target, judged.protected, predicted, len(config.data.majority), 2)
    return {"density": mask.density, **{name: float(METRICS[name](counts)) for name in JUDGED_BY}}


def compute(run: Path, file: Path, seeds: list[int] | None) -> None:
    config = load(run / "config.yaml")
    data = {
        "balanced": Manifest(run / "synthetic").load("balanced", config.data.image_size, config.data.fit),
        "validation": digits.biased(config.data, "validation"),
        "judged": digits.balanced(config.data, "validation"),
    }
    known = {json.dumps([row["seed"], row["case"]]) for row in rows(file)}
    with file.open("a") as out:
        for case, seed in itertools.product(cases(), seeds or config.seeds):
            if json.dumps([seed, case]) not in known:
                row = {"seed": seed, "case": case, **judge(config, run, seed, case, data)}
                print(json.dumps(row), file=out, flush=True)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(file: Path) -> str:
    """Mean and standard deviation over seeds in percent, best worst-group accuracy first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows(file):
        groups.setdefault(json.dumps(row["case"]), []).append(row)
    lines = []
    for text, members in groups.items():
        case = json.loads(text)
        lr = case.pop("lr")
        density = statistics.mean(row["density"] for row in members)
        columns = [[100 * row[name] for row in members] for name in JUDGED_BY]
        spread = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c) if len(c) > 1 else 0:.1f}" for c in columns]
        words = ", ".join(
            f"{key} {value}" if key in ("bias_density", "domain_density") else str(value) for key, value in case.items()
        )
        lines.append((statistics.mean(columns[1]), f"| {words} | {density:.1%} | {lr} | {' | '.join(spread)} |"))
    head = "| rule | tuned | lr | accuracy | worst group | EO |\n|---|---:|---:|---:|---:|---:|"
    return "\n".join([head, *(line for _, line in sorted(lines, key=lambda item: -item[0]))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seeds", help="only these, separated by commas")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.rows))
        return
    torch.set_num_threads(1)  # several of these side by side are faster than one with more threads
    compute(arguments.run, arguments.rows, [int(s) for s in arguments.seeds.split(",")] if arguments.seeds else None)


if __name__ == "__main__":
    main()
