"""The domain gap between styles of emoji beside the gap of the bias: trains on one style, tests on all.

python -m tools.premise_gap --seeds 100 200

The test images of all styles show the same people, drawn in the same places.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from aimfair.commands.settings import BUNDLED
from aimfair.config import Config
from aimfair.config.load import load
from aimfair.data import emoji
from aimfair.data.settings import Style
from aimfair.evaluation.metrics import METRICS, count_predictions
from aimfair.training.loop import Training
from aimfair.training.models import build_model
from aimfair.training.predict import predict

STYLES: tuple[Style, ...] = get_args(Style)

SHOWN = ("accuracy", "worst_group_accuracy", "eo_mean")


def rows(config: Config, ratios: Sequence[float], seeds: Sequence[int]) -> Iterator[str]:
    """Of a table: style and minority ratio of training, style of the test, means of :data:`SHOWN` in percent."""
    for style in STYLES:
        for ratio in ratios:
            found: dict[str, list[list[float]]] = {other: [] for other in STYLES}
            for seed in seeds:
                for other, values in _measure(config, style, ratio, seed).items():
                    found[other].append(values)
            for other, of_seeds in found.items():
                means = " | ".join(f"{100 * statistics.mean(column):.1f}" for column in zip(*of_seeds, strict=True))
                yield f"| {style} | {ratio:.2g} | {other} | {means} |"


def _measure(config: Config, style: Style, ratio: float, seed: int) -> dict[str, list[float]]:
    """Style of the test -> :data:`SHOWN`. Training sets have one size whatever the ratio."""
    data = config.data.model_copy(update={"style": style, "minority_ratio": ratio, "train_images": 600})
    splits = emoji.load(data)
    model = build_model(config.model, len(splits.target_names), seed)
    Training(model, splits.train, splits.validation, config.train, config.model, seed, name="train").fit()
    found: dict[str, list[float]] = {}
    for other in STYLES:
        test = emoji.load(data.model_copy(update={"style": other})).test
        logits = predict(model, test, config.model, batch_size=256, device=torch.device("cpu"))
        counts = count_predictions(test.target, test.protected, logits.argmax(axis=1), *splits.shape)
        found[other] = [float(METRICS[name](counts)) for name in SHOWN]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1 / 9, 1.0])
    arguments = parser.parse_args()
    config = load(BUNDLED / "premise.yaml", {})
    print("| trained on | minority ratio | tested on | accuracy | worst group | equalized odds |")
    print("|---|---:|---|---:|---:|---:|")
    for row in rows(config, arguments.ratios, arguments.seeds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
