"""The device of these tests, and the mark that skips them where there is none."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import aimfair

CUDA = torch.device("cuda")

needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and aimfair.build_info()["cuda"]),
    reason="needs a CUDA device, and aimfair built with CUDA",
)


@contextmanager
def waiting_refused() -> Iterator[None]:
    """Inside, torch raises where the host waits for the device; its warning that the mode is a prototype is ignored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def extra_bytes(call: Callable[[], object]) -> int:
    """Device memory that the second call asks for at once; the first one may load what stays.

    Not what the allocator gives: its blocks are up to a megabyte larger.
    """
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    call()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
