"""Whole runs under torchrun: the table of one process; processes that are killed, and what becomes of the run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aimfair.config import load as config_file
from aimfair.evaluation.predictions import load_logits
from tests import tiny_run

pytestmark = pytest.mark.slow

AGENT = ("--max-restarts", "0")
METHODS = {name: tiny_run.METHODS[name] for name in ("full", "aimfair", "dro", "jtt")}


@pytest.fixture(scope="module")
def begun(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, with its images alone."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    shutil.copytree(tiny / "run", folder)
    for name in ("stages", "seeds"):
        for path in (folder / name).iterdir():
            if path.stem not in ("prompts", "generate"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings = tiny_run.settings(tiny / "photographs", methods=METHODS, seeds=[7], checkpoint_seconds=0.05)
    (folder / "config.yaml").write_text(config_file.dump(settings))
    return folder


def command(verb: str, run: Path, *launcher: str) -> list[str]:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *launcher, "-m", "--"]
    return [sys.executable, *(words if launcher else ["-m"]), "aimfair", verb, "--run", str(run)]


def environment(tiny: Path, **more: str) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(tiny / "cache"), "OMP_NUM_THREADS": "1"} | more


def await_that(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300  # on a busy machine
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def losses(run: Path) -> list[float]:
    paths = sorted((run / "seeds").rglob("history.json"))
    return [epoch["train_loss"] for path in paths for epoch in json.loads(path.read_text())["epochs"]]


def weights(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "seeds").rglob("model.safetensors"))
    }


def test_the_table_is_that_of_one_process(tiny: Path, begun: Path, tmp_path: Path) -> None:
    tables = []
    for name, launcher in (("one", ()), ("two", ("--max-restarts", "0"))):
        shutil.copytree(begun, tmp_path / name)
        done = subprocess.run(
            command("run", tmp_path / name, *launcher), env=environment(tiny), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        words = [line.split() for line in done.stdout.splitlines()]
        tables.append([line for line in words if line and line[0] in ("biased", *METHODS)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 1 + len(METHODS)
    one, two = tmp_path / "one", tmp_path / "two"
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-3)
    assert weights(two) != weights(one)
    before = load_logits(two / "seeds" / "7" / "logits" / "full.safetensors")
    (two / "stages" / "evaluate" / "7" / "full.json").unlink()
    subprocess.run(command("evaluate", two), env=environment(tiny), check=True, capture_output=True)
    assert load_logits(two / "seeds" / "7" / "logits" / "full.safetensors").tobytes() == before.tobytes()


def test_a_sharded_run_is_rehearsed_and_tuned(tiny: Path, begun: Path, tmp_path: Path) -> None:
    """As in one process."""
    methods = {name: METHODS[name] for name in ("full", "aimfair")}
    changes = {"methods": methods, "seeds": [7], "tune": {"trials": 2}, "distributed": {"strategy": "fsdp2"}}
    settings = tiny_run.settings(tiny / "photographs", **changes)
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        shutil.copytree(begun, run)
        (run / "config.yaml").write_text(config_file.dump(settings))
    rehearsed = "checking the classifier and 2 methods on 8 images"
    for words in (command("run", one), command("train", two, *AGENT), command("run", two, *AGENT)):
        done = subprocess.run(words, env=environment(tiny), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (rehearsed in done.stderr) == ("train" in words)
    for name in methods:
        chosen, expected = (run / "tuning" / "chosen" / f"{name}.json" for run in (two, one))
        assert chosen.read_text() == expected.read_text()
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-3)


def test_torchrun_starts_killed_processes_again(tiny: Path, begun: Path, tmp_path: Path) -> None:
    """To the bits of a run that nothing was killed in."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        shutil.copytree(begun, run)
    more, log = ["--train.epochs", "30", "--overwrite"], cut / "log.jsonl"
    words = [*command("train", whole, "--max-restarts", "0"), *more]
    subprocess.run(words, env=environment(tiny), check=True, capture_output=True)
    words = [*command("train", cut, "--max-restarts", "2"), *more]
    with subprocess.Popen(words, env=environment(tiny), stderr=subprocess.PIPE, text=True) as agent:
        await_that((cut / "seeds" / "7" / "baseline" / "checkpoint.safetensors").exists)
        os.kill(process_of(agent.pid, "1"), signal.SIGKILL)
        await_that(lambda: '"training resumed"' in log.read_text())
        os.kill(process_of(agent.pid, "0"), signal.SIGKILL)
        _, said = agent.communicate(timeout=240)
    assert agent.returncode == 0, said
    assert log.read_text().count('"training resumed"') == 2
    assert weights(cut) == weights(whole)


def process_of(agent: int, rank: str) -> int:
    """The process of this rank that torchrun has started."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_an_agent(tiny: Path, begun: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As started by Slurm, say: a process that is killed or hangs ends the other, with its name."""
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = environment(tiny, WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    words = [*command("train", run), "--train.epochs", "200", "--distributed.timeout", "0.2", "--overwrite"]
    first, second = (
        subprocess.Popen(words, env=common | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    )
    try:
        await_that((run / "seeds" / "7" / "baseline" / "checkpoint.safetensors").exists)
        second.send_signal(number)
        _, said = first.communicate(timeout=60)
    finally:
        for process in (second, first):
            process.kill()
            process.communicate()
    last = said.splitlines()[-1]
    assert first.returncode == 1
    assert last.startswith("error: train 7: process 1 of 2 (")
    assert f"pid {second.pid}) is lost: it was killed, or its machine is unreachable" in last
