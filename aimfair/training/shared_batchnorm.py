"""BatchNorm in training mode over several processes.

``torch.nn.SyncBatchNorm`` runs on GPUs alone; this runs wherever ``torch.distributed`` does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aimfair.base.ranks import Ranks


def in_training(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm modules that use the statistics of the batch."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


@contextmanager
def synchronised(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, BatchNorm in training mode takes the statistics of the images of all processes: the result is that of a
    single process, but for rounding."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.__dict__["forward"] = _Synchronised(norm, ranks)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Leaves the mean over the processes in the running statistics."""
    statistics = [
        tensor for norm in in_training(model) for tensor in (norm.running_mean, norm.running_var) if tensor is not None
    ]
    if statistics:
        flat = ranks.sum(torch.cat(statistics)) / ranks.size
        torch._foreach_copy_(statistics, list(torch.split(flat, [len(tensor) for tensor in statistics])))


class _Synchronised:
    """Replaces a module's ``forward``."""

    def __init__(self, norm: _BatchNorm, ranks: Ranks):
        self._norm, self._ranks = norm, ranks

    @torch._disable_dynamo  # type: ignore[attr-defined] # exchanges between processes, in a compiled model too
    def __call__(self, x: Tensor) -> Tensor:
        norm = self._norm
        if not norm.training:
            return type(norm).forward(norm, x)
        norm._check_input_dim(x)  # type: ignore[no-untyped-call]
        mean, variance, count = _statistics(x, self._ranks)
        if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1
            momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
        return _Normalise.apply(x, norm.weight, norm.bias, mean, variance, norm.eps, count, self._ranks)  # type: ignore[no-any-return,no-untyped-call]


def _statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel over all processes, float32 [C], and the values of a channel."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x.detach().float(), dims, correction=0)
    count = x.numel() // x.shape[1]
    own = torch.cat([mean, variance, mean.new_tensor([count])]).double()
    of_all = ranks.concatenate(own[None], [1] * ranks.size)
    means, variances, counts = torch.split(of_all, [x.shape[1], x.shape[1], 1], 1)
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return mean.float(), variance.float(), int(counts.sum())


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, where mean and variance are those of ``x`` over all
    processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: int,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.ranks = count, ranks
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of a sum over the images of all processes; gradients of weight and bias are those of this process's part."""
        x, weight, mean, scale = ctx.saved_tensors
        grad = grads[0].float()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        dims = [dim for dim in range(x.ndim) if dim != 1]
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        own = torch.cat([grad.sum(dims), (grad * normal).sum(dims)])
        of_bias, of_weight = own.chunk(2)
        means = [part.view(shape) for part in (ctx.ranks.sum(own.clone()) / ctx.count).chunk(2)]
        factor = scale if weight is None else scale * weight
        of_x = (grad - means[0] - normal * means[1]) * factor.view(shape)
        return of_x.to(x.dtype), None if weight is None else of_weight, None if weight is None else of_bias, *[None] * 5
