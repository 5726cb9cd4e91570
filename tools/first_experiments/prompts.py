"""Contextual prompts and selection, each alone and together: a 2 x 2 table.

Prompts are stood in for by the people that synthetic images show. Plain ones show three of the training people in many
drawings, contextual ones all of them in as many images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aimfair.base.seeds import generator
from aimfair.data.emoji import everyone, split_people
from aimfair.data.images import ImageSet
from aimfair.generation.emoji import emoji_prompts
from aimfair.methods.tune import select_mask
from tools.first_experiments.drawing import differences
from tools.first_experiments.rows import ODDS, Case, Row, complete, metric
from tools.premise_study.analysis import SHOWN, WORST, Difference, Values, difference
from tools.premise_study.domains import GROUPS, Images, Regime, base, emoji_images, images_of
from tools.premise_study.methods import Workshop, ours
from tools.premise_study.run import counts_of, read

REGIME = Regime(per_group=76)
"""As many synthetic images of a group as there are emoji of it: contextual ones show each once."""

REPLICATES = 12

FEW = 3
"""People of plain prompts."""

PROMPTS = ("plain", "contextual")

RATES = {"full": 0.0006, "selected": 0.002}
"""Learning rates: those of premise.yaml."""

SELECTED = ours(0.3)

TUNED = "prompts-tuned.jsonl"


# -- measuring ---------------------------------------------------------------------------------------------------------


def run(folder: Path, _: Path | None) -> None:
    for replicate in range(REPLICATES):
        _replicate(folder, replicate)


def _replicate(folder: Path, replicate: int) -> None:
    @cache
    def real() -> Workshop:
        return Workshop(REGIME, replicate, images_of(REGIME, replicate, None), final=True)

    @cache
    def shop(prompts: str) -> Workshop:
        of = real()
        found = Workshop(REGIME, replicate, with_prompts(of.images, replicate, prompts), final=True)
        found.biased = of.biased
        return found

    cases = [
        {"replicate": replicate, "prompts": prompts, "tuned": tuned, "lr": lr}
        for prompts in PROMPTS
        for tuned, lr in RATES.items()
    ]
    complete(folder / TUNED, [{"replicate": replicate, "tuned": "biased"}], lambda _: _test(real(), None))
    complete(folder / TUNED, cases, lambda case: _test(shop(case["prompts"]), case))


def with_prompts(images: Images, replicate: int, prompts: str) -> Images:
    """The same real images with synthetic ones, as many, of few or of all of the training people."""
    data = base().data.model_copy(update={"seed": replicate})
    people = sorted(split_people(data)[0])
    if prompts == "plain":
        people = generator(replicate, "study", "few").permutation(people)[:FEW].tolist()
    person_of = {one.name: one.person for one in everyone()}
    known = [one for one in emoji_prompts(data) if person_of[one.text] in people]

    def drawn(purpose: str, like: ImageSet) -> ImageSet:
        sizes = dict(zip(GROUPS, like.group_counts(2, 2).flatten().tolist(), strict=True))
        return emoji_images(REGIME, replicate, known, sizes, prompts, purpose)

    return replace(images, balanced=drawn("balanced", images.balanced), biased=drawn("biased", images.biased))


def _test(shop: Workshop, case: Case | None) -> Row:
    """Of the biased model, or of the one that a case tunes."""
    model = shop.model()
    if case:
        mask = None
        if case["tuned"] == "selected":
            mask = select_mask(shop.sensitivity, "study", SELECTED, shop.replicate)
        shop.train({"lr": case["lr"]}, mask=mask, model=model)
    return {"test": counts_of(model, shop.images.test, shop.settings)}


# -- what it says ------------------------------------------------------------------------------------------------------

CELLS = {
    (prompts, tuned): f"{prompts} prompts, {words}"
    for prompts in PROMPTS
    for tuned, words in (("full", "every weight"), ("selected", "30% selected"))
}


def measured(folder: Path, name: str) -> dict[str | tuple[str, str], Values]:
    """The biased model, ``biased``, and each of :data:`CELLS` -> values [R] of a metric, of the R
    replicates in which all are measured."""
    rows = {tuple(row["case"].values()): row["test"] for row in read(folder / TUNED)}
    keys: dict[str | tuple[str, str], tuple[Any, ...]] = {
        "biased": ("biased",),
        **{(prompts, tuned): (prompts, tuned, RATES[tuned]) for prompts, tuned in CELLS},
    }
    whole = [i for i in range(REPLICATES) if all((i, *key) in rows for key in keys.values())]
    return {cell: np.array([metric(name, rows[(i, *key)]) for i in whole]) for cell, key in keys.items()}


def contrasts(of: Mapping[str | tuple[str, str], Values]) -> dict[str, tuple[Values, Values]]:
    """What is compared -> values [replicates] of either side."""
    plain, both = of["plain", "full"], of["contextual", "selected"]
    prompts, selection = of["contextual", "full"], of["plain", "selected"]
    return {
        **{f"{words}, less the biased model": (of[cell], of["biased"]) for cell, words in CELLS.items()},
        "contextual prompts alone": (prompts, plain),
        "selection alone": (selection, plain),
        "both": (both, plain),
        "interaction: both, less the sum of each alone": (both - selection, prompts - plain),
    }


def compared(folder: Path, name: str) -> dict[str, Difference]:
    """With intervals that hold for all of them at once."""
    sides = contrasts(measured(folder, name))
    return {words: difference(*pair, comparisons=len(sides)) for words, pair in sides.items()}


def tables(folder: Path) -> Iterator[str]:
    of = {name: measured(folder, name) for name in SHOWN}
    yield f"| {len(of[WORST]['biased'])} replicates, ± standard deviation | accuracy | worst group | equalized odds |"
    yield "|---|---:|---:|---:|"
    for cell, words in {"biased": "the biased model", **CELLS}.items():
        cells = [f"{100 * of[name][cell].mean():.1f} ± {100 * of[name][cell].std(ddof=1):.1f}" for name in SHOWN]
        yield f"| {words} | {' | '.join(cells)} |"
    yield ""
    yield "| difference, points | worst group | detectable | equalized odds | detectable |"
    yield "|---|---:|---:|---:|---:|"
    worst, odds = compared(folder, WORST), compared(folder, ODDS)
    for words in worst:
        cells = [text for one in (worst[words], odds[words]) for text in (str(one), f"{one.detectable:.1f}")]
        yield f"| {words} | {' | '.join(cells)} |"
    yield ""


def figures(folder: Path) -> dict[str, str]:
    rows = [(words, one.mean, one.low, one.high) for words, one in compared(folder, WORST).items()]
    return {"prompts.svg": differences("difference in worst-group accuracy, points", rows)}
