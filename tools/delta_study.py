"""Measures patches of a vision transformer: swapping one for another, and making one after every step.

    python -m tools.delta_study swaps [--patches 100] [--density 0.01] [--dtype float32] [--model ViT-L/16]
    python -m tools.delta_study steps [--density 0.01] [--dtype float32] [--width 384] [--images 8] [--pixels 224]

swaps: each patch changes its own random elements of the same base. A swap opens the file of another patch, reverts the
one that is applied and applies the other; files are in the page cache. The yardstick, measured in turns with it, is to
load the whole model from safetensors into tensors that are there. Disk space: a whole model and the patches.

steps: forward, backward and a step of MaskedAdamW with compact state, and the delta of the step: gathered, or copied
from what the step has kept, in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from aimfair import MaskedAdamW, ParameterMask
from aimfair.selective.checkpoint import InMemory, as_integers
from aimfair.selective.delta import Delta
from aimfair.selective.delta_file import Change, Entry
from aimfair.training.models import build_model
from aimfair.training.settings import ModelSettings
from bench.shapes import MODELS

State = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("swaps", "steps"))
    parser.add_argument("--density", type=float, default=0.01, help="share of the elements that a patch changes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--patches", type=int, default=100)
    parser.add_argument("--model", choices=MODELS, default="ViT-L/16", help="of the swaps")
    parser.add_argument("--folder", type=Path, help="where the files of the swaps go for the time of the study")
    parser.add_argument("--width", type=int, default=384, help="of the vision transformer that takes steps")
    parser.add_argument("--images", type=int, default=8, help="in a batch")
    parser.add_argument("--pixels", type=int, default=224, help="along each side of an image")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.what == "steps":
        study_steps(options)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            study_swaps(options, Path(folder))


def print_medians(found: dict[str, list[float]], words: dict[str, str], *yardsticks: str) -> None:
    """A table of seconds measured in turns, and of their ratios to some of them."""
    print(f"\n| | ms, median |{''.join(f' of {words[name]} |' for name in yardsticks)}")
    print(f"|---|---:|{'---:|' * len(yardsticks)}")
    for name, what in words.items():
        ratios = [
            statistics.median(a / b for a, b in zip(found[name], found[yardstick], strict=True))
            for yardstick in yardsticks
        ]
        print(f"| {what} | {statistics.median(found[name]) * 1e3:,.1f} |{''.join(f' {r:.1%} |' for r in ratios)}")


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def print_setting(model: Mapping[str, Tensor], options: argparse.Namespace) -> None:
    weights = sum(tensor.numel() for tensor in model.values())
    print(f"{weights / 1e6:.0f}M weights in {options.dtype}, density {options.density:.1%}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


# -- swaps ---------------------------------------------------------------------------------------------


def study_swaps(options: argparse.Namespace, folder: Path) -> None:
    dtype, whole = getattr(torch, options.dtype), folder / "model.safetensors"
    model = {f"tensor.{n}": torch.randn(shape).to(dtype) for n, shape in enumerate(MODELS[options.model])}
    save_file(model, whole)
    files = [folder / f"{number}.delta" for number in range(options.patches)]
    for number, file in enumerate(files):
        random_patch(model, options.density, number).save(file)
    print_setting(model, options)
    sizes = [file.stat().st_size for file in files]
    print(f"model {whole.stat().st_size / 1e6:,.0f} MB; {len(files)} patches {sum(sizes) / 1e6:,.0f} MB")
    words = {
        "swap": "swap", "open": "... open the file", "revert": "... revert the old patch",
        "apply": "... apply the new one", "whole": "a whole load",
    }  # fmt: skip
    print_medians(measure_swaps(model, files, whole, options.rounds), words, "whole")


def random_patch(base: State, density: float, seed: int) -> Delta:
    """Every element changes with probability ``density``."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, spec in InMemory(base).specs.items():
        gaps = rng.geometric(density, round(spec.numel * density + 10 * (spec.numel * density) ** 0.5) + 10)
        where = np.cumsum(gaps) - 1
        where = where[where < spec.numel]
        old = base[name].view(-1)[torch.from_numpy(where)]
        new = old + 0.01 * torch.from_numpy(rng.standard_normal(len(where), np.float32)).to(old.dtype)
        bits = [as_integers(values).numpy().view(spec.bits) for values in (new, old)]
        entries[name] = Entry(spec, None, None, Change.at(spec.numel, where, *bits))
    return Delta(entries, reversible=True)


