"""The optimizer of a training and its learning rate at each step."""

import math

import torch
from torch import nn

from aimfair.base.errors import ConfigError
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.mask import ParameterMask
from aimfair.selective.masked_optimizer import State
from aimfair.selective.offload import can_copy
from aimfair.selective.optim import MaskedAdamW, MaskedSGD
from aimfair.training.settings import FinetuneSettings, OptimizerSettings


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, mask: ParameterMask | None = None
) -> MaskedAdamW | MaskedSGD:
    """The optimizer of a training: of every weight, or of those that ``mask`` selects.

    Raises:
        ConfigError: its state cannot be where the settings want it.
    """
    state: State = "dense"
    offload = False
    if isinstance(settings, FinetuneSettings):
        state, offload = settings.state, settings.offload
        first = next(model.parameters())
        require_offloadable(settings, first.device, sharded=is_dtensor(first))
    if settings.optimizer == "sgd":
        return MaskedSGD(
            model.named_parameters(),
            mask,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            state=state,
            offload=offload,
        )
    return MaskedAdamW(
        model.named_parameters(),
        mask,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        state=state,
        offload=offload,
    )


def require_offloadable(settings: FinetuneSettings, device: torch.device, *, sharded: bool) -> None:
    """
    Args:
        device: of the training. sharded: whether several processes hold the model together.

    Raises:
        ConfigError: ``finetune.offload`` cannot be used there.
    """
    if settings.offload and sharded:
        raise ConfigError("finetune.offload: found true, expected false with distributed.strategy fsdp2")
    if settings.offload and not can_copy(device):
        raise ConfigError(
            f"finetune.offload: found true, expected false: training runs on {device}, so that the state is in host"
            " memory anyway"
        )


def learning_rate(settings: OptimizerSettings, epoch: int, step: int, steps: int) -> float:
    """Of step ``step`` (from 0) of ``steps`` in epoch ``epoch`` (from 1).

    ``step`` divides by 10 after every ``step_epochs`` epochs; ``cosine`` falls from lr at the first step towards 0
    after the last (arXiv 1608.03983, without restarts).
    """
    if settings.schedule == "step":
        return settings.lr * 0.1 ** ((epoch - 1) // settings.step_epochs)
    if settings.schedule == "cosine":
        done = ((epoch - 1) * steps + step) / (settings.epochs * steps)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr
