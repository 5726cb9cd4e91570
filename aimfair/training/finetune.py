"""Fine-tuning of the weights that a mask selects, and of nothing else."""

import torch
from torch import Tensor, nn

from aimfair.config import FinetuneSettings, ModelSettings
from aimfair.data.images import ImageSet
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log
from aimfair.run.progress import SILENT, Task
from aimfair.selective.mask import ParameterMask
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.history import History
from aimfair.training.loop import Training
from aimfair.training.methods import build_optimizer
from aimfair.training.samplers import Sampler

_WORDS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> an integer type in which two values are equal if all bits are."""


def finetune(
    model: nn.Module,
    mask: ParameterMask,
    train: ImageSet,
    validation: ImageSet,
    settings: FinetuneSettings,
    preprocessing: ModelSettings,
    *,
    seed: int,
    sampler: Sampler | None = None,
    checkpoint: Checkpoint | None = None,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
    log: Log = NOWHERE,
) -> History:
    """Trains the selected weights of ``model`` in place.

    Args:
        model: the biased model, on the device to work on. Tensors in which nothing is selected are frozen.
        train: balanced images. validation: real ones.
        others: as :class:`aimfair.training.loop.Training`.

    Raises:
        AimfairError: as :meth:`aimfair.training.loop.Training.fit`.
        ValueError: the mask is for another model.
        RuntimeError: a weight that is not selected has changed.
    """
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask.freeze_unselected(model)
    optimizer = build_optimizer(model, settings, mask)
    history = Training(
        model,
        train,
        validation,
        settings,
        preprocessing,
        optimizer,
        seed,
        batchnorm=settings.batchnorm,
        sampler=sampler,
        checkpoint=checkpoint,
        task=task,
        interrupt=interrupt,
        log=log,
    ).fit()
    require_unselected_unchanged(mask, before, dict(model.named_parameters()))
    return history


def require_unselected_unchanged(mask: ParameterMask, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Refuses the result of a step that is not what this package promises.

    Raises:
        RuntimeError: naming the first parameter in which an unselected element has other bits than before.
    """
    for name in mask.names:
        old, new = (side[name].detach().view(_WORDS[side[name].element_size()]) for side in (before, after))
        if moved := int(((old != new) & ~mask.bool_of(name)).sum()):
            raise RuntimeError(f"{moved} unselected elements of {name} have changed")
