"""A program: a verb of aimfair on a Ray cluster of two machines, both this one, the second of which is killed once it
has done a step.

Run as ``python -m tests.cluster.on_ray RUN VERB [FLAGS]``, for a run that is there already.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

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


def main(run: Path, verb: str, *flags: str) -> int:
    cluster = Cluster()
    machines = [add_machine(cluster) for _ in range(2)]
    log = run / "log.jsonl"
    before = log.read_text().count('"step done"')

    def kill() -> None:
        while log.read_text().count('"step done"') < before + STEPS_BEFORE:
            time.sleep(0.05)
        cluster.remove_node(machines[1], allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    try:
        return cli.main([verb, "--run", str(run), "--on", "ray", "--address", cluster.address, *flags])
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
