"""Trains and tabulates: ``python -m tools.premise_study run main --to FOLDER``, then ``table`` in place of ``run``."""

import argparse
from pathlib import Path

from tools.premise_study.analysis import table
from tools.premise_study.designs import DESIGNS
from tools.premise_study.run import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.premise_study", description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("design", choices=tuple(DESIGNS))
    parser.add_argument("--to", type=Path, required=True, help="folder of the results, which are continued")
    parser.add_argument("--faces", type=Path, help="folder of faces.csv, for regimes of faces")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    design = DESIGNS[arguments.design]
    if arguments.what == "run":
        run(design, arguments.to, arguments.faces, arguments.jobs)
    for regime in design.regimes:
        for line in table(regime, arguments.to, design):
            print(line)


if __name__ == "__main__":
    main()
