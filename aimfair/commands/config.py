"""``aimfair config``: the settings that a command line results in."""

import argparse

from aimfair.commands.settings import Overrides, add_config, read_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--keys", action="store_true", help="list every setting with type, default and meaning")


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    from aimfair.config import load as config_file

    if options.keys:
        print(config_file.reference())
    else:
        config, _ = read_settings(options.config, options.run, overrides)
        print(config_file.dump(config), end="")
    return 0
