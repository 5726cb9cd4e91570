"""The study of memory: each of its rows runs, on a model that is small."""

import argparse

import pytest

from tools import memory_study


def test_every_row_runs_on_what_the_ones_before_it_left(tmp_path):
    options = argparse.Namespace(size="tiny", images=2, pixels=32, folder=tmp_path)
    weights = memory_study.make_model(options, tmp_path)
    assert weights > 100_000
    for name, _ in memory_study.ROWS:
        result = memory_study.measure(argparse.Namespace(**vars(options), row=name))
        assert result["bytes"] > 4 * weights
    assert {path.name for path in tmp_path.iterdir()} >= {"signed.safetensors", "0.01.safetensors", "0.1.safetensors"}


def test_the_budget_is_below_adamw_for_models_that_matter():
    assert set(memory_study.BUDGETED) <= {name for name, _ in memory_study.ROWS}
    assert memory_study.budget(303_000_000) < 16 * 303_000_000


@pytest.mark.parametrize("text", ["", "Name:\tpython\n"])
def test_a_system_that_does_not_tell_is_named(text, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: text)
    with pytest.raises(RuntimeError, match="does not tell VmHWM"):
        memory_study.most_resident()
