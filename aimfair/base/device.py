"""The device that a setting names."""

from functools import cache

import torch

from aimfair.base.errors import ConfigError
from aimfair.base.ranks import ALONE, Ranks


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of ``config.device``.

    Args:
        name: auto (cuda where there is one), cpu, cuda or cuda:N.
        ranks: each of several processes takes the GPU of its number on its machine.

    Raises:
        ConfigError: there is no such GPU, or there are several processes and ``name`` has an index.
    """
    name = ranks.device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: found {name}, but torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    if ranks.size > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def tuning_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of ``config.device`` for training, sensitivity and selection, which run this package's operators.

    ``auto`` is the CPU where they were built without CUDA kernels.

    Raises:
        ConfigError: as :func:`choose_device`; the operators cannot use it, or their results differ from the reference.
    """
    device = choose_device(name, ranks)
    if device.type == "cpu":
        return device
    if _has_cuda_kernels():
        _refuse_wrong_kernels(device)
        return device
    if name == "auto":
        return torch.device("cpu")
    raise ConfigError(
        f"device: found {name}, but this aimfair was built without CUDA kernels, as there was no nvcc; build it with"
        " AIMFAIR_CUDA=on, or generate on the GPU and go on with --device cpu --overwrite"
    )


@cache
def _refuse_wrong_kernels(device: torch.device) -> None:
    """Once in a process; it takes less than a second."""
    from aimfair.selective.self_check import wrong_kernels

    try:
        wrong = wrong_kernels(device)
    except RuntimeError as error:
        raise ConfigError(f"device: the kernels do not run on {device}: {error}") from error
    if wrong:
        raise ConfigError(f"device: {', '.join(wrong)} on {device} differ from their reference; see aimfair doctor")


def _has_cuda_kernels() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("aimfair::masked_adamw_", "CUDA")
