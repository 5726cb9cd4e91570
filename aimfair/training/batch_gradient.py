"""The gradient of one batch, split into smaller parts when memory runs out."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.base.memory import MicroBatch, pieces
from aimfair.base.seeds import seed_torch
from aimfair.selective.distributed import local
from aimfair.training.backward_steps import BackwardSteps
from aimfair.training.execution import logits

Weigh = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BatchResult:
    """Sums over the images of a batch.

    Attributes:
        loss: cross-entropy.
        correct: correctly classified images.
        is_finite: whether the loss and all gradients are finite.
    """

    loss: float
    correct: int
    is_finite: bool

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """``values``: float64 [3]: loss, correct, and something that is finite if all gradients are."""
        loss, correct, worst = values.tolist()  # the only synchronisation with the device
        return cls(loss, int(correct) if math.isfinite(correct) else 0, all(map(math.isfinite, (loss, correct, worst))))


class BatchGradient:
    """Leaves the gradient of the batch-mean cross-entropy in ``.grad``, or of a weighted sum of the images' losses.

    When memory runs out the batch goes through the model in smaller parts, whose gradients add up to the same; only
    BatchNorm in training mode sees a difference.

    Args:
        batch_size: largest part to try first.
        steps: take the optimizer's step with each gradient, and free it. The first call then tries, without a step,
            what there is memory for; later, lack of memory is an error.
    """

    def __init__(self, model: nn.Module, batch_size: int, steps: BackwardSteps | None = None):
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._micro_batch = MicroBatch(batch_size)
        self._buffers = list(model.buffers())
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]
        self._steps = steps

    def __call__(
        self, images: Tensor, target: Tensor, seed: int, weigh: Weigh | None = None, total: int | None = None
    ) -> BatchResult:
        """
        Args:
            images: float32 [B, 3, H, W], normalised. target: int64 [B], on the same device.
            seed: of dropout and the like, which draw from torch's default generators.
            total: len(images), if it is given.
            weigh: maps float32 [B] losses, detached, to their [B] weights in the sum; default 1 / B. A batch that is
                split needs one more forward pass first, for the losses of the whole batch.

        Raises:
            AimfairError: a single image does not fit, or part of the step was taken when memory ran out.
        """
        self.save_buffers()

        def attempt(size: int) -> BatchResult:
            self.undo()
            seed_torch(seed, images.device)
            loss = torch.zeros((), device=images.device)
            correct = torch.zeros((), device=images.device)
            weights = None
            parts = list(pieces(len(images), size))
            if weigh and size < len(images):
                weights = weigh(self._losses(images, target, parts))
                self.undo()
                seed_torch(seed, images.device)
            for number, part in enumerate(parts, 1):
                with self._adding() if number < len(parts) else nullcontext():
                    scores = self._scores(images[part])
                    if weigh:
                        losses = F.cross_entropy(scores, target[part], reduction="none")
                        of_part = weigh(losses.detach()) if weights is None else weights[part]
                        (of_part * losses).sum().backward()  # type: ignore[no-untyped-call]
                        part_loss = losses.sum()
                    else:
                        part_loss = F.cross_entropy(scores, target[part], reduction="sum")
                        (part_loss / len(images)).backward()  # type: ignore[no-untyped-call]
                loss += part_loss.detach()
                correct += (scores.detach().argmax(1) == target[part]).sum()
            return BatchResult.of(torch.stack((loss, correct, self._worst())).double())

        if self._steps is None:
            return self._micro_batch.attempt(attempt)
        if not self._steps.has_begun:
            self._steps.begin()
            self._try(images, target)
        try:
            return attempt(self._micro_batch.size)
        except torch.OutOfMemoryError as error:
            raise AimfairError(
                f"out of memory with {len(images)} images, in the middle of a step_in_backward; lower batch_size, or"
                " set step_in_backward to false"
            ) from error

    def _try(self, images: Tensor, target: Tensor) -> None:
        """Finds the parts that memory suffices for, without a step."""
        assert self._steps is not None
        steps = self._steps

        def attempt(size: int) -> None:
            self.undo()
            parts = list(pieces(len(images), size))
            with steps.accumulate() if len(parts) > 1 else steps.discard():
                for part in parts:
                    F.cross_entropy(self._scores(images[part]), target[part]).backward()  # type: ignore[no-untyped-call]

        self._micro_batch.attempt(attempt)

    def _scores(self, images: Tensor) -> Tensor:
        """float32 [B, C]"""
        scores = logits(self._model, images)
        if not scores.requires_grad:
            raise AimfairError("the logits do not depend on any weight that is trained")
        return scores

    def _adding(self) -> AbstractContextManager[None]:
        """Inside, gradients are kept and added up: another part of the batch follows."""
        return nullcontext() if self._steps is None else self._steps.accumulate()

    @torch.no_grad()
    def _losses(self, images: Tensor, target: Tensor, parts: Iterable[slice]) -> Tensor:
        """float32 [B], with the same dropout and split as the backward passes that follow."""
        return torch.cat([
            F.cross_entropy(logits(self._model, images[piece]), target[piece], reduction="none")
            for piece in parts
        ])  # fmt: skip

    def save_buffers(self) -> None:
        """For :meth:`undo`."""
        _copy(self._buffers, self._saved)

    def close(self) -> None:
        """Leaves the model as it was made, with the last weights."""
        if self._steps is not None:
            self._steps.end()

    @property
    def takes_steps(self) -> bool:
        """Whether the optimizer has stepped when a call returns."""
        return self._steps is not None

    def undo(self) -> None:
        """Reverts the last call: clears gradients and restores buffers. Steps stay."""
        if self._steps is not None:
            self._steps.drop()
        for parameter in self._parameters:
            parameter.grad = None
        _copy(self._saved, self._buffers)

    def not_finite(self) -> str:
        """What is not finite after the last call: "the gradient of <the first such parameter>", or "the loss"."""
        names = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        bad = zip(names, self._not_finite(), strict=True)
        return next((f"the gradient of {name}" for name, is_bad in bad if is_bad), "the loss")

    def _not_finite(self) -> list[bool]:
        """Of each parameter that is trained: whether the last gradient was NaN or infinite somewhere."""
        if self._steps is None:
            return [p.grad is not None and not bool(local(p.grad).isfinite().all()) for p in self._parameters]
        largest = self._steps.largest
        return [p in largest and not math.isfinite(largest[p]) for p in self._parameters]

    def _worst(self) -> Tensor:
        """Finite if the gradients are."""
        if self._steps is not None:
            norms = list(self._steps.largest.values())
        else:
            grads = [local(p.grad) for p in self._parameters if p.grad is not None]
            grads = [grad for grad in grads if grad.numel()]  # of DINOv3 some are empty, of shards as well
            norms = list(torch._foreach_norm(grads, float("inf"))) if grads else []
        return torch.stack([*norms, torch.zeros((), device=self._parameters[0].device)]).amax()


def _copy(source: list[Tensor], destination: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(destination, source)
