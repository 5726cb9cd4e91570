"""The recipes of docs/cluster.md, as far as they can be run without a cluster."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aimfair.commands import cli, run
from aimfair.commands.settings import BUNDLED
from aimfair.config.load import load
from aimfair.evaluation.results import Results
from tests import tiny_run

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
SBATCH = FOLDER / "slurm.sbatch"

SCONTROL = """#!/usr/bin/env bash
[[ $1 == show ]] && echo localhost || echo "$@" >> "$CALLS"
"""
"""The nodes of the job; what else is asked of it is recorded."""

SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
status=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do wait "$task"; done
    wait "$task" || status=$?
done
exit "$status"
"""
"""One task per node, all of them on this machine; signals go to them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photographs, settings, and Slurm's commands."""
    folder = tmp_path_factory.mktemp("cluster")
    tiny_run.write_photographs(folder / "photographs")
    methods = {name: tiny_run.METHODS[name] for name in ("full", "aimfair")}
    config = tiny_run.settings(folder / "photographs", seeds=(7,), methods=methods, train={"epochs": 8})
    (folder / "my.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for name, text in {"scontrol": SCONTROL, "srun": SRUN}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def start(place: Path, nodes: int, *arguments: str) -> subprocess.Popen[bytes]:
    """The batch script, as Slurm starts it on the first node."""
    environment = os.environ | {
        "PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CALLS": str(place / "calls"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "SLURM_JOB_ID": str(4000 + os.getpid() % 10_000),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "PROCESSES_PER_NODE": "1",
        "MAX_RESTARTS": "0",
    }
    with (place / "log").open("ab") as log:
        return subprocess.Popen(["bash", SBATCH, *arguments], env=environment, cwd=place, stdout=log, stderr=log)


@pytest.mark.slow
def test_slurm(place: Path) -> None:
    """Two nodes; the time is over in the middle of the first training, and the job continues when it begins again."""
    arguments = ("run", "--config", "my.yaml", "--run", "runs/my")
    log = place / "runs" / "my" / "log.jsonl"
    job = start(place, 2, *arguments)
    deadline = time.monotonic() + 120
    while not (log.exists() and '"stage": "train"' in log.read_text()):
        assert job.poll() is None, (place / "log").read_text()
        assert time.monotonic() < deadline, (place / "log").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0, (place / "log").read_text()
    assert (place / "calls").read_text().startswith("requeue ")
    assert not (place / "runs" / "my" / "report.html").exists()

    assert start(place, 2, *arguments).wait(120) == 0, (place / "log").read_text()
    results = Results.load(place / "runs" / "my" / "results.json")
    assert {"full", "aimfair"} <= results.methods.keys()


@pytest.mark.slow
def test_slurm_reports_the_failure_of_the_job(place: Path) -> None:
    assert start(place, 2, "run", "--config", "other.yaml").wait(240) != 0


def test_slurm_needs_slurm() -> None:
    done = subprocess.run(["bash", SBATCH, "run"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "submit this with sbatch" in done.stderr


Call = tuple[argparse.Namespace, dict[str, str]]
"""Options of ``aimfair run``, and settings given as flags."""


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Call]:
    """What aimfair takes a command line for."""

    def call(words: list[str]) -> Call:
        calls: list[Call] = []

        def keep(*call: Any) -> int:
            calls.append(call)
            return 0

        monkeypatch.setitem(cli.VERBS, "run", ("run", keep, run.add_arguments))
        assert words[0] == "aimfair"
        assert cli.main(words[1:]) == 0
        return calls[0]

    return call


def test_kubernetes(understood: Callable[[list[str]], Call]) -> None:
    """A RayJob whose command aimfair understands, whose pods all mount the volume, and whose workers have a GPU."""
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    options, overrides = understood(shlex.split(job["spec"]["entrypoint"]))
    assert (options.on, options.address, overrides) == ("ray", "auto", {})

    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        for container in pod["containers"]:
            places = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims}
            for path in (options.config, options.run):
                assert any(Path(path).is_relative_to(place) for place in places)
    assert {group["template"]["spec"]["containers"][0]["image"] for group in groups} == {"my.registry/aimfair:latest"}
    for worker in cluster["workerGroupSpecs"]:
        assert worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_skypilot(understood: Callable[[list[str]], Call]) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    script = task["run"].replace("\\\n", " ").replace("$RESULTS", task["envs"]["RESULTS"])
    _, torchrun = script.splitlines()
    _, overrides = understood(shlex.split(torchrun.split(" -m -- ")[1]))
    assert overrides == {"run.storage": task["envs"]["RESULTS"]}
    config = load(BUNDLED / "demo.yaml", overrides)
    assert config.run.storage == task["envs"]["RESULTS"]
