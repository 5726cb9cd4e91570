"""Every random choice is a function of a seed and of its purpose, so that nothing depends on the order of calls."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(*purpose: int | str) -> int:
    """A seed in [0, 2^63) for ``purpose``, for example ``derive_seed(100, "augment", epoch, step)``."""
    text = "\0".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*purpose: int | str) -> np.random.Generator:
    """The NumPy generator of ``purpose``."""
    return np.random.default_rng(derive_seed(*purpose))


@contextmanager
def forked_torch_rng(device: "torch.device | None" = None) -> Iterator[None]:
    """Restores torch's default generators, those of the CPU and of ``device``, on exit."""
    import torch

    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        yield


def seed_torch(seed: int, device: "torch.device | None" = None) -> None:
    """Seeds torch's default generators of the CPU and of ``device``, from which dropout and initial weights draw.

    ``torch.manual_seed`` would, at every call, queue a seed and a stack trace for each kind of device not in use.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
