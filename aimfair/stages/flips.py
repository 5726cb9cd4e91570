"""Predicts the held-out pairs with every model of the run, and writes flips.json: a part of the stage evaluate."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aimfair.evaluation.compare import TIMES
from aimfair.evaluation.flips import SCHEMA_VERSION, Flips, measure
from aimfair.evaluation.predictions import load_logits
from aimfair.generation.manifest import ImageRecord, Manifest
from aimfair.generation.plan import HELD_OUT
from aimfair.methods import BIASED
from aimfair.report.wording import flips_headline
from aimfair.run.directory import Run, model_step
from aimfair.run.steps import Assignment, Outputs, Step, in_one_task
from aimfair.stages.context import splits_of, synthetic_of, write_logits


def run(run: Run) -> None:
    config = run.config
    if not config.generate.held_out_pairs:
        if run.ranks.leads:
            run.flips.unlink(missing_ok=True)  # of other settings
        return
    predictions = steps(run)
    in_one_task(run, "evaluate pairs", predictions)
    inputs = {
        "evaluate": config.evaluate.model_dump(include={"confidence", "replicates"}),
        "data": config.data,
        "default_method": config.default_method,
        "schema_version": SCHEMA_VERSION,
        "upstream": [run.digest_of(step.name) for step in predictions],
    }
    if not run.is_done("flips", inputs, content=True):
        run.finish("flips", inputs, [_measure(run)] if run.ranks.leads else [])
    if run.ranks.leads:
        print(flips_headline(Flips.load(run.flips), config.evaluate.small_group))


def steps(run: Run) -> list[Step]:
    """The predictions of each model; none without held-out pairs."""
    if not run.config.generate.held_out_pairs:
        return []
    return [
        Step(f"flips/{seed}/{name}", (model_step(seed, name),), partial(_assign, run, seed, name))
        for seed in run.config.seeds
        for name in (BIASED, *run.config.methods)
    ]


def pairs_of(records: Iterable[ImageRecord]) -> tuple[list[ImageRecord], npt.NDArray[np.int64]]:
    """The images of held-out pairs, in the order of the manifest; and int64 [P, A], their places, pair by pair."""
    held = [record for record in records if HELD_OUT in record.sets]
    places: dict[int, dict[int, int]] = {}
    for place, record in enumerate(held):
        assert record.pair is not None
        places.setdefault(record.pair, {})[record.a] = place
    return held, np.array([[of_pair[a] for a in sorted(of_pair)] for _, of_pair in sorted(places.items())])


def _assign(run: Run, seed: int, name: str) -> Assignment | None:
    config, step = run.config, f"flips/{seed}/{name}"
    inputs = {
        "image_size": config.data.image_size,
        "fit": config.data.fit,
        "computation": config.model.computation,
        "batch_size": config.evaluate.batch_size,
        "upstream": [run.digest_of(model_step(seed, name)), run.digest_of("generate")],
    }
    return None if run.is_done(step, inputs) else Assignment({step: inputs}, partial(_predict, seed=seed, name=name))


def _predict(run: Run, *, seed: int, name: str) -> Outputs:
    path = run.logits_of_pairs(seed, name)
    write_logits(run, seed, name, synthetic_of(run, HELD_OUT), path, f"evaluate pairs {seed} {name}")
    return {f"flips/{seed}/{name}": [path]}


def _measure(run: Run) -> Path:
    config, splits = run.config, splits_of(run)
    held, places = pairs_of(Manifest(run.synthetic).records.values())
    target = np.array([held[first].y for first in places[:, 0]])
    predicted = {
        name: [load_logits(run.logits_of_pairs(seed, name)).argmax(axis=1)[places] for seed in config.seeds]
        for name in (BIASED, *config.methods)
    }
    classes = len(splits.target_names)
    Flips(
        protected=TIMES.join((config.data.protected, *config.data.intersect_with)),
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        seeds=list(config.seeds),
        default_method=config.default_method,
        confidence=config.evaluate.confidence,
        replicates=config.evaluate.replicates,
        pairs=np.bincount(target, minlength=classes).tolist(),
        methods=measure(target, predicted, classes, config.evaluate),
    ).save(run.flips)
    return run.flips
