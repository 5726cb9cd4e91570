"""What every model of the run says of the test images, and results.json and tables from it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from aimfair.base.device import choose_device
from aimfair.base.files import replace_file
from aimfair.data.images import ImageSet
from aimfair.evaluation.compare import compare
from aimfair.evaluation.counts import Integers
from aimfair.evaluation.logits import load_logits, save_logits
from aimfair.evaluation.predictions import column
from aimfair.evaluation.results import SCHEMA_VERSION, Results
from aimfair.evaluation.tables import COLUMNS, percent, save_tables, spread
from aimfair.methods.choose import kind_of
from aimfair.methods.method_settings import BIASED
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.training.models import load_model
from aimfair.training.predict import predict


def run(run: Run) -> None:
    config = run.config
    models = [(seed, name) for seed in config.seeds for name in (BIASED, *config.methods)]
    _predict(run, models)
    masked = [name for name, method in config.methods.items() if method.kind == "tune"]
    steps = [_step(*model) for model in models]
    steps += [f"select/{seed}/{name}" for seed in config.seeds for name in masked]
    inputs = {
        "evaluate": config.evaluate.model_dump(exclude={"batch_size"}),
        "data": config.data,
        "title": config.title,
        "default_method": config.default_method,
        "schema_version": SCHEMA_VERSION,
        "upstream": [run.digest_of(step) for step in steps],
    }
    if not run.is_done("evaluate", inputs):
        logits = {
            name: [load_logits(run.logits(seed, name)) for seed in config.seeds] for name in (BIASED, *config.methods)
        }
        predicted = {name: [one.argmax(axis=1) for one in of_seeds] for name, of_seeds in logits.items()}
        density = {name: [ParameterMask.load(run.mask(seed, name)).density for seed in config.seeds] for name in masked}
        tables = []
        for s, seed in enumerate(config.seeds):
            tables.append(run.baseline(seed).with_name("predictions.csv"))
            _write_predictions(tables[-1], run.splits().test, {name: of[s] for name, of in predicted.items()})
        reads_groups = [name for name, method in config.methods.items() if kind_of(method).reads_groups]
        results = compare(config, run.splits(), predicted, density, logits, reads_groups)
        for caution in results.cautions:
            run.log.warn(caution)
        results.save(run.results)
        run.finish("evaluate", inputs, [*tables, *save_tables(results, run.path), run.results])
    _print(Results.load(run.results))


def _step(seed: int, name: str) -> str:
    """What one model says of the test images is a step of its own: metrics can change without predicting anew."""
    return f"evaluate/{seed}/{name}"


def _predict(run: Run, models: Sequence[tuple[int, str]]) -> None:
    """The logits of these models, each a seed and a method, that are not there yet."""
    config = run.config
    todo = []
    for seed, name in models:
        made_by = f"train/{seed}" if name == BIASED else f"finetune/{seed}/{name}"
        inputs = {
            "data": config.data.of_training,
            "computation": config.model.computation,
            "batch_size": config.evaluate.batch_size,
            "upstream": run.digest_of(made_by),
        }
        if not run.is_done(_step(seed, name), inputs):
            todo.append((seed, name, inputs))
    if not todo:
        return
    device, test = choose_device(config.device), run.splits().test
    with run.progress.task("evaluate", len(test) * len(todo)) as task:
        for seed, name, inputs in todo:
            logits = predict(
                load_model(run.baseline(seed) if name == BIASED else run.finetuned(seed, name), config.model),
                test,
                config.model,
                batch_size=config.evaluate.batch_size,
                device=device,
                task=task,
                interrupt=run.interrupt,
            )
            save_logits(run.logits(seed, name), logits)
            run.finish(_step(seed, name), inputs, [run.logits(seed, name)])


def _write_predictions(path: Path, test: ImageSet, predicted: Mapping[str, Sequence[int] | Integers]) -> None:
    """A row per test image: id, target, protected, further attributes, and the class that each method predicts."""
    attributes = {f"attribute {name}": values for name, values in test.attributes.items()}
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "target", "protected", *attributes, *map(column, predicted)])
        writer.writerows(
            zip(test.ids, test.target, test.protected, *attributes.values(), *predicted.values(), strict=True)
        )


def _print(results: Results) -> None:
    """The table of methods, for the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("method", vertical="bottom", overflow="fold")
    for heading in ("tuned", *COLUMNS.values(), "seed-avg.\nworst"):
        table.add_column(heading, justify="right", vertical="bottom")
    for name, method in results.methods.items():
        table.add_row(
            Text(name, style="bold" if name == results.default_method else ""),
            "" if method.density is None else f"{method.density:.1%}",
            *(spread(method.mean[metric], method.std[metric]) for metric in COLUMNS),
            percent(method.of_mean_rates["worst_group_accuracy"]),
        )
    seeds = len(results.seeds)
    over = f"mean ± std of {seeds} seeds" if seeds > 1 else "one seed"
    console = Console()
    console.print(table)
    console.print(Text(f"Percent, {over}; seed-avg. worst: of seed-averaged accuracies, it flatters.", style="dim"))
