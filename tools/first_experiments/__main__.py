"""Measures what is missing in FOLDER, draws its figures, prints its tables. A run that was stopped continues."""

import argparse
from pathlib import Path

import torch

from aimfair.base.files import write_text
from tools.first_experiments import blocks, cost, coverage, prompts

EXPERIMENTS = {"blocks": blocks, "coverage": coverage, "cost": cost, "prompts": prompts}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.first_experiments", description=__doc__)
    parser.add_argument("what", choices=(*EXPERIMENTS, "all"))
    parser.add_argument("--to", type=Path, required=True, help="folder of the rows and figures")
    parser.add_argument("--faces", type=Path, help="folder of faces.csv: coverage of faces, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, experiment in EXPERIMENTS.items():
        if arguments.what in (name, "all"):
            experiment.run(arguments.to, arguments.faces)
            for line in experiment.tables(arguments.to):
                print(line)
            for file, drawn in experiment.figures(arguments.to).items():
                write_text(arguments.to / file, drawn)


if __name__ == "__main__":
    main()
