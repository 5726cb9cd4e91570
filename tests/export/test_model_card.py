"""What a card says of methods that the finished run of the other tests does not have."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aimfair.config import Config
from aimfair.evaluation.compare import TIMES, compare
from aimfair.evaluation.flips import FlipResult, Flips
from aimfair.evaluation.results import Difference, Results
from aimfair.export import model_card
from aimfair.export.model_card import Choice, Facts
from aimfair.generation.summary import GenerationSummary, GroupSummary
from aimfair.stages.evaluate import experiment
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits, with_attributes

Make = Callable[..., Facts]


@pytest.fixture(scope="module")
def results() -> Results:
    """The groups of one attribute, and none of the red ones of its last value."""
    config, splits = made_up_config(replicates=100), made_up_splits()
    stroke = np.random.default_rng(1).integers(3, size=len(splits.test))
    stroke[(splits.test.protected == 1) & (stroke == 2)] = 0
    splits = with_attributes(splits, {"stroke": (("thin", "thick", "faint"), stroke)})
    return compare(experiment(config), splits, made_up_predictions(splits, config), {})


@pytest.fixture(scope="module")
def make(results: Results) -> Make:
    """Facts of the method ``aimfair`` with other settings."""

    def facts(method: dict[str, object], choice: str = "aimfair", **other: object) -> Facts:
        config: Config = made_up_config(methods={name: method for name in results.methods if name != "biased"}, **other)
        return Facts(
            config=config,
            results=results,
            choice=Choice(choice, 100, Path("model"), "as asked for", None),
            group_counts={"test": np.full((2, 2), 60)},
            density=0.3,
            prompts=24,
            generation=None,
            synthetic=48,
            agreement=None,
            preprocessing=None,
            environment={},
            digests={},
        )

    return facts


def section(card: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


ALL_THREE = "on real biased, synthetic biased and synthetic balanced images decide"
OURS, PAPERS, CONTROL = "the rule one of aimfair's.", "This is AIM-Fair's own rule", "It is a control for AIM-Fair's"


@pytest.mark.parametrize(
    ("method", "chosen", "whose"),
    [
        ({"rule": "all"}, "all weights are tuned. No gradient decides it.", CONTROL),
        ({"rule": "random", "density": 0.1}, "drawn at random are tuned. No gradient decides it.", CONTROL),
        ({"rule": "head_only"}, "only the head is tuned. No gradient decides it.", CONTROL),
        ({"rule": "blocks", "blocks": ["a"]}, "under `blocks` are tuned. No gradient decides it.", CONTROL),
        ({"rule": "intersection", "granularity": "tensor", "density": 0.1}, ALL_THREE, PAPERS),
        ({"rule": "intersection", "density": 0.1}, ALL_THREE, OURS),
        (
            {"rule": "intersection", "granularity": "tensor", "criterion": "cosine", "bias_k": 5, "domain_k": 5},
            ALL_THREE,
            OURS,
        ),
        ({"rule": "ratio", "density": 0.1}, ALL_THREE, OURS),
        ({"rule": "budget", "density": 0.1}, ALL_THREE, OURS),
        ({"rule": "top_k", "k": 3}, "gradients on synthetic biased and synthetic balanced images decide", OURS),
        ({"rule": "top_k", "k": 3, "criterion": "fisher"}, "gradients on synthetic balanced images decide", OURS),
        ({"rule": "ratio", "k": 3, "criterion": "magnitude"}, ALL_THREE, OURS),
        (
            {"rule": "top_k", "k": 3, "criterion": "magnitude", "source": "real_biased", "freeze": ["a"]},
            "on real biased images decide which weights are tuned. Nothing is tuned in the modules under `freeze`.",
            OURS,
        ),
    ],
)
def test_every_rule_has_its_own_sentence(make: Make, method: dict[str, object], chosen: str, whose: str) -> None:
    said = section(model_card.render(make(method)), "Method")
    assert chosen in said
    assert whose in said
    assert ("gradients on" in said) != ("No gradient decides" in said)
    assert [one in said for one in (OURS, PAPERS, CONTROL)].count(True) == 1
    assert "No step of its training reads the protected attribute" in said


@pytest.mark.parametrize(
    ("method", "synthetic", "reads"),
    [
        ({"kind": "erm"}, False, False),
        ({"kind": "synthetic_only"}, True, False),
        ({"kind": "real_and_synthetic"}, True, False),
        ({"kind": "balanced_resampling"}, False, True),
        ({"kind": "group_dro"}, False, True),
        ({"kind": "jtt"}, False, False),
        ({"kind": "last_layer_retrain"}, False, True),
        ({"kind": "last_layer_retrain", "balanced_from": "synthetic"}, True, False),
        ({"rule": "all"}, True, False),
    ],
)
def test_only_methods_that_saw_synthetic_images_tell_of_them(
    make: Make, method: dict[str, object], synthetic: bool, reads: bool
) -> None:
    card = model_card.render(make(method))
    assert ("## Synthetic images" in card) == synthetic
    assert ("Synthetic images differ from real ones" in card) == synthetic
    assert ("Its training reads the protected attribute of real images." in section(card, "Method")) == reads
    assert ("48 balanced synthetic images" in section(card, "Method")) == (synthetic and "kind" in method)


def test_the_biased_model_saw_none(make: Make) -> None:
    card = model_card.render(make({"rule": "all"}, choice="biased"))
    assert "## Synthetic images" not in card


def test_images_that_were_made_elsewhere(make: Make) -> None:
    groups = [GroupSummary(y=0, a=0, made=70, kept=48, rejected={"damaged": 3})]
    facts = make({"rule": "all"}, generate={"folder": "/elsewhere"})
    said = section(
        model_card.render(replace(facts, generation=GenerationSummary(groups=groups, speed=None))), "Synthetic images"
    )
    assert "copied: 48 of the 70 in a folder" in said
    assert "Not copied: damaged 3." in said
    assert not re.search("24 prompts|images made|elsewhere/", said)


def test_flips_on_pairs_that_trained_nothing(make: Make) -> None:
    def result(*seeds: float, versus: Difference | None = None) -> FlipResult:
        return FlipResult(
            seeds=[*seeds], mean=sum(seeds) / 2, std=0.1, interval=(0.01, 0.5), by_class=[0.1, 0.2],
            accuracy=[0.91, 0.82], versus_biased=versus,
        )  # fmt: skip

    less = Difference(mean=-0.25, over_images=(-0.3, -0.2), over_seeds=(-0.4, -0.1), support=160)
    flips = Flips(
        protected="ink", target_names=["low", "high"], protected_names=["green", "re|d"], seeds=[100, 200],
        default_method="aimfair", confidence=0.95, replicates=100, pairs=[100, 60],
        methods={"biased": result(0.3, 0.5), "aimfair": result(0.1, 0.2, versus=less)},
    )  # fmt: skip
    facts = make({"rule": "all"}, generate={"pairs": {"strength": 0.5}, "engine": "eager"})
    card = model_card.render(replace(facts, flips=flips))
    said = section(card, "When the protected attribute alone changes")
    assert "160 pairs of synthetic images" in said
    assert "| before | 30.0% | 40.0% ± 10.0 | 1.0% to 50.0% | 91.0% | 82.0% |" in said
    assert "| after | 10.0% | 15.0% ± 10.0 | 1.0% to 50.0% | 91.0% | 82.0% |" in said
    said = said.replace("\N{MINUS SIGN}", "-")
    assert "After minus before: -25.0 points (-30.0 to -20.0 over pairs), it flips clearly less often." in said
    assert "real images edited at strength 0.5" in section(card, "Synthetic images")
    biased = section(
        model_card.render(replace(make({"rule": "all"}, choice="biased"), flips=flips)), "When the protected.*?"
    )
    assert "| before |" in biased
    assert "after" not in biased.lower()
    assert "When the protected" not in model_card.render(facts)


def test_the_worst_group_of_every_attribute(make: Make, results: Results) -> None:
    said = section(model_card.render(make({"rule": "all"})), "Other attributes")
    for title, audit, groups in (
        ("stroke", results.attributes["stroke"], "6, 0 empty"),
        (f"ink{TIMES}stroke", results.intersections["stroke"], "12, 2 empty"),
    ):
        (line,) = [line for line in said.splitlines() if line.startswith(f"| {title} |")]
        assert groups in line
        for name in ("biased", "aimfair"):
            y, a = audit.methods[name].worst_present_group
            rate = 100 * audit.methods[name].by_group.mean[a][y]
            assert f"{results.target_names[y]} · {audit.value_names[a]}: {rate:.1f}%" in line
    none = results.model_copy(update={"attributes": {}, "intersections": {}})
    assert "## Other attributes" not in model_card.render(replace(make({"rule": "all"}), results=none))
