"""gpu_check without a GPU: what it makes of the steps' results, its table, and its exit status."""

import signal
import subprocess
import sys

import pytest
import torch

from tests.kernels.test_opcheck import OPERATORS
from tests.kernels.test_paths_and_threads import CALLS
from tests.test_base_install import base_distributions, link_packages, with_requirements
from tools import gpu_check
from tools.gpu_check import Outcome, Step, judge, run_step

PYTEST_GOOD = "....\n12 passed, 3 skipped in 4.21s\n"


def step(kind: gpu_check.Kind = "command", name: str = "one", log: str = "a.log", limit: float = 10) -> Step:
    return Step(name, [["true"]], limit, log, kind)


@pytest.mark.parametrize(("kind", "outcome", "result", "note"), [
    ("command", Outcome(0, 1, "built\n"), "ok", "built"),
    ("command", Outcome(0, 1, ""), "ok", ""),
    ("command", Outcome(1, 1, "error: no\n"), "FAILED", "error: no"),
    ("command", Outcome(None, 10, "half"), "OUT OF TIME", "limit 10 s"),
    ("tests", Outcome(0, 1, PYTEST_GOOD), "ok", "12 passed, 3 skipped in 4.21s"),
    ("tests", Outcome(0, 1, "== 12 passed in 61.10s (0:01:01) ==\n\nsaved"), "ok", "12 passed in 61.10s (0:01:01)"),
    ("tests", Outcome(0, 1, "ss\n30 skipped in 1.00s\n"), "FAILED", "30 skipped in 1.00s"),
    ("tests", Outcome(1, 1, "1 failed, 12 passed in 4.21s\n"), "FAILED", "1 failed, 12 passed in 4.21s"),
    ("tests", Outcome(0, 1, "nothing"), "FAILED", "nothing"),
    ("tests", Outcome(-11, 1, "....Segmentation fault\n"), "FAILED", "....Segmentation fault"),
    ("sanitizer", Outcome(0, 1, PYTEST_GOOD + "========= ERROR SUMMARY: 0 errors\n"), "ok",
     "12 passed, 3 skipped in 4.21s; ERROR SUMMARY: 0 errors"),
    ("sanitizer", Outcome(9, 1, PYTEST_GOOD + "========= ERROR SUMMARY: 2 errors\n"), "FAILED",
     "12 passed, 3 skipped in 4.21s; ERROR SUMMARY: 2 errors"),
    ("sanitizer", Outcome(127, 0, "compute-sanitizer is not there\n"), "NOT THERE", "compute-sanitizer is not there"),
])  # fmt: skip
def test_judgement(kind, outcome, result, note):
    row = judge(step(kind), outcome)
    assert (row.result, row.note) == (result, note)
    assert row.good == (result == "ok")


def test_a_failure_does_not_end_the_check(tmp_path, capsys):
    outcomes = {"one": Outcome(1, 2, "bad"), "two": Outcome(0, 3, "good"), "three": Outcome(0, 4, PYTEST_GOOD)}
    phases = [[step(name="one"), step(name="two")], [step("tests", "three", "b.log")]]
    assert not gpu_check.check(phases, tmp_path, "- GPU: none", lambda s: outcomes[s.name])
    assert capsys.readouterr().out.endswith((tmp_path / "summary.md").read_text() + "\n")
    assert (tmp_path / "summary.md").read_text().splitlines() == [
        "- GPU: none",
        "",
        "| step  | result | seconds | note                          |",
        "| ----- | ------ | ------- | ----------------------------- |",
        "| one   | FAILED | 2       | bad                           |",
        "| two   | ok     | 3       | good                          |",
        "| three | ok     | 4       | 12 passed, 3 skipped in 4.21s |",
    ]
    assert "##### one: FAILED\n\nbad\n\n##### two: ok" in (tmp_path / "a.log").read_text()
    assert PYTEST_GOOD in (tmp_path / "b.log").read_text()


def test_all_is_well(tmp_path):
    for _ in range(2):  # the second check starts new logs
        assert gpu_check.check([[step()]], tmp_path, "", lambda s: Outcome(0, 1, "fine"))
    assert (tmp_path / "a.log").read_text().count("fine") == 1


