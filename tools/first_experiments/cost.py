"""Time and memory of a step of selective tuning, against a step of full tuning."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from aimfair.ablation.selective import memory_of
from aimfair.base.seeds import generator
from aimfair.selective.mask import ParameterMask
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.models import build_model
from aimfair.training.optimizer import build_optimizer
from aimfair.training.settings import FinetuneSettings, ModelSettings
from tools.first_experiments.drawing import bars
from tools.first_experiments.rows import Row, complete
from tools.premise_study.domains import base
from tools.premise_study.run import read

ROWS = "cost.jsonl"


@dataclass(frozen=True)
class Subject:
    """
    Attributes:
        words: for tables. pixels, batch: of images. rounds: in each, every way takes ``steps`` steps in turn.
        block: the one that is tuned alone, in the middle.
    """

    words: str
    settings: ModelSettings
    pixels: int
    batch: int
    rounds: int
    steps: int
    block: str


def subjects() -> dict[str, Subject]:
    emoji = base().model
    vit = {"model_type": "vit", "image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12,
           "num_attention_heads": 12, "intermediate_size": 3072}  # fmt: skip
    return {
        "emoji": Subject("ResNet of premise.yaml", emoji, 48, 64, 9, 5, "resnet.encoder.stages.1"),
        "vit": Subject("ViT-B/16", ModelSettings(config=vit), 224, 1, 3, 1, "vit.layers.6"),
    }


# -- ways to tune ------------------------------------------------------------------------------------------------------

FULL = "full"


@dataclass(frozen=True)
class Way:
    """
    Attributes:
        mask: of a model and its block; None: every weight.
        state: of the optimizer. torch: with torch.optim.AdamW in place of aimfair's.
    """

    words: str
    mask: Callable[[nn.Module, str], ParameterMask] | None = None
    state: str = "compact"
    torch: bool = False


def _elements(model: nn.Module, _: str, density: float) -> ParameterMask:
    return ParameterMask.random(model, density, seed=0)


def _head(model: nn.Module, _: str) -> ParameterMask:
    return ParameterMask.from_names(model, lambda name: name.startswith("classifier."))


def _block(model: nn.Module, block: str) -> ParameterMask:
    return ParameterMask.from_names(model, lambda name: name.startswith(f"{block}."))


WAYS = {
    FULL: Way("full tuning", state="dense"),
    "torch": Way("full tuning, torch.optim.AdamW", torch=True),
    "30%-dense": Way("30% of the elements, dense state", partial(_elements, density=0.3), "dense"),
    "30%-compact": Way("30% of the elements, compact state", partial(_elements, density=0.3)),
    "10%-dense": Way("10% of the elements, dense state", partial(_elements, density=0.1), "dense"),
    "10%-compact": Way("10% of the elements, compact state", partial(_elements, density=0.1)),
    "block": Way("one block in the middle", _block),
    "head": Way("the head", _head),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def run(folder: Path, _: Path | None) -> None:
    for name, subject in subjects().items():
        _subject(folder, name, subject)


def _subject(folder: Path, name: str, subject: Subject) -> None:
    @cache
    def model() -> nn.Module:
        return build_model(subject.settings, 2, 0)

    @cache
    def mask_of(way: str) -> ParameterMask | None:
        make = WAYS[way].mask
        return None if make is None else make(model().requires_grad_(True), subject.block)

    cases = [{"model": name, "round": number, "way": way} for number in range(subject.rounds) for way in WAYS]
    complete(folder / ROWS, cases, lambda case: measured(model(), subject, WAYS[case["way"]], mask_of(case["way"])))


def measured(model: nn.Module, subject: Subject, way: Way, mask: ParameterMask | None) -> Row:
    """Seconds of processor time, means of a round after one step that makes the optimizer's state; and bytes."""
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    prepare(model, subject.settings)
    if mask is not None:
        mask.freeze_unselected(model)
    settings = FinetuneSettings.model_validate({"lr": 1e-6, "state": way.state})
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-6) if way.torch else build_optimizer(model, settings, mask)
    )
    model.train()
    pixels = generator("cost").integers(0, 256, (subject.batch, subject.pixels, subject.pixels, 3), dtype=np.uint8)
    images = Normalize(subject.settings, torch.device("cpu"))(pixels)
    target = torch.arange(subject.batch) % 2
    gradient, stepping = [], []
    for _ in range(1 + subject.steps):
        optimizer.zero_grad()
        start = time.process_time()
        F.cross_entropy(logits(model, images), target).backward()  # type: ignore[no-untyped-call]
        middle = time.process_time()
        optimizer.step()
        gradient.append(middle - start)
        stepping.append(time.process_time() - middle)
    memory = memory_of(model, optimizer, mask)
    return {
        "gradient": sum(gradient[1:]) / subject.steps,
        "optimizer": sum(stepping[1:]) / subject.steps,
        "tuned": sum(p.numel() for p in model.parameters()) if mask is None else mask.nnz,
        "bytes": {**asdict(memory), "total": memory.total},
    }


# -- what it says ------------------------------------------------------------------------------------------------------


def ratios(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Way -> measures of a model; times are medians over rounds, ``of full``: of ratios within a round."""
    rounds: dict[int, dict[str, Row]] = {}
    for row in read(folder / ROWS):
        if row["case"]["model"] == name:
            rounds.setdefault(row["case"]["round"], {})[row["case"]["way"]] = row
    whole = [one for one in rounds.values() if one.keys() == WAYS.keys()]
    found = {}
    for way in WAYS:
        steps = [one[way]["gradient"] + one[way]["optimizer"] for one in whole]
        full = [one[FULL]["gradient"] + one[FULL]["optimizer"] for one in whole]
        found[way] = {
            "tuned": whole[0][way]["tuned"] / whole[0][FULL]["tuned"],
            "gradient": median(one[way]["gradient"] for one in whole),
            "optimizer": median(one[way]["optimizer"] for one in whole),
            "step of full": median(a / b for a, b in zip(steps, full, strict=True)),
            "memory": whole[0][way]["bytes"]["total"],
            "memory of full": whole[0][way]["bytes"]["total"] / whole[0][FULL]["bytes"]["total"],
            "rounds": len(whole),
        }
    return found


def tables(folder: Path) -> Iterator[str]:
    for name, subject in subjects().items():
        found = ratios(folder, name)
        images = f"batch {subject.batch} of {subject.pixels} pixels"
        headings = ("tuned", "gradient ms", "optimizer ms", "step / full", "MB", "memory / full")
        yield f"| {subject.words}, {images}, rounds: {found[FULL]['rounds']} | {' | '.join(headings)} |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for way, of in found.items():
            times = f"{1000 * of['gradient']:.1f} | {1000 * of['optimizer']:.2f} | {of['step of full']:.2f}"
            memory = f"{of['memory'] / 1e6:.4g} | {of['memory of full']:.2f}"
            yield f"| {WAYS[way].words} | {of['tuned']:.1%} | {times} | {memory} |"
        yield ""


def figures(folder: Path) -> dict[str, str]:
    of = {name: ratios(folder, name) for name in subjects()}
    columns = [
        f"{words}, {subject.words.split()[0]}" for subject in subjects().values() for words in ("time", "memory")
    ]
    rows = [
        (way.words, [found[name][key] for found in of.values() for key in ("step of full", "memory of full")])
        for name, way in WAYS.items()
        if name != FULL
    ]
    return {"cost.svg": bars(columns, rows)}
