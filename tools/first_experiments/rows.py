"""Rows of an experiment: measured once, kept as lines of JSON."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aimfair.evaluation.metrics import METRICS
from tools.premise_study.run import read

Case = Mapping[str, Any]
Row = Mapping[str, Any]

ODDS = "eo_mean"


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


def metric(name: str, counts: Sequence[Any]) -> float:
    return float(METRICS[name](np.asarray(counts)))
