"""``aimfair run`` and ``aimfair demo``, and a verb for each stage of a run."""

import argparse
from typing import TYPE_CHECKING

from aimfair.base.errors import ConfigError
from aimfair.commands.settings import (
    FLAGS_FOR_SETTINGS,
    Overrides,
    add_config,
    add_overwrite_and_quiet,
    add_pool,
    add_run,
    check_pool,
    pool_of,
    read_settings,
)

if TYPE_CHECKING:
    from aimfair.run.directory import Run

STAGES = {
    "prompts": "write the prompts of every group",
    "generate": "make the synthetic images",
    "train": "train the biased model on the biased real images",
    "sensitivity": "accumulate its gradients on real, biased and fair images",
    "tune": "choose learning rates, epochs and selections by trials, as many as tune.trials says",
    "select": "choose the weights that each method tunes",
    "finetune": "tune them on the fair synthetic images, and train the other methods",
    "evaluate": "compute the metrics of every model on the test images",
    "report": "write report.html",
}
"""The verbs that do one stage, with their help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_overwrite_and_quiet(parser)
    add_pool(parser)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_overwrite_and_quiet(parser)
    add_pool(parser)
    parser.epilog = FLAGS_FOR_SETTINGS
    parser.set_defaults(config="demo")


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    from aimfair.base.interrupt import Interrupt
    from aimfair.base.ranks import Ranks, rank_here
    from aimfair.run.directory import Run
    from aimfair.stages.pipeline import STAGES, run_stages

    check_pool(options)
    rank_here()  # before anything is read or loaded
    config, directory = read_settings(options.config, options.run, overrides)
    if options.verb == "tune" and not config.tune.trials:
        raise ConfigError("tune.trials: found 0, expected how many trials each method gets, as in --tune.trials 16")
    whole = options.verb in ("run", "demo")
    with (
        Ranks.join(Interrupt()) as ranks,
        Run.open(directory, config, overwrite=options.overwrite, quiet=options.quiet, ranks=ranks) as run,
        pool_of(options, run) as run.pool,
    ):
        run_stages(run, tuple(STAGES) if whole else (options.verb,))
        if ranks.leads:
            with run.apart():
                if whole or options.verb == "report":
                    _print_headline(run)
                if whole:
                    _print_patch(run)
    return 0


def _print_headline(run: "Run") -> None:
    """The main result in a sentence, and the path of the report."""
    from aimfair.evaluation.results import Results
    from aimfair.report.wording import headline

    print(headline(Results.load(run.results)))
    print(f"Report: {run.report}")


def _print_patch(run: "Run") -> None:
    """How much of the biased model the default method changed, if it tuned a part, and how to get that as a patch: of
    the seed that ``aimfair export`` takes."""
    from aimfair.export.write import choose
    from aimfair.methods import BIASED, Tune
    from aimfair.selective.delta import Delta
    from aimfair.training.models import WEIGHTS

    config = run.tuned_config()
    method = config.methods[config.default_method]
    if not isinstance(method, Tune) or method.rule == "all":
        return
    choice = choose(run)
    before, after = run.model(choice.seed, BIASED) / WEIGHTS, choice.folder / WEIGHTS
    delta = Delta.between(before, after, reversible=False)
    print(
        f"Patch: {choice.method} changes {delta.nnz:,} of {delta.numel:,} values of the biased model (seed"
        f" {choice.seed}), the others keep every bit; {delta.nbytes / 1e6:,.2f} MB, the model has"
        f" {before.stat().st_size / 1e6:,.2f}. Write it: aimfair export --run {run.path} --delta"
    )
