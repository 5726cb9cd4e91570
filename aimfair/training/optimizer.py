"""The optimizer of a training and its learning rate at each step."""

import math

from torch import nn

from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW, MaskedSGD
from aimfair.training.settings import FinetuneSettings, OptimizerSettings


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, mask: ParameterMask | None = None
) -> MaskedAdamW | MaskedSGD:
    """The optimizer of a training: of every weight, or of those that ``mask`` selects."""
    state = settings.state if isinstance(settings, FinetuneSettings) else "dense"
    if settings.optimizer == "sgd":
        return MaskedSGD(
            model.named_parameters(),
            mask,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            state=state,
        )
    return MaskedAdamW(model.named_parameters(), mask, lr=settings.lr, weight_decay=settings.weight_decay, state=state)


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
