"""A program: a verb of aimfair on a Ray cluster of two machines, both this one, the second of which is killed while it
does a step, once some are done.

Run as ``python -m tests.cluster.on_ray RUN VERB [FLAGS]``, for a run that is there already.
"""

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from aimfair.commands import cli

STEPS_BEFORE = 3


def add_machine(cluster: Cluster) -> Any:
    """On a busy machine the 30 seconds that Ray waits for one to start can be too few."""
    for attempt in range(3):
        try:
            return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        except Exception:
            if attempt == 2:
                raise
    return None


def in_a_step(machine: Any) -> psutil.Process | None:
    """A process of the machine that does a step, as the title that Ray gives it tells, and is suspended in it."""
    (raylet,) = machine.all_processes["raylet"]
    for process in psutil.Process(raylet.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            process.suspend()
            if "ray::_call" in "".join(process.cmdline()):
                return process
            process.resume()
    return None


def main(run: Path, verb: str, *flags: str) -> int:
    cluster = Cluster()
    machines = [add_machine(cluster) for _ in range(2)]
    log = run / "log.jsonl"
    before = log.read_text().count('"step done"')

    def kill() -> None:
        halted = None
        while halted is None:
            time.sleep(0.05)
            if log.read_text().count('"step done"') >= before + STEPS_BEFORE:
                halted = in_a_step(machines[1])
        cluster.remove_node(machines[1], allow_graceful=False)
        halted.kill()

    threading.Thread(target=kill, daemon=True).start()
    try:
        return cli.main([verb, "--run", str(run), "--on", "ray", "--address", cluster.address, *flags])
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
