"""Runs a function in two processes, or more, that can talk to each other."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2
TIMEOUT = timedelta(seconds=180)


def run(body: Callable[[int, Path], None], directory: Path, count: int = PROCESSES) -> None:
    """Calls ``body(rank, directory)`` in every process; an error in one of them, or three minutes without end, fail."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        context = mp.start_processes(_child, (body, directory, count), count, join=False, start_method="spawn")
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
    end = time.monotonic() + TIMEOUT.total_seconds()
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < end, "the processes hang"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _child(rank: int, body: Callable[[int, Path], None], directory: Path, count: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / f"store-{count}"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    body(rank, directory)
    dist.barrier()
    # At once: threads of Gloo's groups that are still there when the interpreter ends abort the process now and then.
    os._exit(0)
