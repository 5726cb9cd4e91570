"""Predicts the test images with every model of the run, and writes results.json and tables; then flips.json."""

from functools import partial
from pathlib import Path

from aimfair.config import Config
from aimfair.evaluation.compare import Experiment, compare
from aimfair.evaluation.predictions import load_logits, write_predictions
from aimfair.evaluation.results import SCHEMA_VERSION, Results
from aimfair.methods import BIASED
from aimfair.report.tables import COLUMNS, print_table, save_tables
from aimfair.report.wording import percent, spread
from aimfair.run.directory import Run, model_step
from aimfair.run.steps import Assignment, Outputs, Step, in_one_task
from aimfair.stages import flips
from aimfair.stages.context import splits_of, write_logits
from aimfair.stages.finetune import require_chosen
from aimfair.stages.select import mask_of


def run(run: Run) -> None:
    config = run.config
    require_chosen(run)
    predictions = _steps(run)
    in_one_task(run, "evaluate", predictions)
    upstream = [step.name for step in predictions]
    upstream += [f"select/{seed}/{name}" for seed in config.seeds for name in _masked(config)]
    inputs = {
        "evaluate": config.evaluate.model_dump(exclude={"batch_size"}),
        "data": config.data,
        "title": config.title,
        "default_method": config.default_method,
        "schema_version": SCHEMA_VERSION,
        "upstream": [run.digest_of(step) for step in upstream],
    }
    if not run.is_done("evaluate", inputs, content=True):
        run.finish("evaluate", inputs, _evaluate(run) if run.ranks.leads else [])
    if run.ranks.leads:
        _print(Results.load(run.results))
    flips.run(run)


def _evaluate(run: Run) -> list[Path]:
    """Writes the predictions, the results and their tables; their paths."""
    config, splits = run.config, splits_of(run)
    logits = {
        name: [load_logits(run.logits(seed, name)) for seed in config.seeds] for name in (BIASED, *config.methods)
    }
    predicted = {name: [one.argmax(axis=1) for one in of_seeds] for name, of_seeds in logits.items()}
    density = {name: [mask_of(run, seed, name).density for seed in config.seeds] for name in _masked(config)}
    predictions = []
    for s, seed in enumerate(config.seeds):
        predictions.append(run.baseline(seed).with_name("predictions.csv"))
        write_predictions(predictions[-1], splits.test, {name: of[s] for name, of in predicted.items()})
    reads_groups = [name for name, method in config.methods.items() if method.reads_groups]
    results = compare(experiment(config), splits, predicted, density, logits, reads_groups)
    for caution in results.cautions:
        run.log.warn(caution)
    results.save(run.results)
    return [*predictions, *save_tables(results, run.path), run.results]


def _masked(config: Config) -> list[str]:
    """The methods that select weights."""
    return [name for name, method in config.methods.items() if method.kind == "tune"]


def experiment(config: Config) -> Experiment:
    """What an evaluation needs of the settings."""
    data = config.data
    return Experiment(
        config.title, config.seeds, config.default_method, {data.protected, *data.intersect_with}, config.evaluate
    )


def steps(run: Run) -> list[Step]:
    """The predictions, of test images and of pairs."""
    return [*_steps(run), *flips.steps(run)]


def _steps(run: Run) -> list[Step]:
    """The predictions of each model are a step of their own: changed metrics do not repeat them."""
    return [
        Step(f"evaluate/{seed}/{name}", (model_step(seed, name),), partial(_assign, run, seed, name))
        for seed in run.config.seeds
        for name in (BIASED, *run.config.methods)
    ]


def _assign(run: Run, seed: int, name: str) -> Assignment | None:
    config, step = run.config, f"evaluate/{seed}/{name}"
    inputs = {
        "data": config.data.of_training,
        "computation": config.model.computation,
        "batch_size": config.evaluate.batch_size,
        "upstream": run.digest_of(model_step(seed, name)),
    }
    return None if run.is_done(step, inputs) else Assignment({step: inputs}, partial(_predict, seed=seed, name=name))


def _predict(run: Run, *, seed: int, name: str) -> Outputs:
    path = run.logits(seed, name)
    write_logits(run, seed, name, splits_of(run).test, path, f"evaluate {seed} {name}")
    return {f"evaluate/{seed}/{name}": [path]}


def _print(results: Results) -> None:
    """The table of methods, for the terminal."""
    rows = [
        [
            name,
            "" if method.density is None else percent(method.density),
            *(spread(method.mean[metric], method.std[metric], unit="") for metric in COLUMNS),
            percent(method.of_mean_rates["worst_group_accuracy"], unit=""),
        ]
        for name, method in results.methods.items()
    ]
    print_table(["method", "tuned", *COLUMNS.values(), "seed-avg.\nworst"], rows, results.default_method)
    seeds = len(results.seeds)
    over = f"mean ± std of {seeds} seeds" if seeds > 1 else "one seed"
    print(f"Percent, {over}; seed-avg. worst: of seed-averaged accuracies, optimistic.")