def measure_swaps(model: State, files: list[Path], whole: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part, in turns."""
    other = {name: torch.empty_like(tensor) for name, tensor in model.items()}

    def load_whole() -> None:
        for name, tensor in load_file(whole).items():
            other[name].copy_(tensor)

    for file in files:
        file.read_bytes()  # into the page cache
    load_whole()
    found: dict[str, list[float]] = {name: [] for name in ("whole", "open", "revert", "apply", "swap")}
    applied = Delta.load(files[0])
    applied.apply_(model)
    for number in range(1, rounds + 1):
        found["whole"].append(timed(load_whole))
        start = time.perf_counter()
        new = Delta.load(files[number % len(files)])
        found["open"].append(time.perf_counter() - start)
        found["revert"].append(timed(partial(applied.revert_, model)))
        found["apply"].append(timed(partial(new.apply_, model)))
        found["swap"].append(time.perf_counter() - start)
        applied = new
    applied.revert_(model)
    if any(not torch.equal(other[name], tensor) for name, tensor in model.items()):
        raise RuntimeError("the base is not what it was")
    return found


# -- steps ---------------------------------------------------------------------------------------------


def study_steps(options: argparse.Namespace) -> None:
    dtype = getattr(torch, options.dtype)
    config = {
        "model_type": "vit", "image_size": options.pixels, "patch_size": 16, "hidden_size": options.width,
        "num_hidden_layers": 12, "num_attention_heads": options.width // 64, "intermediate_size": 4 * options.width,
    }  # fmt: skip
    images = torch.randn(options.images, 3, options.pixels, options.pixels).to(dtype)
    labels = torch.arange(options.images) % 2
    models, optimizers, recorders = {}, {}, {}
    for keeps in (False, True):
        models[keeps] = build_model(ModelSettings(config=config), 2, 0).to(dtype)
        named = dict(models[keeps].named_parameters())
        mask = ParameterMask.random(named, options.density)
        short = dtype != torch.float32
        optimizers[keeps] = MaskedAdamW(named.items(), mask, lr=1e-4, state="compact", master_weights=short)
        recorders[keeps] = optimizers[keeps].record_delta(keep_copy=keeps)
    print_setting(dict(models[False].named_parameters()), options)

    def backward(keeps: bool) -> None:
        optimizers[keeps].zero_grad()
        cross_entropy(models[keeps](images).logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    words = {
        "backward": "forward and backward", "step": "the optimizer's step", "training": "a training step",
        "gathered": "delta, gathered", "keeping": "the optimizer's step, keeping copies", "copied": "delta, of copies",
        "more": "delta, of copies, and what keeping them adds to the step",
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in words}
    for number in range(options.rounds + 2):
        seconds = {
            "backward": timed(lambda: backward(False)),
            "step": timed(optimizers[False].step),
            "gathered": timed(recorders[False].delta),
        }
        backward(True)
        seconds |= {"keeping": timed(optimizers[True].step), "copied": timed(recorders[True].delta)}
        seconds["training"] = seconds["backward"] + seconds["step"]
        seconds["more"] = seconds["keeping"] + seconds["copied"] - seconds["step"]
        for name, value in seconds.items() if number >= 2 else ():  # the first ones allocate
            found[name].append(value)
    print_medians(found, words, "step", "training")


if __name__ == "__main__":
    main()
