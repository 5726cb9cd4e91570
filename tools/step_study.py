"""Measures steps of a masked optimizer on a ViT-L-size model: inside the backward pass against after it.

    python -m tools.step_study [--images 4] [--pixels 64] [--size large|base|tiny] [--density 0.1] [--steps 4]

MaskedAdamW with compact state under a random mask, on the CPU with one thread. Memory is the most that was resident
from the loaded model on (VmHWM, of Linux), in a process of its own for each figure, whose allocator returns freed
tensors to the system. Times are processor seconds of the fastest step, passes included; both ways alternate in one
process.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW
from aimfair.training.models import load_model
from tools.memory_study import make_model, resident, study_parser

MAX_NORM = 1.0


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--density", type=float, default=0.1, help="share of the weights that is selected")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--measure", choices=["after", "inside", "times"], help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--clip", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = make_model(options, Path(folder))
        print(
            f"{weights / 1e6:.0f}M weights ({4 * weights / 2**30:.2f} GiB), {options.density:.0%} selected, passes of"
        )
        print(f"{options.images} images of {options.pixels} x {options.pixels}, torch {torch.__version__}\n")
        print("| step | GiB after, inside the pass | seconds after, inside |\n|---|---|---|")
        for passes, clip in itertools.product((1, 2), (False, True)):
            case = ["--folder", folder, "--passes", str(passes), *["--clip"] * clip]
            (after,), (inside,), seconds = (measured(what, case) for what in ("after", "inside", "times"))
            words = f"{passes} pass{'es' * (passes > 1)}{', clipped' * clip}"
            print(f"| {words} | {after:.2f}, {inside:.2f} | {seconds[0]:.2f}, {seconds[1]:.2f} |", flush=True)


def measured(what: str, case: list[str]) -> list[float]:
    """What :func:`measure` finds in another process."""
    command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], *case, "--measure", what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if what != "times":
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(options: argparse.Namespace) -> list[float]:
    """The GiB that one way takes, or the seconds of both."""
    model = load_model(options.folder / "model")
    mask = ParameterMask.random(model, options.density)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-5, state="compact")
    pixels = torch.rand(options.images, 3, options.pixels, options.pixels)
    ways = {way: partial(way, optimizer, model, pixels, options) for way in (after, inside)}
    if options.measure == "times":
        rounds = [[min(way(2)) for way in ways.values()] for _ in range(options.steps)]
        return [min(column) for column in zip(*rounds, strict=True)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    ways[after if options.measure == "after" else inside](options.steps)
    return [resident() / 2**30]


def after(
    optimizer: MaskedAdamW, model: nn.Module, pixels: torch.Tensor, options: argparse.Namespace, steps: int
) -> list[float]:
    def step() -> None:
        for _ in range(options.passes):
            backward(model, pixels)
        if options.clip:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return [timed(step) for _ in range(steps)]


def inside(
    optimizer: MaskedAdamW, model: nn.Module, pixels: torch.Tensor, options: argparse.Namespace, steps: int
) -> list[float]:
    with optimizer.step_in_backward(max_norm=MAX_NORM if options.clip else None) as in_backward:

        def step() -> None:
            with in_backward.accumulate():
                for _ in range(options.passes - 1):
                    backward(model, pixels)
            backward(model, pixels)

        return [timed(step) for _ in range(steps)]


def backward(model: nn.Module, pixels: torch.Tensor) -> None:
    model(pixels).logits.square().mean().backward()


def timed(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    main()
