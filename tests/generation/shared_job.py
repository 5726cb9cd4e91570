"""A program: two processes share a job, one of them dies by SIGKILL, and the job is continued by one, two or three.

Run as ``python -m tests.generation.shared_job FOLDER``; prints how often one died.
"""

import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

from aimfair.base.interrupt import Interrupt
from aimfair.base.ranks import Ranks
from aimfair.generation.job import Job
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from tests.generation.crash_points import every_third_is_black, lasting
from tests.generation.samples import NoiseSampler, small_plan
from tests.run.crash_points import die_at

EVERY = 29  # one of so many points


def share(folder: Path) -> None:
    """The part of one process, as its environment says: twelve images of 8 x 8 pixels in six batches."""
    with Ranks.join(Interrupt()) as ranks:
        settings = GenerateSettings(batch_size=2, max_rejections=2, image_format="webp")
        job = Job(folder, small_plan()[:12], Provenance({}), settings, 8, ranks=ranks)
        job.run(lambda: NoiseSampler(8, every_third_is_black))


def start(work: Callable[[], None], rank: int, size: int, port: int) -> int:
    """The number of a new process."""
    pid = os.fork()
    if pid == 0:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def together(folder: Path, size: int, victim: int | None = None, point: int = 0) -> bool:
    """Lets so many processes share the job; whether all ended well. If one dies, the others are killed, as by torchrun.

    Args:
        victim: the rank of the one that dies, at the call of number ``point``.
    """

    def die_and_share() -> None:
        die_at(point)
        threading.setprofile(sys.getprofile())
        share(folder)

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = [start(die_and_share if rank == victim else lambda: share(folder), rank, size, port)
                for rank in range(size)]  # fmt: skip
    good = True
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if status and good:
            good = False
            for other in children:
                os.kill(other, signal.SIGKILL)
    return good


def main(folder: Path) -> None:
    import torch.distributed  # noqa: F401 - once, not in every process

    os.fsync = lambda _: None  # slow, and for the loss of power, which this is not
    whole = folder / "whole"
    whole.mkdir(parents=True)
    assert together(whole, 1)
    deaths = 0
    for size in (2, 3):
        made = folder / f"by-{size}"
        assert together(made, size)
        assert lasting(made) == lasting(whole), f"{size} processes make others than one"
    for victim in (0, 1):
        for step in count():
            made = folder / f"cut-{victim}-{step}"
            if together(made, 2, victim, step * EVERY):
                break
            deaths += 1
            assert together(made, 1 + step % 3), f"rank {victim}, point {step * EVERY}: it does not go on"
            assert lasting(made) == lasting(whole), f"rank {victim}, point {step * EVERY}: other images"
            shutil.rmtree(made)
    print(deaths)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
