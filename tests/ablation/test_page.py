"""What an ablation writes, from made-up results: tables, and a page that a browser shows without faults."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from aimfair.ablation import density, report
from aimfair.ablation.outcomes import Figure, Findings, Heat, Outcome, Outcomes
from aimfair.ablation.plan import Arm, Plan
from aimfair.evaluation.results import Results
from aimfair.report import charts
from aimfair.run.directory import Run
from tests.report.conftest import fill
from tests.report.made_up import made_up_config
from tests.report.test_browser import CHROMIUM, address, contrast, visit

__all__ = ["address"]  # a fixture

NASTY = "<b>full</b> | `x`"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    with Run.open(tmp_path_factory.mktemp("runs") / "made-up", made_up_config(), quiet=True) as run:
        fill(run)
        return Results.load(run.results)


@pytest.fixture(scope="module")
def material(results: Results) -> tuple[Plan, Outcomes, Findings]:
    labels = {"aimfair": "ours", "random": "random", "full": NASTY}
    arms = [Arm(label, name, x=0.1, facts={"density": 0.25, "lr": None}) for name, label in labels.items()]
    outcomes = [
        Outcome(
            arm,
            results.methods[arm.method],
            validation_accuracy=0.9,
            validation_loss=math.nan,
            seconds=1.5,
            versus=results.methods[arm.method].versus.get("aimfair"),
            versus_biased=results.methods[arm.method].versus["biased"],
        )
        for arm in arms
    ]
    points = [charts.Point(one.mean["accuracy"], one.mean["eo_mean"], one.arm.label, "after") for one in outcomes]
    found = Findings(
        [Figure("Accuracy and EO", "A point.", charts.scatter(points, x_name="accuracy", y_name="EO", joined=[0, 1]))]
        * 4,
        ["A sentence."],
        {"choice": {"ours": "chosen"}},
        [Heat("Worst group", "A caption.", ["element", "row"], ["top_k"], [[("80.0%", 1.0), None]])],
        {"more": [math.nan, 1.0]},
    )
    plan = Plan("Made up", "A question?", {"arms": made_up_config()}, arms, "ours", ["A note."])
    return plan, Outcomes(outcomes, results.methods["biased"], results), found


def test_tables_say_the_same_in_every_form(material, tmp_path, capsys, monkeypatch):
    plan, outcomes, found = material
    report.write(tmp_path, "density", plan, outcomes, found)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = json.loads((tmp_path / "density.json").read_text())
    assert [row["arm"] for row in rows] == ["ours", "random", NASTY, "biased"]
    for row, arm in zip(rows, data["arms"], strict=False):
        assert float(row["worst_group_accuracy"]) == arm["mean"]["worst_group_accuracy"]
        assert row["choice"] == (arm["choice"] or "")
        assert row["validation_loss"] == ""
        assert arm["validation_loss"] is None
    assert data["more"] == [None, 1.0]
    difference = outcomes.results.methods["random"].versus["aimfair"]["eo_mean"]
    assert float(rows[1]["eo_mean_minus_reference_high_seeds"]) == difference.over_seeds[1]
    assert rows[0]["eo_mean_minus_reference"] == ""

    lines = (tmp_path / "table.md").read_text().splitlines()
    body = [line for line in lines if line.startswith("| ") and not line.startswith("| :--")]
    assert len({line.replace("\\|", "").count("|") for line in body}) == 1
    assert "reference" in body[1]
    assert r"&lt;b&gt;full&lt;/b&gt; \| \`x\`" in body[3]

    monkeypatch.setenv("COLUMNS", "250")
    report.show(plan, outcomes, found)
    shown = capsys.readouterr().out
    assert all(text in shown for text in (NASTY, "A sentence.", "A note.", "biased model"))


def test_a_learning_rate_is_chosen_by_validation_never_by_test(material):
    first, second, third = material[1].arms

    def with_validation(outcome: Outcome, accuracy: float, loss: float) -> Outcome:
        return replace(outcome, validation_accuracy=accuracy, validation_loss=loss)

    for low, high in ((first, second), (second, first)):  # whichever is better on test images
        assert density._best([with_validation(low, 0.8, 0.1), with_validation(high, 0.9, 0.5)]).arm == high.arm
    assert density._best([with_validation(first, 0.9, 0.5), with_validation(third, 0.9, 0.4)]).arm == third.arm
    assert density._best([with_validation(first, 0.9, 0.4), with_validation(third, 0.9, 0.4)]).arm == first.arm


def test_differences_from_the_biased_model_where_there_is_no_reference(material):
    plan, outcomes, found = material
    alone = Plan(plan.title, plan.question, plan.groups, plan.arms, None, plan.notes)
    assert "worst group vs. biased" in report.header(alone, found)
    first = report.rows(alone, outcomes, found)[0]
    assert "reference" not in first
    assert any(cell.endswith("better") for cell in first)


def test_the_table_of_the_page_is_as_wide_as_a_screen(material):
    text = report.page(*material)
    heading = text[text.index('class="arms"') :].split("</tr>")[0]
    assert "STD" not in heading
    assert "density" not in heading, "all arms share it"
    assert "All arms: density 0.25." in text
    assert heading.index("worst group vs. ours") < heading.index("validation accuracy")
    assert text.count('class="judged"') == 2 * (len(material[1].arms) + 1)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(material, folder, address, tmp_path, dark):
    text = report.page(*material)
    assert NASTY not in text
    (folder / "ablation.html").write_text(text, encoding="utf-8")
    measured, console = visit(folder, address, tmp_path, "ablation.html", dark=dark)
    assert console == []
    for width, seen in measured.items():
        assert seen["width"] <= int(width), f"the page scrolls sideways at {width} px"
        assert seen["heading"] == "Made up"
    colours = measured["1280"]["colours"]
    assert contrast(colours["ink"], colours["panel"]) >= 4.5
    shutil.copy(folder / "ablation.html", tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server of ``address`` shows."""
    return tmp_path_factory.mktemp("served")
