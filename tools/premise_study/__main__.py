"""Trains, tabulates and draws. ``python -m tools.premise_study run main --to FOLDER`` continues what is in FOLDER."""

import argparse
from pathlib import Path

from tools.premise_study import choices
from tools.premise_study.analysis import by_rate, rate_table, regrets, table
from tools.premise_study.designs import DESIGNS
from tools.premise_study.figures import map_of
from tools.premise_study.run import run

BY_RATE = ("full", "random", "aimfair", "within_tensors", "paper", "linear_probe", "mixed")
"""Methods whose trials are listed by learning rate: those of which each has one model."""

WHAT = "map: an SVG of all the designs that are given; choices: other ways to choose trials, of all of them"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.premise_study", description=__doc__)
    parser.add_argument("what", choices=("run", "table", "map", "choices"), help=WHAT)
    parser.add_argument("designs", nargs="+", choices=tuple(DESIGNS))
    parser.add_argument("--to", type=Path, required=True, help="folder of the results")
    parser.add_argument("--faces", type=Path, help="folder of faces.csv, for regimes of faces")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    designs = [DESIGNS[name] for name in arguments.designs]
    if arguments.what == "map":
        print(map_of(designs, arguments.to), end="")
        return
    if arguments.what == "choices":
        print("\n".join(choices.table(designs, arguments.to)))
        return
    for design in designs:
        if arguments.what == "run":
            run(design, arguments.to, arguments.faces, arguments.jobs)
        for regime in design.regimes:
            if design.rates:
                print("\n".join(rate_table(regime, arguments.to, design)))
                continue
            for line in table(regime, arguments.to, design):
                print(line)
            masked = [name for name in BY_RATE if name in design.methods]
            for line in by_rate(regime, arguments.to, design, masked):
                print(line)
            listed = ", ".join(f"{name} {value:.1f}" for name, value in regrets(regime, arguments.to, design).items())
            print(f"Regret of choosing trials without group labels, points of worst group: {listed}.\n")


if __name__ == "__main__":
    main()
