"""The gradient of one batch, split into smaller parts when memory runs out."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.base.memory import MicroBatch, pieces
from aimfair.base.seeds import seed_torch
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
    """

    def __init__(self, model: nn.Module, batch_size: int):
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._micro_batch = MicroBatch(batch_size)
        self._buffers = list(model.buffers())
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]

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
        """
        self.save_buffers()

        def attempt(size: int) -> BatchResult:
            self.undo()
            seed_torch(seed, images.device)
            loss = torch.zeros((), device=images.device)
            correct = torch.zeros((), device=images.device)
            weights = None
            if weigh and size < len(images):
                weights = weigh(self._losses(images, target, pieces(len(images), size)))
                self.undo()
                seed_torch(seed, images.device)
            for piece in pieces(len(images), size):
                scores = logits(self._model, images[piece])
                if not scores.requires_grad:
                    raise AimfairError("the logits do not depend on any weight that is trained")
                if weigh:
                    losses = F.cross_entropy(scores, target[piece], reduction="none")
                    of_piece = weigh(losses.detach()) if weights is None else weights[piece]
                    (of_piece * losses).sum().backward()  # type: ignore[no-untyped-call]
                    piece_loss = losses.sum()
                else:
                    piece_loss = F.cross_entropy(scores, target[piece], reduction="sum")
                    (piece_loss / len(images)).backward()  # type: ignore[no-untyped-call]
                loss += piece_loss.detach()
                correct += (scores.detach().argmax(1) == target[piece]).sum()
            worst = torch.stack(torch._foreach_norm(self._gradients(), float("inf"))).amax()
            return BatchResult.of(torch.stack((loss, correct, worst)).double())

        return self._micro_batch.attempt(attempt)

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

    def undo(self) -> None:
        """Reverts the last call: clears gradients and restores buffers."""
        for parameter in self._parameters:
            parameter.grad = None
        _copy(self._saved, self._buffers)

    def not_finite(self) -> str:
        """What is not finite after the last call: "the gradient of <the first such parameter>", or "the loss"."""
        named = self._model.named_parameters()
        bad = (name for name, p in named if p.grad is not None and not p.grad.isfinite().all())
        return next((f"the gradient of {name}" for name in bad), "the loss")

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None and p.grad.numel()]  # of DINOv3 some are empty


def _copy(source: list[Tensor], destination: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(destination, source)
