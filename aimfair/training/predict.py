"""Predictions of a model."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aimfair.base.errors import DivergedError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.memory import MicroBatch
from aimfair.base.progress import SILENT, Task
from aimfair.data.images import ImageSet
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.settings import ModelSettings


def predict(
    model: nn.Module,
    images: ImageSet,
    settings: ModelSettings,
    *,
    batch_size: int,
    device: torch.device,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> npt.NDArray[np.float32]:
    """float32 [N, C]: the logits of each image.

    Args:
        settings: how images are normalised and the model is run. others: as :func:`predict_logits`.
    """
    prepare(model.to(device), settings)
    scores = predict_logits(model, images, Normalize(settings, device), batch_size, task=task, interrupt=interrupt)
    return np.asarray(scores.numpy(), dtype=np.float32)


def predict_logits(
    model: nn.Module,
    images: ImageSet,
    normalize: Normalize,
    batch_size: int,
    *,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> Tensor:
    """float32 [N, C] on the CPU. The model is left in evaluation mode.

    Args:
        model: configured by :func:`aimfair.training.execution.prepare`.
        batch_size: at most; halved when memory runs out.
        task: advances by images.

    Raises:
        DivergedError: logits that are not finite.
    """
    model.eval()
    micro_batch = MicroBatch(batch_size)
    parts: list[Tensor] = []
    done = 0

    @torch.inference_mode()
    def next_part(size: int) -> Tensor:
        return logits(model, normalize(images.images[done : done + size])).float().cpu()

    while done < len(images):
        interrupt.check()
        parts.append(micro_batch.attempt(next_part))
        done += len(parts[-1])
        task.advance(len(parts[-1]))
    scores = torch.cat(parts)
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).any(1).sum())
        raise DivergedError(
            f"the model gives NaN or infinite logits for {bad} of {len(images)} images: its training diverged;"
            " train it with a lower lr"
        )
    return scores
