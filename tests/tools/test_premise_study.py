"""The study of ways to tune: its search, its arithmetic of weights, its intervals, and a small run to its table."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats

from tools.premise_study import choices
from tools.premise_study.analysis import difference, rate_table, regrets, table
from tools.premise_study.domains import Regime, images_of
from tools.premise_study.figures import heat_map, map_of
from tools.premise_study.methods import METHODS, _top, blend
from tools.premise_study.run import Design, chosen_values, read, run

SMALL = Regime(per_group=20)


def test_trials_begin_with_what_is_given_and_share_learning_rates_and_epochs():
    of_full = METHODS["full"].trials(8)
    assert of_full[0] == {"lr": 0.003, "epochs": 8}
    assert METHODS["full"].trials(4) == of_full[:4], "more trials begin with the same ones"
    for name, method in METHODS.items():
        trials = [
            one for i, one in enumerate(method.trials(8)) if i % max(len(o) for o in [*method.free.values(), "x"]) == 0
        ]
        assert [(one["lr"], one["epochs"]) for one in trials] == [(one["lr"], one["epochs"]) for one in of_full], name
        texts = [json.dumps(one) for one in method.trials(8)]
        assert len(set(texts)) == len(texts)
        assert all(0.01 <= one.get("density", 1) <= 1 for one in method.trials(8))


def test_blend_moves_floats_and_keeps_counters():
    start, to = (
        {"w": torch.tensor([value]), "bn.running_var": torch.tensor([value]), "n": torch.tensor(n)}
        for value, n in ((3.0, 3), (1.0, 7))
    )
    made = blend(start, (1.75, to, start))
    assert made["w"].item() == -0.5
    assert made["bn.running_var"].item() == 1.0
    assert made["n"].item() == 3
    assert start["w"].item() == 3.0


def test_top_takes_the_first_of_equal_scores():
    assert _top(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), 0.5).tolist() == [[False, True], [True, False]]


def test_differences_have_simultaneous_intervals():
    random = np.random.default_rng(0)
    one, other = random.normal(0.8, 0.05, 12), random.normal(0.7, 0.05, 12)
    found = difference(one, other, comparisons=5)
    low, high = stats.ttest_rel(100 * one, 100 * other).confidence_interval(1 - 0.05 / 5)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.clear
    assert found.mean == pytest.approx(100 * (one - other).mean())
    # Student's t test at the detectable difference has the power that is promised, to its normal approximation
    spread = 100 * (one - other).std(ddof=1)
    drawn = random.normal(found.detectable, spread, (4000, 12))
    half = (high - low) / 2 / spread
    clear = np.abs(drawn.mean(axis=1)) > half * drawn.std(axis=1, ddof=1)
    assert 0.72 < clear.mean() < 0.88


@pytest.mark.usefixtures("small")
def test_judging_images_show_others_than_those_that_train():
    images = images_of(SMALL, 0, None)
    assert images.balanced.group_counts(2, 2).tolist() == [[20, 20], [20, 20]]
    assert not set(images.part.ids) & set(images.judge.ids)
    assert len(images.part) + len(images.judge) == len(images.balanced)
    assert (images.judge.group_counts(2, 2) > 0).all()
    people = [set(part.clusters) for part in (images.train, images.validation, images.test)]
    assert not people[0] & people[2]
    assert not people[0] & people[1]


@pytest.mark.usefixtures("small")
def test_a_small_study_ends_in_a_table_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.premise_study.methods.EPOCHS", (1, 2))
    monkeypatch.setattr(choices, "JUDGED", ("full", "interpolated"))
    design = Design((SMALL,), ("full", "aimfair", "interpolated"), trials=2, tuning=1, final=2)
    run(design, tmp_path, None, jobs=1)
    rows = sorted((tmp_path / SMALL.name).glob("*.jsonl"))
    assert [path.name for path in rows] == ["final-1.jsonl", "final-2.jsonl", "trials-0.jsonl"]
    assert len(read(rows[2])) == 2 * 2 + 2 * 5
    assert not any("failed" in row for path in rows for row in read(path))
    before = [path.read_bytes() for path in rows]

    rows[0].write_bytes(before[0][:-20])  # killed while it wrote the last line
    capsys.readouterr()
    run(design, tmp_path, None, jobs=1)
    assert "1 models" in capsys.readouterr().out
    again = [json.loads(line) for line in rows[0].read_bytes().splitlines()]
    for one, other in zip(again, map(json.loads, before[0].splitlines()), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert [path.read_bytes() for path in rows[1:]] == before[1:]

    chosen = chosen_values(SMALL, tmp_path, design)
    lines = list(table(SMALL, tmp_path, design))
    assert "2 replicates" in lines[0]
    assert {line.split(" | ")[0] for line in lines[4:-1]} == {"| biased", "| full", "| aimfair", "| interpolated"}
    assert set(chosen) == set(regrets(SMALL, tmp_path, design)) == set(design.methods)
    assert all(value >= 0 for value in regrets(SMALL, tmp_path, design).values())
    assert map_of([design], tmp_path).count("font-weight") > 4

    lost = [line.split(" | ") for line in choices.table([design], tmp_path)][2:]
    assert len(lost) == len(choices.RULES)
    assert all(float(cells[1]) >= 0 and cells[1] == cells[2] for cells in lost)

    at_rates = Design((SMALL,), ("full", "aimfair"), trials=0, tuning=1, final=2, rates=(0.001, 0.003))
    run(at_rates, tmp_path, None, jobs=1)
    lines = list(rate_table(SMALL, tmp_path, at_rates))
    assert [line.split(" | ")[0] for line in lines[4:-1]] == ["| 0.001", "| 0.003"]


def test_the_map_marks_what_is_clear():
    clear = difference(np.array([0.9, 0.91, 0.92]), np.array([0.8, 0.81, 0.82]), 1)
    svg = heat_map(["a < b"], ["one", "two"], [[clear, None]], "Map")
    assert "a &lt; b" in svg
    assert re.search(r'font-weight="bold"[^>]*>\+10\.0<', svg)
    import xml.etree.ElementTree as tree

    tree.fromstring(svg)
