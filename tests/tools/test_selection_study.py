"""The comparison of selections: its settings are valid, and its table says what its rows say."""

import json

from aimfair.methods import Tune
from tools.selection_study import cases, table


def test_every_case_is_a_method():
    for case in cases():
        Tune(**case)
    texts = [json.dumps(case) for case in cases()]
    assert len(set(texts)) == len(texts)


def test_the_table_has_means_over_seeds_best_first(tmp_path):
    rows = [
        {"seed": seed, "case": {"rule": rule, "lr": 0.01}, "density": 0.5, "accuracy": 0.9, "eo_mean": 0.1,
         "worst_group_accuracy": worst}
        for rule, values in (("all", (0.5, 0.7)), ("random", (0.8, 0.8)))
        for seed, worst in enumerate(values)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = table(tmp_path / "rows.jsonl").splitlines()
    assert lines[2:] == [
        "| random | 50.0% | 0.01 | 90.0 ± 0.0 | 80.0 ± 0.0 | 10.0 ± 0.0 |",
        "| all | 50.0% | 0.01 | 90.0 ± 0.0 | 60.0 ± 14.1 | 10.0 ± 0.0 |",
    ]
