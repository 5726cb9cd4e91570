"""Predictions of every model of the run for the test images, and results.json from them."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from aimfair.config import BIASED
from aimfair.data.images import ImageSet
from aimfair.device import choose_device
from aimfair.evaluation.compare import compare
from aimfair.evaluation.counts import Integers
from aimfair.evaluation.results import Results
from aimfair.files import replace_file
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.training.models import load_model
from aimfair.training.predict import predict


def run(run: Run) -> None:
    config = run.config
    trained = [f"train/{seed}" for seed in config.seeds]
    masked = [name for name, method in config.methods.items() if method.kind == "tune"]
    tuned = [f"select/{seed}/{name}" for seed in config.seeds for name in masked]
    tuned += [f"finetune/{seed}/{name}" for seed in config.seeds for name in config.methods]
    inputs = {
        "evaluate": config.evaluate,
        "data": config.data,
        "model": config.model,
        "title": config.title,
        "default_method": config.default_method,
        "upstream": [run.digest_of(step) for step in trained + tuned],
    }
    if not run.is_done("evaluate", inputs):
        predicted = _predictions(run)
        density = {name: [ParameterMask.load(run.mask(seed, name)).density for seed in config.seeds] for name in masked}
        tables = []
        for s, seed in enumerate(config.seeds):
            tables.append(run.baseline(seed).with_name("predictions.csv"))
            _write_predictions(tables[-1], run.splits().test, {name: of[s] for name, of in predicted.items()})
        results = compare(config, run.splits(), predicted, density)
        for caution in results.cautions:
            run.log.warn(caution)
        results.save(run.results)
        run.finish("evaluate", inputs, [*tables, run.results])
    _print(Results.load(run.results))


def _predictions(run: Run) -> dict[str, list[Integers]]:
    """Method, the biased model first -> for each seed the predicted classes of the test images."""
    config, test = run.config, run.splits().test
    folders = {BIASED: [run.baseline(seed) for seed in config.seeds]}
    folders |= {name: [run.finetuned(seed, name) for seed in config.seeds] for name in config.methods}
    device = choose_device(config.device)
    with run.progress.task("evaluate", len(test) * len(config.seeds) * len(folders)) as task:
        return {
            name: [
                predict(
                    load_model(folder),
                    test,
                    config.model,
                    batch_size=config.evaluate.batch_size,
                    device=device,
                    task=task,
                    interrupt=run.interrupt,
                )
                for folder in of_seeds
            ]
            for name, of_seeds in folders.items()
        }


def _write_predictions(path: Path, test: ImageSet, predicted: Mapping[str, Sequence[int] | Integers]) -> None:
    """A row per test image: id, target, protected, and the class that each method predicts."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "target", "protected", *predicted])
        writer.writerows(zip(test.ids, test.target, test.protected, *predicted.values(), strict=True))


def _print(results: Results) -> None:
    """The table of methods, for the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = {"accuracy": "accuracy", "worst_group_accuracy": "worst group", "eo_mean": "EO", "group_std": "STD"}
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for heading in ("tuned", *columns.values()):
        table.add_column(heading, justify="right")
    for name, method in results.methods.items():
        table.add_row(
            Text(name, style="bold" if name == results.default_method else ""),
            "" if method.density is None else f"{method.density:.1%}",
            *(_spread(method.mean[metric], method.std[metric]) for metric in columns),
        )
    Console().print(table)


def _spread(mean: float, std: float) -> str:
    """In percent; one seed has no standard deviation."""
    return f"{100 * mean:.1f}" if math.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"
