"""The study of patches runs, on tensors of a few elements."""

import sys

import pytest

from tools import delta_study


@pytest.fixture
def printed(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(delta_study, "MODELS", {"ViT-L/16": [(300, 40), (300,), ()]})
        monkeypatch.setattr(sys, "argv", ["delta_study", *words])
        delta_study.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swaps(printed, dtype, tmp_path):
    words = ["swaps", "--patches", "3", "--rounds", "4", "--density", "0.1", "--dtype", dtype]
    lines = printed(*words, "--folder", str(tmp_path))
    assert lines[0] == f"0M weights in {dtype}, density 10.0%"
    assert [line.split(" | ")[0] for line in lines[-5:]] == [
        "| swap", "| ... open the file", "| ... revert the old patch", "| ... apply the new one", "| a whole load"
    ]  # fmt: skip
    assert lines[-1].endswith(" | 100.0% |")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps(printed, dtype):
    lines = printed("steps", "--width", "64", "--images", "2", "--pixels", "16", "--rounds", "1", "--dtype", dtype)
    assert [line.split(" | ")[0] for line in lines[-7:]] == [
        "| forward and backward", "| the optimizer's step", "| a training step", "| delta, gathered",
        "| the optimizer's step, keeping copies", "| delta, of copies",
        "| delta, of copies, and what keeping them adds to the step",
    ]  # fmt: skip
