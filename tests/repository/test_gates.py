"""Gates run again when what they depend on has changed, and only then."""

import subprocess
from pathlib import Path

import pytest

from tools import gates
from tools.gates import Gate


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a gate over ``src``, which passes while ``src/kernel.cpp`` says ``good``."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "kernel.cpp").write_text("good\n")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(gates, "STAMPS", tmp_path / "build" / "gates")
    return tmp_path


COMMAND = ("sh", "-c", "echo x >> runs && grep -q good src/kernel.cpp")


def passes(checkout: Path, *, always: bool = False) -> tuple[bool, int]:
    """What the gate says, and how often its command has run so far."""
    verdict = gates.passes("kernel", Gate(("src",), COMMAND), always=always)
    runs = checkout / "runs"
    return verdict, len(runs.read_text().splitlines()) if runs.exists() else 0


def test_what_is_committed_is_left_to_ci(checkout):
    assert passes(checkout) == (True, 0)
    assert passes(checkout, always=True) == (True, 1)


def test_a_change_runs_the_gate_once(checkout):
    (checkout / "src" / "kernel.cpp").write_text("good, too\n")
    assert passes(checkout) == (True, 1)
    assert passes(checkout) == (True, 1)
    (checkout / "src" / "new.h").write_text("")
    assert passes(checkout) == (True, 2)


def test_a_failure_is_remembered(checkout):
    assert passes(checkout, always=True) == (True, 1)
    (checkout / "src" / "kernel.cpp").write_text("bad\n")
    assert passes(checkout) == (False, 2)
    assert passes(checkout) == (False, 3)
    (checkout / "src" / "kernel.cpp").write_text("good\n")
    assert passes(checkout) == (True, 3)  # as committed


def test_without_git_every_gate_runs(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert gates.reason_to_skip(Gate(("src",), COMMAND), checkout / "none", "") is None


def test_what_a_build_leaves_behind_does_not_count(checkout):
    before = gates.digest(("src",))
    (checkout / "src" / "kernel.o").write_text("")
    assert gates.digest(("src",)) == before
    (checkout / "src" / "kernel.cpp").write_text("other\n")
    assert gates.digest(("src",)) != before


def test_inputs_exist():
    for name, gate in gates.GATES.items():
        for path in gate.inputs:
            assert (Path(__file__).parents[2] / path).exists(), (name, path)
