"""One method minus another of another run on the same test images, paired by seed and by image."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.seeds import generator
from aimfair.evaluation import fairness, intervals
from aimfair.evaluation.counts import Integers, PairedPredictions
from aimfair.evaluation.deciding import deciding_images
from aimfair.evaluation.predictions import column
from aimfair.evaluation.results import Difference, Results

PREDICTIONS = "predictions.csv"
"""What the stage evaluate leaves beside the models of a seed."""


@dataclass(frozen=True)
class Predictions:
    """What one method says at every seed.

    Attributes:
        ids: of the N images. target, protected: int64 [N].
        predicted: int64 [S, N].
    """

    ids: tuple[str, ...]
    target: Integers
    protected: Integers
    predicted: Integers

    @classmethod
    def load(cls, run: Path, seeds: list[int], method: str) -> "Predictions":
        """Reads the predictions of a run.

        Raises:
            AimfairError: a file is missing or lacks the method.
        """
        ids: tuple[str, ...] = ()
        labels: list[Integers] = []
        predicted: list[Integers] = []
        for seed in seeds:
            path = run / "seeds" / str(seed) / PREDICTIONS
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [
                        (row["id"], row["target"], row["protected"], row[column(method)])
                        for row in csv.DictReader(file)
                    ]
                names, *columns = zip(*rows, strict=True)
                *labels, said = np.array(columns, dtype=np.int64)
            except (OSError, KeyError, ValueError) as error:
                raise AimfairError(
                    f"{path}: no predictions of {method!r} ({type(error).__name__}); remove it and do:"
                    f" aimfair evaluate --run {run}"
                ) from error
            ids = tuple(names)
            predicted.append(said)
        return cls(ids, labels[0], labels[1], np.stack(predicted))


def difference(mine: Predictions, other: Predictions, results: Results) -> dict[str, Difference]:
    """Metric -> the first minus the second, with the intervals that ``results`` ask for.

    Raises:
        AimfairError: they are not of the same images.
    """
    if mine.ids != other.ids:
        raise AimfairError("the runs of this ablation have different test images; make it anew with --overwrite")
    shape = len(results.target_names), len(results.protected_names)
    models = np.concatenate([mine.predicted, other.predicted])
    paired = PairedPredictions.of(mine.target, mine.protected, models, *shape, mine.ids)
    seeds = len(mine.predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fairness.UndefinedMetricWarning)  # the cautions of the results say it
        counts = _counts(mine, other, models, shape)
        observed = fairness.overall(counts)
        chunks = [
            fairness.overall(drawn)
            for drawn in intervals.resample(paired, results.replicates, generator("evaluate", "bootstrap"))
        ]
    found = {}
    for metric in fairness.METRICS:
        replicates = np.concatenate([chunk[metric] for chunk in chunks], axis=-1)
        per_seed = observed[metric][:seeds] - observed[metric][seeds:]
        resampled = (replicates[:seeds] - replicates[seeds:]).mean(axis=0)
        found[metric] = Difference(
            mean=per_seed.mean().item(),
            over_images=tuple(intervals.percentile(resampled, results.confidence).tolist()),
            over_seeds=tuple(intervals.student_t(per_seed, results.confidence).tolist()),
            deciding_images=deciding_images(metric, counts),
        )
    return found


def _counts(mine: Predictions, other: Predictions, models: Integers, shape: tuple[int, int]) -> Integers:
    """[A, Y, K, 2 S]."""
    targets, protected_values = shape
    counts = np.zeros((protected_values, targets, targets, len(models)), dtype=np.int64)
    for m, said in enumerate(models):
        np.add.at(counts[..., m], (mine.protected, mine.target, said), 1)
    return counts