def test_running():
    python = sys.executable
    done = run_step(Step("s", [[python, "-c", "print(1)"], [python, "-c", "print(2); exit(3)"], ["no"]], 60, "a"))
    assert (done.status, done.output) == (3, "1\n2\n")
    missing = run_step(Step("s", [[python, "-c", "print(1)"], ["no-such-program"]], 60, "a"))
    assert (missing.status, missing.output) == (127, "1\nno-such-program is not there\n")


def test_a_step_out_of_time_prints_what_it_has_found(monkeypatch):
    """The table of the benches, for example, in the background of a script, too; what does not end is killed, and
    what it started as well."""
    start, wait = "import signal, subprocess; print(1, flush=True)", "subprocess.run(['sleep', '60'])"
    ends = f"{start}\ntry: {wait}\nexcept KeyboardInterrupt: print('the table')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        gpu_check.let_steps_be_interrupted()
        late = run_step(Step("s", [[sys.executable, "-c", ends], ["true"]], 2, "a"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (late.status, late.output) == (None, "1\nthe table\n")
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    ignores = f"{start}\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{wait}"
    late = run_step(Step("s", [[sys.executable, "-c", ignores]], 2, "a"))
    assert (late.status, late.output) == (None, "1\n")
    assert late.seconds < 30


def test_every_step_fits_into_the_time(tmp_path):
    """Were every phase to take all that it may, and each log to be as long as it may."""
    for found in (gpu_check.phases(tmp_path, "90"), gpu_check.generation_phases(tmp_path)):
        longest = [max(step.limit for step in phase) + gpu_check.GRACE for phase in found]
        assert sum(longest) < 9 * 60 - 10  # that much for the start and the report
        steps = [step for phase in found for step in phase]
        assert len({step.name for step in steps}) == len(steps)
        assert len({step.log for step in steps}) <= 4


def test_what_is_sanitized_is_every_operator():
    """Those on plans run the kernels of the others."""
    sanitized = {CALLS[case]()[0].__name__ for case in gpu_check.SANITIZED}
    assert sanitized == {name for name in OPERATORS if not name.startswith("planned")}


BARE = {"hypothesis", "numpy", "onnx", "onnxruntime", "pytest", "pytest-benchmark", "torch", "transformers"}
"""Packages of a machine with a GPU that lacks those of the pipeline."""


@pytest.mark.slow
def test_every_step_is_collected_without_the_packages_of_the_pipeline(tmp_path, monkeypatch):
    names = with_requirements(BARE | base_distributions()) - {"pydantic", "pydantic-core"}
    assert not names & {"diffusers", "fairlearn", "tensorrt", "tensorrt-rtx"}
    (tmp_path / "packages").mkdir()
    folder = link_packages(tmp_path / "packages", names)
    python = tmp_path / "python"
    start = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); sys.argv.pop(1); name = sys.argv.pop(1); "
    start += "runpy.run_module(name, run_name='__main__', alter_sys=True)"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "{start}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    steps = [[step for step in phase if step.kind != "command"] for phase in gpu_check.phases(tmp_path, "90")]
    phases = gpu_check.dry([phase for phase in steps if phase])
    assert gpu_check.check(phases, tmp_path / "out", "", run_step), (tmp_path / "out" / "summary.md").read_text()
    collected = (tmp_path / "out" / "bench.log").read_text()
    assert "bench_step.py" in collected
    assert "bench_generation.py" not in collected


@pytest.mark.parametrize("present", [False, True])
def test_a_dry_run_installs_the_extension_only_where_there_is_none(present, tmp_path, monkeypatch):
    extension = tmp_path / "_C.so"
    if present:
        extension.touch()
    monkeypatch.setattr(gpu_check, "EXTENSION", extension)
    steps = [step for phase in gpu_check.dry(gpu_check.phases(tmp_path, "90")) for step in phase]
    (build,) = [step for step in steps if step.name == "build the extension"]
    assert any(command[-1] == str(gpu_check.ROOT) for command in build.commands) == (not present)


def test_what_cannot_begin_is_explained(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--dry-run", "--out", str(file / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert f"error: --out {file / 'out'}: Not a directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_check.main() == 2
    assert "name a Python that has torch: make gpu-check PYTHON=..." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    command = [sys.executable, "-m", "tools.gpu_check", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "gpu-check: torch sees no CUDA device\n")
    assert not (tmp_path / "out").exists()
