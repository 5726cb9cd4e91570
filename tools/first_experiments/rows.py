"""Rows of an experiment: measured once, kept as lines of JSON. And what the experiments measure of a model."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aimfair.data.images import ImageSet
from aimfair.evaluation.metrics import METRICS, count_predictions
from aimfair.training.predict import predict
from aimfair.training.settings import ModelSettings
from tools.premise_study.run import read

Values = npt.NDArray[np.float64]
Case = Mapping[str, Any]
Row = Mapping[str, Any]

CONFIDENCE = 0.95

WORST, ODDS = "worst_group_accuracy", "eo_mean"


def complete(path: Path, cases: Iterable[Case], measure: Callable[[Case], Row]) -> None:
    """Appends a row for each case that ``path`` lacks: the case and what is measured. So a run that was stopped
    continues."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {_key(row["case"]) for row in read(path)}
    with path.open("a", encoding="utf-8") as out:
        for case in cases:
            if _key(case) not in known:
                print(json.dumps({"case": case, **measure(case)}), file=out, flush=True)
                print(f"{path.stem}: {json.dumps(case)}", flush=True)


def _key(case: Case) -> str:
    return json.dumps(case, sort_keys=True)


def counts_of(model: nn.Module, images: ImageSet, settings: ModelSettings) -> list[Any]:
    """[A, Y, K] of :mod:`aimfair.evaluation.metrics`."""
    scores = predict(model, images, settings, batch_size=256, device=torch.device("cpu"))
    return count_predictions(images.target, images.protected, scores.argmax(axis=1), 2, 2).tolist()


def metric(name: str, counts: Sequence[Any]) -> float:
    return float(METRICS[name](np.asarray(counts)))
