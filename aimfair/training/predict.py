"""Predictions of a model."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError, DivergedError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.memory import MicroBatch
from aimfair.base.progress import SILENT, Task
from aimfair.base.ranks import ALONE, Ranks
from aimfair.data.images import ImageSet
from aimfair.selective.distributed import is_dtensor
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
    ranks: Ranks = ALONE,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> npt.NDArray[np.float32]:
    """float32 [N, C]: the logits of each image.

    Args:
        settings: how images are normalised and the model is run. others: as :func:`predict_logits`.
    """
    prepare(model.to(device), settings)
    scores = predict_logits(
        model, images, Normalize(settings, device), batch_size, ranks=ranks, task=task, interrupt=interrupt
    )
    return np.asarray(scores.numpy(), dtype=np.float32)


def predict_logits(
    model: nn.Module,
    images: ImageSet,
    normalize: Normalize,
    batch_size: int,
    *,
    ranks: Ranks = ALONE,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> Tensor:
    """float32 [N, C] on the CPU. The model is left in evaluation mode.

    Args:
        model: configured by :func:`aimfair.training.execution.prepare`.
        batch_size: at most; halved when memory runs out.
        ranks: processes that have the same model and images: each computes every so-manyth batch, and all get the
            logits of all images, with the bits that one process would compute.
        task: advances by images.

    Raises:
        DivergedError: logits that are not finite.
    """
    model.eval()
    predictor = _Predictor(model, images, normalize, batch_size, interrupt)
    batches = [slice(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    own = batches[ranks.rank :: ranks.size]
    parts = []
    for number, batch in enumerate(own):
        with ranks.explained():
            parts.append(predictor(batch))
        task.advance(sum(map(_length, batches[number * ranks.size : (number + 1) * ranks.size])))
    if predictor.sharded:
        if len(own) < -(-len(batches) // ranks.size):
            predictor(batches[0])  # for the rows of the weights that the others need
        model.reshard()  # type: ignore[operator]
    scores = _in_order(parts, batches, ranks) if ranks.size > 1 else torch.cat(parts)
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).any(1).sum())
        raise DivergedError(
            f"the model gives NaN or infinite logits for {bad} of {len(images)} images: its training diverged;"
            " train it with a lower lr"
        )
    return scores


class _Predictor:
    """Logits of slices of images, computed in smaller parts once memory has run out."""

    def __init__(self, model: nn.Module, images: ImageSet, normalize: Normalize, batch_size: int, interrupt: Interrupt):
        self._model, self._images, self._normalize, self._interrupt = model, images, normalize, interrupt
        self._micro_batch = MicroBatch(batch_size)
        self.sharded = any(map(is_dtensor, model.parameters()))

    def __call__(self, batch: slice) -> Tensor:
        """float32 [B, C] on the CPU."""
        parts: list[Tensor] = []
        done = batch.start

        def next_part(size: int) -> Tensor:
            some = self._images.images[done : min(done + size, batch.stop)]
            if self.sharded:
                return self._together(some)
            with torch.inference_mode():
                return logits(self._model, self._normalize(some)).float().cpu()

        while done < batch.stop:
            self._interrupt.check()
            parts.append(self._micro_batch.attempt(next_part))
            done += len(parts[-1])
        return torch.cat(parts)

    @torch.no_grad()  # gathered weights outlive the forward pass
    def _together(self, images: npt.NDArray[np.uint8]) -> Tensor:
        try:
            return logits(self._model, self._normalize(images)).float().cpu()
        except torch.OutOfMemoryError as error:
            raise AimfairError(
                f"out of memory with {len(images)} images; lower evaluate.batch_size, or start more processes"
            ) from error


def _in_order(parts: list[Tensor], batches: Sequence[slice], ranks: Ranks) -> Tensor:
    """The logits of all batches, of which process r has computed r, r + size, and so on."""
    of_each = [batches[rank :: ranks.size] for rank in range(ranks.size)]
    classes = torch.tensor([parts[0].shape[1] if parts else 0])
    width = int(ranks.concatenate(classes, [1] * ranks.size).max())
    own = torch.cat(parts) if parts else torch.empty(0, width)
    gathered = ranks.concatenate(own, [sum(map(_length, some)) for some in of_each])
    scores = torch.empty_like(gathered)
    start = 0
    for some in of_each:
        for batch in some:
            scores[batch] = gathered[start : start + _length(batch)]
            start += _length(batch)
    return scores


def _length(batch: slice) -> int:
    return int(batch.stop - batch.start)
