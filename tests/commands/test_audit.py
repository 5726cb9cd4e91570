"""aimfair audit: a table of anybody's predictions, and what comes out of it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import aimfair
from aimfair.commands import cli
from aimfair.evaluation.evaluate import Evaluation
from aimfair.report import charts
from aimfair.report.evaluation_page import render
from tests.report.test_page import EVIL, Page

HEAD = ("id", "y", "sex", "age", "old", "new", "p")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "predictions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for i in range(300):
            y, sex, p = int(generator.integers(2)), "fm"[i % 2], float(generator.random())
            old, new = (int(p > 0.5) if i % 3 else y), y if i % 5 else 1 - y
            writer.writerow([i, y, sex, "" if i % 50 == 0 else "young" if i % 7 else "old", old, new, p])
    return path


def audit(table: Path, *words: str) -> int:
    return cli.main(["audit", str(table), "--target", "y", "--replicates", "100", *words])


def test_the_table_the_page_and_the_numbers(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, numbers = table.with_name("audit.html"), table.with_name("audit.json")
    words = ("--prediction", "old", "new", "--html", str(page), "--json", str(numbers))
    assert audit(table, "--protected", "sex", "age", *words) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[1:3]] == [["sex", "old"], ["sex", "new"]]
    assert "caution: age: 6 of 300 rows have no value of age and are left out here." in printed
    found = json.loads(numbers.read_text())
    assert found["attributes"]["sex"]["models"]["new"]["metrics"]["accuracy"]["value"] == pytest.approx(0.8)
    read = Page(page.read_text())
    text = " ".join(" ".join(read.texts).split())
    for part in ("predictions.csv", "sex × age", "80.0%", "minus old", "worse", "wilson"):  # noqa: RUF001
        assert part.casefold() in text.casefold(), part
    assert not [tag for tag, _ in read.tags if tag in ("script", "link", "iframe")]
    assert [
        value for _, of in read.tags for name, value in of.items() if name in ("src", "href") and value[0] != "#"
    ] == []


def test_probabilities_alone(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = table.with_name("audit.html")
    assert audit(table, "--protected", "sex", "--probability", "p", "--html", str(page)) == 0
    assert "AUROC" in page.read_text()
    assert '<dl class="alone">' in page.read_text()  # one model needs no name beside its numbers
    assert "from top to bottom" not in page.read_text()
    assert capsys.readouterr().out.count("\n") >= 3


def test_every_option_reaches_evaluate(table: Path) -> None:
    numbers = table.with_name("audit.json")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    names = ("sex", "age", "y", "old", "new", "p")
    sex, age, y, old, new, p = ([row[name] for row in rows] for name in names)
    words = ("--prediction", "old", "--probability", "p", "--cluster", "new", "--classes", "1", "0", "--positive", "1")
    words += ("--confidence", "0.8", "--small-group", "7", "--no-intersections", "--json", str(numbers))
    assert cli.main(
        ["audit", str(table), "--target", "y", "--replicates", "150", "--protected", "sex", "age", *words]
    ) == 0  # fmt: skip
    found = Evaluation.model_validate_json(numbers.read_text())
    expected = aimfair.evaluate(
        {"old": old}, y, {"sex": sex, "age": age}, probabilities={"old": list(map(float, p))}, clusters=new,
        classes=["1", "0"], positive="1", confidence=0.8, small_group=7, intersections=False, replicates=150,
    )  # fmt: skip
    assert found.model_dump_json() == expected.model_dump_json()
    assert (found.classes, found.confidence, found.replicates, found.small_group) == (["0", "1"], 0.8, 150, 7)
    assert list(found.attributes) == ["sex", "age"]


def test_the_page_of_three_classes_and_models() -> None:
    """Of class 0 of f 30 rows, 20 right; of class 1 of m none."""
    y = np.repeat([0, 1, 2, 0, 2], [30, 40, 40, 20, 40])
    a, k = np.repeat(["f", "m"], [110, 60]), y.copy()
    k[:10] = 1
    shares = 0.1 + 0.7 * np.eye(3)[k]
    found = aimfair.evaluate(
        {"old": k, "new": y, "same": k}, y, a, probabilities={"old": shares}, small_group=25, replicates=100
    )  # fmt: skip
    text = render(found, "three")
    section = text[text.index('id="attribute-0"') :]
    assert "(from top to bottom)" in text
    assert section.count('<dt class="before">old</dt>') == 6
    assert section.count('<dt class="model2">same</dt>') == 6
    assert "<b>· empty</b>" in section
    assert "<b>· small</b>" in section
    assert "worst_present_group_accuracy" in section
    assert section.index("66.7%") > section.index("<dd>")
    assert 'style="--share: 0.6667"' in section
    assert 'style="--share: 0.3333"' in section
    brier = found.attributes["group"].models["old"].scores.by_value["brier"]
    assert brier == pytest.approx([(10 * 1.46 + 100 * 0.06) / 110, 0.06])
    for value in brier:
        assert f"<td>{value:.3f}</td>" in section


def test_models_are_told_apart_by_colour_and_shape() -> None:
    y, a = np.tile([0, 1], 40), np.repeat(["f", "m"], 40)
    page = render(aimfair.evaluate({f"m{m}": y for m in range(4)}, y, a, replicates=100), "four")
    for m, kind in enumerate(("before", "after", "model2", "model3")):
        assert f'<span class="key {kind}">m{m}</span>' in page
        assert page.count(f'<dt class="{kind}">m{m}</dt>') == page.count(f'<g class="{kind}">') == 4, kind
        assert page.count(f".{kind} {{ --mark: var(--") == 1, kind
    assert len({charts.kind_of(m, 12) for m in range(12)}) == 12
    assert charts.kind_of(0, 1) == "after"


def test_what_is_foreign_is_escaped(table: Path) -> None:
    page = table.with_name("audit.html")
    table.write_text(table.read_text().replace(",f,", f',"{EVIL.replace(chr(34), chr(34) * 2)}",'))
    assert audit(table, "--protected", "sex", "--prediction", "old", "--html", str(page)) == 0
    read = Page(page.read_text())
    assert any(EVIL in text for text in read.texts)
    assert not [tag for tag, _ in read.tags if tag in ("script", "img")]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--protected", "gender", "--prediction", "old"), 2, "--protected: "),
        (("--protected", "sex"), 2, "give --prediction COLUMN..., --probability COLUMN..., or both"),
        (("--protected", "sex", "--prediction", "sex"), 2, "column 'sex' is named 2 times"),
        (("--protected", "id", "--prediction", "old"), 1, "groups['id']: found 300 values"),
        (("--protected", "sex", "--prediction", "age"), 1, "predictions.csv:2: column 'age' is empty"),
        (("--protected", "sex", "--prediction", "id"), 1, "predictions['id'][2] is '2', expected one of"),
        (("--protected", "sex", "--probability", "sex"), 2, "column 'sex' is named"),
        (("--protected", "age", "--probability", "sex"), 1, "column 'sex': could not convert string to float"),
        (("--protected", "sex", "--prediction", "old", "new", "--probability", "p"), 2, "expected one --prediction"),
        (("--protected", "sex", "--prediction", "old", "--html", "no/such/a.html"), 2, "--html no/such/a.html"),
        (("--protected", "sex", "--prediction", "old", "--data.kind", "digits"), 2, "audit takes no settings"),
        (("--protected", "sex", "--prediction", "old", "--positive", "2"), 1, "positive='2'"),
    ],
)
def test_what_cannot_be_used(
    table: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    assert audit(table, *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_table_is_never_replaced(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, link, page = table.read_bytes(), table.with_name("link"), str(table.with_name("page"))
    link.symlink_to(table)
    words = ("--protected", "sex", "--prediction", "old")
    for name in (table, link, table.parent / "." / table.name):
        for flag in ("--html", "--json"):
            assert audit(table, *words, flag, str(name)) == 2
            assert "is the table itself" in capsys.readouterr().err
    assert audit(table, *words, "--html", page, "--json", page) == 2
    assert "name two files" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(tmp_path / "no.csv", "--protected", "sex", "--prediction", "k") == 1
    assert "no.csv" in capsys.readouterr().err
    (tmp_path / "table.xlsx").touch()
    assert audit(tmp_path / "table.xlsx", "--protected", "sex", "--prediction", "k") == 2
    assert "expected one of .csv, .tsv, .jsonl, .parquet" in capsys.readouterr().err
    (tmp_path / "head.csv").write_text("y,sex,k\n")
    assert audit(tmp_path / "head.csv", "--protected", "sex", "--prediction", "k") == 1
    assert "has no rows below its header" in capsys.readouterr().err
