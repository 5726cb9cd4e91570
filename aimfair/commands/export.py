"""``aimfair export``: one model of a run, in a folder with everything its user needs."""

import argparse
from pathlib import Path

from aimfair.base.errors import ConfigError
from aimfair.commands.settings import Overrides, add_quiet, add_run, refuse_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--method", metavar="NAME", help="which one, or biased (default: default_method of the run)")
    parser.add_argument("--seed", type=int, metavar="N", help="(default: the best one by validation accuracy)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="(default: export/METHOD-SEED in the run)")
    parser.add_argument("--no-onnx", action="store_true", help="without model.onnx, which needs aimfair[onnx]")
    parser.add_argument("--delta", action="store_true", help="with what the method changed of the biased model")
    parser.add_argument("--license", default="unknown", metavar="ID", help="for the model card, such as apache-2.0")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    add_quiet(parser)


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    refuse_overrides("export", overrides, "; it reads those of the run")
    if options.run is None:
        raise ConfigError("give --run DIR, a run that is evaluated")
    from aimfair.export.write import describe, export_run
    from aimfair.run.directory import Run

    config = Run.config_of(options.run)
    if config is None:
        raise ConfigError(f"{options.run}: there is no run; give --run DIR, a run that is evaluated")
    with Run.open(options.run, config, quiet=options.quiet) as run:
        to = export_run(
            run,
            method=options.method,
            seed=options.seed,
            to=options.to,
            with_onnx=not options.no_onnx,
            with_delta=options.delta,
            license=options.license,
            overwrite=options.overwrite,
        )
    print(describe(to))
    return 0
