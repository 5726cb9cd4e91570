"""Tables beside results.json: every row and number of both."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aimfair.evaluation.compare import compare
from aimfair.evaluation.metrics import METRICS
from aimfair.evaluation.results import Results
from aimfair.report.tables import print_table, save_tables
from aimfair.stages.evaluate import experiment
from tests.report.made_up import made_up_config, made_up_logits, made_up_predictions, made_up_splits


@pytest.fixture(scope="module")
def results() -> Results:
    config, splits = made_up_config(replicates=100), made_up_splits()
    logits = made_up_logits(splits, config)
    predicted = made_up_predictions(splits, config)
    return compare(experiment(config), splits, predicted, {"aimfair": [0.1, 0.2, 0.3]}, logits, reads_groups={"full"})


def test_the_csv_has_every_number(results: Results, tmp_path: Path) -> None:
    path, _ = save_tables(results, tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(results.methods)
    for name, method in results.methods.items():
        for metric in METRICS:
            assert float(rows[name][f"{metric}_mean"]) == method.mean[metric]
            assert float(rows[name][f"{metric}_std"]) == method.std[metric]
            assert float(rows[name][f"{metric}_of_mean_rates"]) == method.of_mean_rates[metric]
            assert (float(rows[name][f"{metric}_low"]), float(rows[name][f"{metric}_high"])) == method.interval[metric]
        for score in ("auroc", "calibration_error", "brier"):
            assert float(rows[name][f"{score}_mean"]) == method.scores_mean.overall[score]
            assert float(rows[name][f"{score}_gap_std"]) == method.scores_std.gap[score]
        assert rows[name]["reads_groups"] == ("true" if name == "full" else "false")
    assert rows["biased"]["tuned"] == ""
    assert float(rows["aimfair"]["tuned"]) == pytest.approx(0.2)


def test_the_markdown_names_what_is_seed_averaged(results: Results, tmp_path: Path) -> None:
    _, path = save_tables(results, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    heading, rule, *rows = (line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
    assert len(heading) == len(rule)
    assert {len(line.split(" | ")) for line in lines if line.startswith("|")} == {len(heading)}
    assert [row[0] for row in rows] == ["biased", "linear_probe", "full \\*", "random", "aimfair"]
    mine, method = dict(zip(heading, rows[-1], strict=True)), results.methods["aimfair"]
    worst = "worst_group_accuracy"
    assert mine["worst group"] == f"{100 * method.mean[worst]:.1f} ± {100 * method.std[worst]:.1f}"
    assert mine["worst group of seed-averaged rates"] == f"{100 * method.of_mean_rates[worst]:.1f}"
    assert mine["AUROC"].startswith(f"{100 * method.scores_mean.overall['auroc']:.1f} ±")
    assert mine["tuned"] == "20.0"
    assert "\\* trained with the protected attribute of real images." in lines


def test_one_seed_without_probabilities_and_an_empty_group(tmp_path: Path) -> None:
    config, splits = made_up_config(replicates=100, seeds=[7]), made_up_splits((20, 20, 20, 0))
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    numbers, text = save_tables(results, tmp_path)
    assert "nan" not in numbers.read_text() + text.read_text()
    with numbers.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["worst_group_accuracy_mean"] == row["accuracy_std"] == row["auroc_mean"] == ""
    assert np.isfinite(float(row["accuracy_mean"]))
    assert "±" not in "".join(line for line in text.read_text(encoding="utf-8").splitlines() if "|" in line)
    assert "of one seed" in text.read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "columns"), [(120, 7), (80, 5), (60, 3), (10, 2)])
def test_names_stay_whole_in_a_narrow_terminal(monkeypatch, capsys, width, columns):
    head = ["method", "tuned", "accuracy", "worst group", "EO", "STD", "seed-avg.\nworst"]
    names = ["last_layer_retrain_synthetic", "full", "intersection relative_difference"]
    rows = [[name, "100.0%", *["81.0 ± 12.9"] * 4, "69.4"] for name in names]
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    print_table(head, rows, bold="full")
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[-1].endswith("see table.md.") == (columns < len(head))
    if columns == 5:
        assert "STD, seed-avg. worst;" in lines[-1]
    if width >= 60:
        table = [line for line in lines if "table.md" not in line]
        assert all(any(word in line for line in table) for name in names for word in name.split())
        assert all(len(line) <= width for line in table)
        assert sum(line.count("81.0 ± 12.9") for line in table) == len(names) * (min(columns, 6) - 2)


def test_without_a_terminal_no_column_is_left_out(capsys):
    print_table(["method", "x" * 100], [["a" * 100, "b" * 100]], bold=None)
    assert capsys.readouterr().out.splitlines() == ["method" + " " * 96 + "x" * 100, "a" * 100 + "  " + "b" * 100]
