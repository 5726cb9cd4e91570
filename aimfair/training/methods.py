"""Methods: what each tunes, and with which optimizer."""

from torch import nn

from aimfair.config import FinetuneSettings, MethodSettings, OptimizerSettings
from aimfair.errors import AimfairError
from aimfair.seeds import derive_seed
from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW, MaskedSGD
from aimfair.selective.sensitivity import Sensitivity

FAIR = "synthetic_fair"
"""The source of criteria that look at one, unless a method names another."""

SELECTION = ("rule", "criterion", "domain_criterion", "granularity", "density", "k", "bias", "domain", "source", "head")
"""The settings of a method that decide its mask."""


def select_mask(sensitivity: Sensitivity, name: str, method: MethodSettings, seed: int) -> ParameterMask:
    """The mask of one method.

    Args:
        name: of the method, for errors.
        seed: of the rule ``random``.

    Raises:
        AimfairError: settings that do not go together, or select nothing.
    """
    arguments = method.model_dump(include=set(SELECTION), exclude_none=True)
    if method.criterion in ("fisher", "magnitude"):
        arguments.setdefault("source", FAIR)
    try:
        mask = sensitivity.select(**arguments, seed=derive_seed(seed, "random mask"))
    except (ValueError, FloatingPointError) as error:
        raise AimfairError(f"methods.{name}: {error}") from error
    if mask.nnz == 0:
        raise AimfairError(f"methods.{name}: the rule {method.rule} selects nothing; raise its density or shares")
    return mask


def finetune_settings(common: FinetuneSettings, method: MethodSettings) -> FinetuneSettings:
    """The settings of fine-tuning with what the method says instead."""
    instead = {"lr": method.lr, "batchnorm": method.batchnorm}
    return common.model_copy(update={key: value for key, value in instead.items() if value is not None})


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
