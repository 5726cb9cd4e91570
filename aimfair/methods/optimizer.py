"""The optimizer of a training."""

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
