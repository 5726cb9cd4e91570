"""Does sensitivity predict which block to tune? Every block of a model tuned alone, against what its gradients say."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import sqrt, tanh
from pathlib import Path

import numpy as np
from scipy.stats import norm  # type: ignore[import-untyped]

from aimfair.ablation.blocks import blocks_of
from aimfair.ablation.premise import Agreement, agreement, predictions, spearman
from aimfair.base.seeds import generator
from aimfair.evaluation.intervals import student_t
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.selective.selection import names_under
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.models import build_model
from aimfair.training.sensitivity import SOURCES
from aimfair.training.settings import ModelSettings
from tools.first_experiments.drawing import Panel, Point, Series, grid
from tools.first_experiments.rows import ODDS, Case, Row, complete, metric
from tools.premise_study.analysis import CONFIDENCE, POWER, WORST, Values
from tools.premise_study.domains import Regime, base, images_of
from tools.premise_study.methods import Workshop, ours
from tools.premise_study.run import counts_of, read

RATES = {0.003: 5, 0.01: 3}
"""Learning rate -> replicates."""

DEPTHS = [4, 4, 4]

PREDICTED, TUNED = "blocks-predicted.jsonl", "blocks-tuned.jsonl"

DEFAULT = ours(0.3)

WORDS = {
    "selected": "selected share of the block",
    "ratio": "mean bias score / mean domain score",
    "bias": "mean bias score",
    "domain": "mean domain score",
    "weights": "number of weights",
    "depth": "depth: blocks before it",
}
"""Predictors of a block, the keys of :data:`aimfair.ablation.premise.PREDICTIONS` and two that need no gradients."""

BOOTSTRAP = 10_000


@dataclass
class DeepShop(Workshop):
    @property
    def settings(self) -> ModelSettings:
        config = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": DEPTHS,
                  "layer_type": "basic"}  # fmt: skip
        return base().model.model_copy(update={"config": config})


@cache
def blocks() -> dict[str, list[str]]:
    """Block -> its modules."""
    model = build_model(DeepShop(Regime(), 0, None, True).settings, 2, 0)
    return blocks_of([name for name, _ in model.named_parameters()], least=12)


# -- measuring ---------------------------------------------------------------------------------------------------------


def run(folder: Path, _: Path | None) -> None:
    for replicate in range(max(RATES.values())):
        _replicate(folder, replicate)


def _replicate(folder: Path, replicate: int) -> None:
    @cache
    def shop() -> DeepShop:
        return DeepShop(Regime(), replicate, images_of(Regime(), replicate, None), final=True)

    rates = [lr for lr, replicates in RATES.items() if replicate < replicates]
    cases = [{"replicate": replicate, "lr": lr, "block": block} for lr in rates for block in blocks()]
    complete(folder / PREDICTED, [{"replicate": replicate}], lambda _: _predicted(shop()))
    complete(folder / TUNED, cases, lambda case: _tuned(shop(), case))


def _predicted(shop: DeepShop) -> Row:
    """What the gradients of the biased model say of each block, and its test."""
    mask = select_mask(shop.sensitivity, "study", DEFAULT, shop.replicate)
    weights = [sum(mask.numels[mask.index[name]] for name in names_under(mask.names, of)) for of in blocks().values()]
    found = predictions(shop.sensitivity, "study", DEFAULT, shop.replicate, list(blocks().values()))
    test = counts_of(shop.model(), shop.images.test, shop.settings)
    return {"predicted": {**found, "weights": weights}, "blocks": list(blocks()), "test": test}


def _tuned(shop: DeepShop, case: Case) -> Row:
    """All weights of one block, and nothing else: statistics of BatchNorm are frozen."""
    model = shop.model()
    method = Tune(rule="blocks", blocks=blocks()[case["block"]])
    mask = select_mask(Sensitivity(model, SOURCES), "study", method, shop.replicate)
    shop.train({"lr": case["lr"], "batchnorm": "freeze"}, mask=mask, model=model)
    return {"test": counts_of(model, shop.images.test, shop.settings)}


# -- what it says ------------------------------------------------------------------------------------------------------


def predicted(folder: Path, replicates: int) -> dict[str, Values]:
    """Predictor -> [blocks, replicates]."""
    rows = read(folder / PREDICTED)[:replicates]
    found = [{**row["predicted"], "depth": range(len(row["blocks"]))} for row in rows]
    return {name: np.array([of[name] for of in found], dtype=np.float64).T for name in WORDS}


def gains(folder: Path, lr: float) -> dict[str, Values]:
    """Metric -> [blocks, replicates] in points, positive where tuning the block alone is better than not to tune."""
    start = {row["case"]["replicate"]: row["test"] for row in read(folder / PREDICTED)}
    tuned = {tuple(row["case"].values()): row["test"] for row in read(folder / TUNED)}

    def gain(name: str, replicate: int, block: str) -> float:
        change = metric(name, tuned[replicate, lr, block]) - metric(name, start[replicate])
        return 100 * change * (1 if name == WORST else -1)

    return {
        name: np.array([[gain(name, replicate, block) for replicate in range(RATES[lr])] for block in blocks()])
        for name in (WORST, ODDS)
    }


def agreements(folder: Path, lr: float, name: str) -> dict[str, Agreement]:
    """Predictor -> rank correlation with the gains in a metric."""
    gain = gains(folder, lr)[name]
    return {
        predictor: agreement(values, gain, CONFIDENCE, BOOTSTRAP, generator("first experiments", predictor, name))
        for predictor, values in predicted(folder, gain.shape[1]).items()
    }


def between_replicates(values: Values) -> float:
    """Mean rank correlation of two replicates, of values [blocks, replicates]: how far the ranking is a ranking."""
    pairs = np.array(list(combinations(range(values.shape[1]), 2)))
    return float(spearman(values.T[pairs[:, 0]], values.T[pairs[:, 1]]).mean())


def detectable(count: int) -> float:
    """The smallest rank correlation of ``count`` blocks that a test finds with probability :data:`POWER`, by Fisher's z
    with the standard error of Fieller, Hartley and Pearson (1957)."""
    return tanh((norm.ppf(0.5 + CONFIDENCE / 2) + norm.ppf(POWER)) * sqrt(1.06 / (count - 3)))


def tables(folder: Path) -> Iterator[str]:
    found = {lr: gains(folder, lr) for lr in RATES}
    of = predicted(folder, max(RATES.values()))
    labels = [f"gain in {words}, lr {lr}" for words in ("worst group", "equalized odds") for lr in RATES]
    yield f"| | block | weights | selected | bias score | domain score | ratio | {' | '.join(labels)} |"
    yield "|---:|---|" + "---:|" * (5 + len(labels))
    for i, block in enumerate(blocks()):
        means = {name: values[i].mean() for name, values in of.items()}
        cells = [f"{means['weights']:,.0f}", f"{100 * means['selected']:.0f}%"]
        cells += [f"{means[name]:.3f}" for name in ("bias", "domain", "ratio")]
        cells += [
            f"{found[lr][name][i].mean():+.1f} ± {found[lr][name][i].std(ddof=1):.1f}"
            for name in (WORST, ODDS)
            for lr in RATES
        ]
        yield f"| {i + 1} | {short(block)} | {' | '.join(cells)} |"
    yield ""
    yield f"| predictor | {' | '.join(labels)} |"
    yield "|---|" + "---:|" * len(labels)
    columns = [agreements(folder, lr, name) for name in (WORST, ODDS) for lr in RATES]
    for predictor in WORDS:
        cells = [cell(column[predictor]) for column in columns]
        yield f"| {WORDS[predictor]} | {' | '.join(cells)} |"
    cells = [f"{between_replicates(found[lr][name]):+.2f}" for name in (WORST, ODDS) for lr in RATES]
    yield f"| *gain in another replicate* | {' | '.join(cells)} |"
    yield ""
    share = spearman(of["selected"].mean(axis=1)[None], of["depth"].mean(axis=1)[None])[0]
    yield f"Selected share and depth have a rank correlation of {share:+.2f}."
    yield f"With {len(blocks())} blocks a rank correlation of {detectable(len(blocks())):.2f} can be detected."
    yield ""


def cell(one: Agreement) -> str:
    return f"{one.rho:+.2f} ({one.low:+.2f} to {one.high:+.2f})"


def short(block: str) -> str:
    """resnet.encoder.stages.0.layers.1 -> stage 1, layer 2."""
    path = block.split(".")
    return f"stage {int(path[3]) + 1}, layer {int(path[5]) + 1}" if "stages" in path else path[-1]


def figures(folder: Path) -> dict[str, str]:
    lr = next(iter(RATES))
    of, gain = predicted(folder, RATES[lr]), gains(folder, lr)
    panels = []
    for name, words in ((WORST, "gain in worst group, points"), (ODDS, "gain in equalized odds, points")):
        found = agreements(folder, lr, name)
        for predictor in ("selected", "weights", "depth"):
            xs = of[predictor].mean(axis=1)
            points = [
                Point(float(x), float(values.mean()), str(i), *(100 * student_t(values / 100, CONFIDENCE)))
                for i, (x, values) in enumerate(zip(xs, gain[name], strict=True), 1)
            ]
            title = f"rank correlation {cell(found[predictor])}"
            series = [Series("block", points, joined=False)]
            panels.append(Panel(title, WORDS[predictor], words, series, log_x=predictor == "weights"))
    return {"blocks.svg": grid(panels, columns=3)}
