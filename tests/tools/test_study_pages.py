"""The pages of the studies: their tables and figures are what the commands make of the rows that are kept."""

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pytest

from tools.first_experiments import blocks, cost, coverage, prompts
from tools.premise_study import choices
from tools.premise_study.__main__ import BY_RATE
from tools.premise_study.analysis import by_rate, rate_table, regrets, table
from tools.premise_study.designs import DESIGNS
from tools.premise_study.domains import Regime
from tools.premise_study.figures import map_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STUDY, EXPERIMENTS = DOCS / "study", DOCS / "experiments"


def plain(row: str) -> str:
    """Without marks of bold type and repeated spaces, and with a plain minus."""
    return re.sub(r"\s+", " ", row.replace("**", "").replace("\N{MINUS SIGN}", "-")).strip()


def missing(page: Path, lines: Iterable[str]) -> list[str]:
    """Rows of tables that are not on a page."""
    there = {plain(line) for line in page.read_text().splitlines()}
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 3
    return [row for row in rows if plain(row) not in there]


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in plain(row).strip("|").split("|")]


@pytest.mark.parametrize("name", ["main", "faces", "worse_faces"])
def test_the_comparisons(name: str) -> None:
    (regime,) = DESIGNS[name].regimes
    assert missing(DOCS / "study.md", table(regime, STUDY, DESIGNS[name])) == []


def test_the_learning_rates() -> None:
    page = DOCS / "study.md"
    assert missing(page, by_rate(Regime(), STUDY, DESIGNS["main"], BY_RATE)) == []
    assert missing(page, rate_table(Regime(), STUDY, DESIGNS["rates"])) == []


def test_the_map_and_its_regrets() -> None:
    shown = [DESIGNS[name] for name in ("main", "map", "faces", "vit", "crossed", "hundred", "worse_faces")]
    assert (STUDY / "map.svg").read_text() == map_of(shown, STUDY)
    rows = []
    for design in shown:
        for regime in design.regimes:
            of = regrets(regime, STUDY, design)
            cells = " | ".join(f"{of[name]:.1f}" for name in ("full", "random", "aimfair", "paper"))
            rows.append(f"| {regime.words} | {cells} |")
    assert missing(DOCS / "study.md", rows) == []


def test_the_rules_of_choice() -> None:
    assert missing(DOCS / "tuning.md", choices.table([DESIGNS["main"], DESIGNS["map"]], STUDY)) == []


def test_the_first_table_on_fairness_follows_from_the_study() -> None:
    names = {"biased": "biased model", "linear_probe": "linear probe", "full": "full fine-tuning",
             "random": "random mask", "paper": "the paper's rule", "aimfair": "aimfair's rule"}  # fmt: skip
    made = {cells[0]: cells for line in table(Regime(), STUDY, DESIGNS["main"]) if len(cells := cells_of(line)) > 1}
    text = (ROOT / "README.md").read_text()
    text = text[text.index("\n## Fairness") :]
    for name, words in names.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {words}"))
        _, _, accuracy, worst, difference = cells_of(line)
        assert [accuracy, worst, difference] == [made[name][2], made[name][3], made[name][5]], name


def test_the_first_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the intervals of rank correlations, which take ten seconds: they are words in the figure of blocks."""
    monkeypatch.setattr(blocks, "BOOTSTRAP", 10)
    page = DOCS / "experiments.md"
    for experiment in (cost, coverage, prompts):
        assert missing(page, experiment.tables(EXPERIMENTS)) == []
        for name, drawn in experiment.figures(EXPERIMENTS).items():
            assert (EXPERIMENTS / name).read_text() == drawn
    assert missing(page, takewhile(bool, blocks.tables(EXPERIMENTS))) == []
    kept, (drawn,) = (EXPERIMENTS / "blocks.svg").read_text(), blocks.figures(EXPERIMENTS).values()
    assert len({re.sub(r"<text.*?</text>", "", one) for one in (kept, drawn)}) == 1
