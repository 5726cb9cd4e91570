"""The first experiments: their statistics against tiny cases computed by hand, and a small run to its tables."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tools.first_experiments import blocks, cost, coverage, prompts
from tools.first_experiments.drawing import Panel, Point, Series, differences, grid
from tools.first_experiments.rows import ODDS, complete
from tools.first_experiments.support import density_and_coverage, expected_coverage, mean_distance, vendi_score
from tools.premise_study import domains
from tools.premise_study.analysis import WORST
from tools.premise_study.domains import Regime, images_of
from tools.premise_study.run import read

GOOD, FAIR, BIASED = [[[9, 1], [1, 9]]] * 2, [[[7, 3], [3, 7]]] * 2, [[[9, 1], [5, 5]], [[5, 5], [1, 9]]]
"""Tests [A, Y, K] with a worst group of 90%, 70% and 50%, and equalized odds of 0, 0 and 40 points."""


@pytest.fixture
def few(small, monkeypatch):
    """Fewer images and replicates of the experiment on prompts."""
    monkeypatch.setattr(prompts, "REGIME", Regime(per_group=20))
    monkeypatch.setattr(prompts, "REPLICATES", 2)


def test_what_is_measured_is_not_measured_again(tmp_path):
    cases, seen = [{"number": 0}, {"number": 1}], []
    for _ in range(2):
        complete(tmp_path / "rows.jsonl", cases, lambda case: seen.append(case) or {"square": case["number"] ** 2})
    assert seen == cases
    assert [row["square"] for row in read(tmp_path / "rows.jsonl")] == [0, 1]


# -- blocks ------------------------------------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_gains_are_positive_where_tuning_helps_and_correlate_with_what_predicts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "RATES", {0.1: 2})
    monkeypatch.setattr(blocks, "BOOTSTRAP", 200)
    monkeypatch.setattr(blocks, "blocks", lambda: {"a": ["a"], "b": ["b"], "c": ["c"]})
    shares = {"selected": [0.9, 0.5, 0.1], "ratio": [3, 2, 1], "bias": [3, 2, 1], "domain": [1, 2, 3]}
    of = {**shares, "weights": [10, 30, 20]}
    write(tmp_path / blocks.PREDICTED, [
        {"case": {"replicate": i}, "predicted": of, "blocks": ["a", "b", "c"], "test": BIASED} for i in range(2)
    ])  # fmt: skip
    write(tmp_path / blocks.TUNED, [
        {"case": {"replicate": i, "lr": 0.1, "block": block}, "test": test}
        for i in range(2) for block, test in (("a", GOOD), ("b", FAIR), ("c", BIASED))
    ])  # fmt: skip
    gains = blocks.gains(tmp_path, 0.1)
    assert gains[WORST].tolist() == pytest.approx(np.array([[40, 40], [20, 20], [0, 0]]))
    assert gains[ODDS].tolist() == pytest.approx(np.array([[40, 40], [40, 40], [0, 0]]))
    found = {name: one.rho for name, one in blocks.agreements(tmp_path, 0.1, WORST).items()}
    expected = {"selected": 1, "ratio": 1, "bias": 1, "domain": -1, "weights": -0.5, "depth": -1}
    assert found == pytest.approx(expected)
    assert blocks.between_replicates(gains[WORST]) == pytest.approx(1)
    assert blocks.between_replicates(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])) == pytest.approx(-1)


def test_a_detectable_correlation_is_found_as_often_as_promised():
    random, rho = np.random.default_rng(0), blocks.detectable(14)
    # of a bivariate normal with this rank correlation
    pearson = 2 * np.sin(np.pi * rho / 6)
    one, noise = random.normal(size=(2, 2000, 14))
    found = blocks.spearman(one, pearson * one + np.sqrt(1 - pearson**2) * noise)
    assert 0.72 < (np.arctanh(found) > 1.96 * np.sqrt(1.06 / 11)).mean() < 0.88


# -- coverage ----------------------------------------------------------------------------------------------------------


def test_density_and_coverage():
    real, synthetic = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([[0.5], [3.0]])
    # radii 1, 1, 1 and 8: the first synthetic image is in two balls, the second, on the rim of one, in the last alone
    assert density_and_coverage(real, synthetic, k=1) == (1.5, 0.75)
    assert density_and_coverage(real, synthetic + 100, k=1) == (0, 0)
    with pytest.raises(ValueError, match="4 real images, expected more than k = 4"):
        density_and_coverage(real, synthetic, k=4)


def test_expected_coverage_is_that_of_images_of_one_distribution():
    assert expected_coverage(2, 1, k=1) == 0.5  # whether the third of three points is nearer than the second
    random = np.random.default_rng(0)
    drawn = [density_and_coverage(*np.split(random.normal(size=(18, 3)), [12]), k=2)[1] for _ in range(1000)]
    assert np.mean(drawn) == pytest.approx(expected_coverage(12, 6, k=2), abs=0.02)


def test_diversity():
    assert vendi_score(np.diag([1.0, 2.0, 3.0])) == pytest.approx(3), "orthogonal images are all different"
    assert vendi_score(np.array([[1.0, 2.0]] * 4)) == pytest.approx(1)
    assert vendi_score(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) == pytest.approx(3 / 2 ** (2 / 3))
    assert mean_distance(np.array([[0.0], [1.0], [3.0]])) == 2


@pytest.mark.usefixtures("few")
def test_features_are_what_the_head_is_given():
    shop = prompts.Workshop(prompts.REGIME, 0, images_of(prompts.REGIME, 0, None), final=True)
    features = coverage.features_of(shop, shop.images.test)
    head = shop.model().classifier[-1]
    scores = coverage.predict(shop.model(), shop.images.test, shop.settings, batch_size=64, device=torch.device("cpu"))
    assert features @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy() == pytest.approx(
        scores, abs=1e-4
    )


# -- cost --------------------------------------------------------------------------------------------------------------


def test_a_step_keeps_state_of_what_it_tunes():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.classifier = nn.Conv2d(3, 64, 8), nn.Linear(64, 2)

        def forward(self, images):
            return self.classifier(self.stem(images).mean(dim=(2, 3)))

    model = Small()
    count = sum(p.numel() for p in model.parameters())
    subject = cost.Subject("small", domains.base().model, 8, 2, 1, 1, "stem")
    found = {}
    for name, way in cost.WAYS.items():
        mask = None if way.mask is None else way.mask(model.requires_grad_(True), subject.block)
        found[name] = cost.measured(model, subject, way, mask)
    state = {name: one["bytes"]["optimizer"] for name, one in found.items()}
    counters = 4 * 4  # of the steps of each of four tensors, in which something is selected or not
    assert state["full"] == state["torch"] == 8 * count + counters
    assert state["30%-dense"] in range(8 * (count - 2), 8 * count + counters + 1)
    assert state["10%-compact"] in range(8 * round(0.1 * count), 8 * round(0.1 * count) + counters + 1)
    assert found["head"]["bytes"]["gradients"] == 4 * found["head"]["tuned"] == 4 * 130
    assert found["full"]["bytes"]["total"] == 4 * 4 * count + 16


def test_ratios_are_within_complete_rounds(tmp_path):
    def row(number, way, seconds, total):
        case = {"model": "vit", "round": number, "way": way}
        return {"case": case, "gradient": seconds, "optimizer": 0.0, "tuned": total, "bytes": {"total": total}}

    rounds = [(way, 1 if way == cost.FULL else 0.5) for way in cost.WAYS]
    rows = [row(number, way, share * (1 + number), share * 8) for number in range(3) for way, share in rounds]
    write(tmp_path / cost.ROWS, [*rows, row(3, cost.FULL, 0.001, 8)])
    found = cost.ratios(tmp_path, "vit")
    assert found["head"]["step of full"] == found["head"]["memory of full"] == found["head"]["tuned"] == 0.5
    assert found["full"]["gradient"] == 2
    assert found["full"]["rounds"] == 3


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_contrasts_are_of_one_factor_each():
    values = {("plain", "full"): 1.0, ("contextual", "full"): 3.0, ("plain", "selected"): 6.0,
              ("contextual", "selected"): 15.0, "biased": 0.0}  # fmt: skip
    found = prompts.contrasts({key: np.array([value]) for key, value in values.items()})
    assert {words: (one - other).item() for words, (one, other) in found.items()} == {
        "plain prompts, every weight, less the biased model": 1,
        "plain prompts, 30% selected, less the biased model": 6,
        "contextual prompts, every weight, less the biased model": 3,
        "contextual prompts, 30% selected, less the biased model": 15,
        "contextual prompts alone": 2,
        "selection alone": 5,
        "both": 14,
        "interaction: both, less the sum of each alone": 7,
    }


@pytest.mark.usefixtures("few")
def test_plain_prompts_show_few_people_in_as_many_images():
    images = images_of(prompts.REGIME, 0, None)
    person_of = {f"{one.number:04d}": one.person for one in prompts.everyone()}
    people = {}
    for name in prompts.PROMPTS:
        made = prompts.with_prompts(images, 0, name)
        assert made.balanced.group_counts(2, 2).tolist() == [[20, 20], [20, 20]]
        assert made.biased.group_counts(2, 2).tolist() == images.biased.group_counts(2, 2).tolist()
        people[name] = {person_of[one] for one in made.balanced.ids}
    assert len(people["plain"]) == 3
    assert len(people["contextual"]) > 30
    assert people["plain"] < prompts.split_people(domains.base().data.model_copy(update={"seed": 0}))[0]


@pytest.mark.usefixtures("few")
def test_a_small_run_ends_in_tables(tmp_path):
    prompts.run(tmp_path, None)
    assert len(read(tmp_path / prompts.TUNED)) == 2 * 5
    assert len([line for line in prompts.tables(tmp_path) if line.startswith("|")]) == 2 + 5 + 2 + 8
    assert prompts.figures(tmp_path)["prompts.svg"].startswith("<svg ")


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_have_a_mark_for_each_value():
    points = [Point(1, 2, "1", 1.5, 2.5), Point(10, 4, "2", 3, 5)]
    drawn = grid([Panel("title", "x < y", "y", [Series("one", points), Series("two", points)], log_x=True)], columns=1)
    assert drawn.count("<circle") == 4
    assert "x &lt; y" in drawn
    assert differences("points", [("a", 1, 0.5, 2), ("b", 0, -1, 1)]).count("<circle") == 2
