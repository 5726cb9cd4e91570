"""Where tensors live."""

import torch

from aimfair.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of ``config.device``.

    Args:
        name: auto (cuda where there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigError: a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: found {name}, but torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    return device
