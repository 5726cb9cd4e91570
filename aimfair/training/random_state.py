"""torch's default generators, from which dropout and initial weights draw."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def own_random_numbers(device: torch.device = CPU) -> Iterator[None]:
    """What happens inside to the default generators of the CPU and of ``device`` is undone at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_random_numbers(seed: int, device: torch.device = CPU) -> None:
    """Seeds those generators.

    ``torch.manual_seed`` would, at every call, queue a seed and a stack trace for each kind of device not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
