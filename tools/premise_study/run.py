"""Trains what is missing: trials of every method's settings on some replicates, the chosen ones on others."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aimfair.base.errors import AimfairError, DivergedError
from aimfair.data.images import ImageSet
from aimfair.evaluation.metrics import METRICS, count_predictions
from aimfair.training.predict import predict
from aimfair.training.settings import ModelSettings
from aimfair.tuning.choice import choose
from aimfair.tuning.trials import OfSeed, Point, Trial
from tools.premise_study.domains import Regime, images_of
from tools.premise_study.methods import METHODS, State, Workshop

Row = dict[str, Any]
"""A tuned model: method, values, replicate, and its confusion counts on synthetic, validation and test images."""

BIASED = "biased"


@dataclass(frozen=True)
class Design:
    """
    Attributes:
        methods: keys of METHODS. trials: of each. tuning: replicates that choose. final: those that are reported.
        rates: learning rates, all of which are reported with the other values as given; nothing is chosen then.
    """

    regimes: tuple[Regime, ...]
    methods: tuple[str, ...]
    trials: int
    tuning: int
    final: int
    rates: tuple[float, ...] = ()

    def at_rates(self, name: str) -> list[dict[str, Any]]:
        """The values of a method at each of :attr:`rates`."""
        return [{**METHODS[name].trials(1)[0], "lr": rate} for rate in self.rates]


def run(design: Design, folder: Path, faces: Path | None, jobs: int) -> None:
    """Every regime in turn. What is in ``folder`` is not done again, so a run that was stopped continues."""
    for regime in design.regimes:
        if not design.rates:
            tried = {name: METHODS[name].trials(design.trials) for name in design.methods}
            _parallel(regime, folder, faces, jobs, [(replicate, False, tried) for replicate in range(design.tuning)])
            chosen = {name: [values] for name, values in chosen_values(regime, folder, design).items()}
        else:
            chosen = {name: design.at_rates(name) for name in design.methods}
        final = range(design.tuning, design.tuning + design.final)
        _parallel(regime, folder, faces, jobs, [(replicate, True, {BIASED: [{}], **chosen}) for replicate in final])


def _parallel(regime: Regime, folder: Path, faces: Path | None, jobs: int, units: Sequence[Any]) -> None:
    """Each unit is the last arguments of :func:`_unit`. ``jobs``: processes; 1: in this one."""
    start = time.monotonic()

    def report(number: int, models: int) -> None:
        text = f"{regime.name}: {number} of {len(units)} replicates, {models} models"
        print(f"{text}, {time.monotonic() - start:.0f} s", flush=True)

    if jobs == 1:
        for number, unit in enumerate(units, 1):
            report(number, _unit(regime, folder, faces, *unit))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("forkserver"), initializer=_alone) as pool:
        work = [pool.submit(_unit, regime, folder, faces, *unit) for unit in units]
        for number, one in enumerate(as_completed(work), 1):
            report(number, one.result())


def _alone() -> None:
    torch.set_num_threads(1)


def _unit(
    regime: Regime,
    folder: Path,
    faces: Path | None,
    replicate: int,
    final: bool,
    todo: dict[str, list[dict[str, Any]]],
) -> int:
    """Appends the rows of one replicate that are missing; their number."""
    path = folder / regime.name / f"{'final' if final else 'trials'}-{replicate}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {key_of(row) for row in read(path)}
    missing = [
        (name, values)
        for name, all_values in todo.items()
        for values in all_values
        if key_of({"method": name, "values": values}) not in known
    ]
    if not missing:
        return 0
    # full tuning is where several others begin: by its learning rate and epochs, those that share it follow it
    missing.sort(key=lambda one: (one[1].get("lr", 0), one[1].get("epochs", 0)))
    shop = Workshop(regime, replicate, images_of(regime, replicate, faces), final)
    place = None
    with path.open("a", encoding="utf-8") as out:
        for name, values in missing:
            if (now := (values.get("lr"), values.get("epochs"))) != place:
                shop.forget()
                place = now
            print(json.dumps(_row(shop, name, values)), file=out, flush=True)
    return len(missing)


def _row(shop: Workshop, name: str, values: dict[str, Any]) -> Row:
    row: Row = {"method": name, "values": values, "replicate": shop.replicate}
    start = time.process_time()
    try:
        state = shop.biased if name == BIASED else METHODS[name].run(shop, values)
        seconds = time.process_time() - start
        model = shop.model(state)
        images = shop.images
        sets = {"test": images.test, "validation": images.validation, "judge": images.judge}
        counts = {of: counts_of(model, part, shop.settings) for of, part in sets.items()}
    except (DivergedError, AimfairError) as error:
        return {**row, "failed": str(error)}
    return {**row, **counts, "change": _distance(state, shop.biased), "seconds": round(seconds, 2)}


def counts_of(model: nn.Module, images: ImageSet, settings: ModelSettings) -> list[Any]:
    """[A, Y, K] of :mod:`aimfair.evaluation.metrics`."""
    scores = predict(model, images, settings, batch_size=256, device=torch.device("cpu"))
    counts: list[Any] = count_predictions(images.target, images.protected, scores.argmax(axis=1), 2, 2).tolist()
    return counts


def _distance(state: State, start: State) -> float:
    floating = [name for name, one in start.items() if one.is_floating_point()]
    change = sum(float((state[name] - start[name]).double().square().sum()) for name in floating)
    return float((change / sum(float(start[name].double().square().sum()) for name in floating)) ** 0.5)


# -- rows --------------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """The rows of a file. The last line of a process that was killed is left out, and removed."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def key_of(row: Row) -> str:
    return json.dumps([row["method"], row["values"]], sort_keys=True)


def rows_of(regime: Regime, folder: Path, which: str) -> Iterator[Row]:
    """``which``: trials or final."""
    for path in sorted((folder / regime.name).glob(f"{which}-*.jsonl")):
        yield from read(path)


def trials_of(regime: Regime, folder: Path, design: Design) -> dict[str, list[Row]]:
    """:func:`key_of` a trial -> its rows, of the tuning replicates in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows_of(regime, folder, "trials"):
        if row["replicate"] < design.tuning:
            found.setdefault(key_of(row), []).append(row)
    return found


def chosen_values(regime: Regime, folder: Path, design: Design) -> dict[str, dict[str, Any]]:
    """Of each method the values that ``aimfair tune`` would choose: see :func:`aimfair.tuning.choice.choose`."""
    found, by_key = {}, trials_of(regime, folder, design)
    for name in design.methods:
        tried = METHODS[name].trials(design.trials)
        trials = [trial_of(number, values, by_key[key_of({"method": name, "values": values})])
                  for number, values in enumerate(tried)]  # fmt: skip
        best = choose(trials, None)
        if best is None:
            raise AimfairError(f"{regime.name}: every trial of {name} failed")
        found[name] = tried[best.number]
    return found


def trial_of(number: int, values: dict[str, Any], rows: Sequence[Row]) -> Trial:
    """What :func:`aimfair.tuning.choice.choose` reads of a trial: its rows, of all tuning replicates."""
    if failed := [row["failed"] for row in rows if "failed" in row]:
        return Trial(number=number, values=values, state="failed", reason=failed[0])
    seeds = [
        OfSeed(
            synthetic=row["judge"],
            accuracy=float(METRICS["accuracy"](np.asarray(row["validation"]))),
            change=row["change"],
            curve=list[Point](),
        )
        for row in rows
    ]
    return Trial(number=number, values=values, state="complete", seeds=seeds)
