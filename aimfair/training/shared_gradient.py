"""The gradient of one batch over several processes that each hold the whole model."""

import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from aimfair.base.memory import pieces
from aimfair.base.seeds import derive_seed, seed_torch
from aimfair.selective.averaged import sum_gradients
from aimfair.training import shared_batchnorm
from aimfair.training.backward_steps import BackwardSteps
from aimfair.training.batch_gradient import BatchGradient, BatchResult, Weigh
from aimfair.training.execution import logits, run_like
from aimfair.training.processes import Processes, out_of_memory


class SharedGradient(BatchGradient):
    """As :class:`BatchGradient`, of a batch of which each process has its share; all call each method together.

    Gradients are sums over the processes, of losses that are weighted by the number of images of the whole batch, so
    that shares of different sizes count as they should. They end up with the same bits in every process.

    The first call tries one share without communication: what a process has memory for, and whether every weight has a
    gradient. Later, lack of memory in one process ends the job.

    Dropout draws other numbers in each process, and so others than a single process.
    """

    def __init__(self, model: nn.Module, batch_size: int, processes: Processes, steps: BackwardSteps | None = None):
        super().__init__(model, -(-batch_size // processes.ranks.size), steps)
        self._ranks, self._local = processes.ranks, processes.settings.batchnorm == "local"
        self._wrapped: nn.Module | None = None
        self._undo_at_end = ExitStack()

    def __call__(
        self, images: Tensor, target: Tensor, seed: int, weigh: Weigh | None = None, total: int | None = None
    ) -> BatchResult:
        """
        Args:
            images, target: this process's share.
            weigh: of the losses of the whole batch.
            total: images of the whole batch.
        """
        assert total is not None
        lengths = [share.stop - share.start for share in self._ranks.shares(total)]
        self.save_buffers()
        if self._wrapped is None:
            self._wrapped = self._wrap(images, target)
        seed = seed if self._ranks.leads else derive_seed(seed, "process", self._ranks.rank)
        count = -(-max(lengths) // self._micro_batch.size)  # the same in all, for BatchNorm
        parts = [slice(len(images) * i // count, len(images) * (i + 1) // count) for i in range(count)]
        doing = f"with {len(images)} images of the batch"
        with out_of_memory(self._ranks, doing, "lower batch_size, "), self._ranks.explained():
            loss, correct = self._backward(self._wrapped, images, target, seed, weigh, parts, lengths)
        if self._local:
            shared_batchnorm.average_statistics(self._model, self._ranks)
        worst = self._worst()
        return BatchResult.of(self._ranks.sum(torch.stack((loss, correct, worst)).double()))

    def close(self) -> None:
        super().close()
        self._undo_at_end.close()
        self._wrapped = None
        for parameter in self._parameters:
            parameter.grad = None

    def _synchronise_batchnorm(self) -> None:
        if not self._local:
            self._undo_at_end.enter_context(shared_batchnorm.synchronised(self._model, self._ranks))

    def _adding(self) -> AbstractContextManager[None]:
        assert isinstance(self._wrapped, DistributedDataParallel)
        return self._wrapped.no_sync()

    def _backward(
        self,
        model: nn.Module,
        images: Tensor,
        target: Tensor,
        seed: int,
        weigh: Weigh | None,
        parts: list[slice],
        lengths: list[int],
    ) -> tuple[Tensor, Tensor]:
        self.undo()
        share = slice(sum(lengths[: self._ranks.rank]), sum(lengths[: self._ranks.rank + 1]))

        def weights_of(losses: Tensor) -> Tensor:
            assert weigh is not None
            return weigh(self._ranks.concatenate(losses.contiguous(), lengths))[share]

        weights = None
        if weigh and len(parts) > 1:
            seed_torch(seed, images.device)
            weights = weights_of(self._losses(images, target, parts))
            self.undo()
        seed_torch(seed, images.device)
        loss = torch.zeros((), device=images.device)
        correct = torch.zeros((), device=images.device)
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            with nullcontext() if last else self._adding():
                scores = logits(model, images[part])
                losses = F.cross_entropy(scores, target[part], reduction="none")
                if weigh is None:
                    (losses.sum() / sum(lengths)).backward()  # type: ignore[no-untyped-call]
                else:
                    of_part = weights_of(losses.detach()) if weights is None else weights[part]
                    (of_part * losses).sum().backward()  # type: ignore[no-untyped-call]
            loss += losses.detach().sum()
            correct += (scores.detach().argmax(1) == target[part]).sum()
        return loss, correct

    def _wrap(self, images: Tensor, target: Tensor) -> nn.Module:
        """The model in DistributedDataParallel, after a trial of this process's share alone."""
        norms = shared_batchnorm.in_training(self._model)
        for norm in norms:
            norm.eval()  # a share of one image has no statistics

        def attempt(size: int) -> None:
            self.undo()
            for part in pieces(len(images), size):
                F.cross_entropy(self._scores(images[part]), target[part]).backward()  # type: ignore[no-untyped-call]

        self._micro_batch.attempt(attempt)
        has_gradient = torch.tensor([parameter.grad is not None for parameter in self._parameters], dtype=torch.int64)
        self.undo()
        for norm in norms:
            norm.train()
        sizes = self._ranks.concatenate(torch.tensor([self._micro_batch.size]), [1] * self._ranks.size)
        self._micro_batch.size = int(sizes.min())
        everywhere = bool((self._ranks.sum(has_gradient) == self._ranks.size).all())
        self._synchronise_batchnorm()
        # Of 1 x 1 convolutions, whose strides are ambiguous; it costs a copy.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with self._ranks.explained():
            wrapped = DistributedDataParallel(
                self._model, find_unused_parameters=not everywhere, gradient_as_bucket_view=True
            )
        sum_gradients(wrapped)
        run_like(wrapped, self._model)
        if self._steps is not None:
            self._steps.begin(wrapped)
        return wrapped
