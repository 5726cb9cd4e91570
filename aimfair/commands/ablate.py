"""``aimfair ablate``: varies a run and compares what comes out."""

import argparse
from dataclasses import fields
from functools import partial

from aimfair.base.errors import ConfigError
from aimfair.commands.settings import (
    FLAGS_FOR_SETTINGS,
    Overrides,
    add_overwrite_and_quiet,
    add_pool,
    add_run,
    check_pool,
    pool_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from aimfair.ablation.registry import ABLATIONS

    add_run(parser)
    add_overwrite_and_quiet(parser)
    add_pool(parser)
    parser.epilog = (
        f"Ablations: {'; '.join(f'{name}: {what}' for name, what in ABLATIONS.items())}. {FLAGS_FOR_SETTINGS}"
    )
    parser.add_argument("name", type=_name, choices=tuple(ABLATIONS), metavar="NAME", help=", ".join(ABLATIONS))
    parser.add_argument("--method", metavar="NAME", help="which method is varied (default: default_method)")
    parser.add_argument(
        "--values",
        metavar="A,B,...",
        help="the values to compare; docs/ablations.md lists them for each ablation. generators: settings of generate,"
        " 'steps=4;steps=8,guidance_scale=1.5'",
    )
    parser.add_argument("--lrs", metavar="A,B,...", help="density: learning rates; the best by validation is shown")
    parser.add_argument(
        "--density", metavar="SHARE", help="criteria: of all selections (default: the method's, or 0.1)"
    )
    parser.add_argument(
        "--margin", metavar="SHARE", help="generators: the loss that a faster setting may have at most (default: 0.02)"
    )
    parser.add_argument(
        "--features",
        metavar="DIR",
        help="generators: a CLIP or DINO model of transformers whose features compare the images, besides those of the"
        " biased models",
    )


def _name(word: str) -> str:
    from aimfair.ablation.registry import RENAMED

    if word in RENAMED:
        raise argparse.ArgumentTypeError(f"{word} is now called {RENAMED[word]}")
    return word


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    from aimfair.ablation.options import Options
    from aimfair.ablation.run import ablate
    from aimfair.config import load as config_file

    check_pool(options)
    config_file.require_known(overrides)
    if options.run is None:
        raise ConfigError("aimfair ablate: give --run DIR, the run that is varied")
    asked = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    page = ablate(
        options.name,
        options.run,
        asked,
        overrides,
        overwrite=options.overwrite,
        quiet=options.quiet,
        pool=partial(pool_of, options),
    )
    print(f"Page: {page}")
    return 0
