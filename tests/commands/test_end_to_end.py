"""The whole pipeline, small: real digits, the shipped generator, real training; and killed again and again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

SETTINGS = {
    "seeds": "7",
    "threads": "1",
    "checkpoint_seconds": "0",
    "generate.steps": "2",
    "generate.balanced_per_group": "8",
    "generate.biased_total": "40",
    "generate.batch_size": "8",
    "prompts.per_group": "10",
    "train.epochs": "2",
    "finetune.epochs": "2",
    "finetune.batch_size": "16",
    "sensitivity.batch_size": "16",
    "evaluate.replicates": "200",
}

STAGES = ("generate", "train/7", "sensitivity/7", "select/7/full", "finetune/7/full", "finetune/7/aimfair", "evaluate")
"""Steps in the middle or at the end of which the run is killed."""


def demo(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    flags = [part for key, value in SETTINGS.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "aimfair", "demo", "--run", str(folder), "--quiet", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def results(folder: Path) -> dict[str, bytes]:
    """What must not depend on how often the run was cut off: everything but times."""
    names = [folder / "results.json", folder / "prompts.jsonl", *folder.glob("synthetic/images/*")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in names}
    for path in folder.glob("seeds/**/*.safetensors"):  # the format's writer puts metadata in any order
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)}: {name}"] = tensor.numpy().tobytes()
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    assert demo(whole, log).wait(timeout=240) == 0, log.read_text()

    for number, step in enumerate(STAGES):
        process = demo(killed, log)
        record, deadline = killed / "stages" / f"{step}.json", time.monotonic() + 120
        while not record.exists() and process.poll() is None and time.monotonic() < deadline:
            if number == 0 and len(list(killed.glob("synthetic/images/*.webp"))) >= 20:
                break  # in the middle of generation
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "report.html").exists()
    assert demo(killed, log).wait(timeout=240) == 0, log.read_text()

    expected, found = results(whole), results(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list(killed.rglob("*.tmp"))

    assert "Worst-group accuracy" in (killed / "report.html").read_text()
    methods = json.loads((killed / "results.json").read_text())["methods"]
    assert set(methods) == {"biased", "linear_probe", "full", "random", "paper", "aimfair"}
    assert methods["full"]["density"] == 1.0

    def written() -> dict[Path, int]:
        files = (path for path in killed.rglob("*") if path.is_file() and path.name not in ("log.jsonl", ".lock"))
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert demo(killed, log).wait(timeout=120) == 0
    assert written() == before, "a second run does nothing again"
