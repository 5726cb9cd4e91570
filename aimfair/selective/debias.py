"""AIM-Fair (CVPR 2025, arXiv 2503.05665) as one function of a model and three loaders, without files or settings."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimfair.selective.frozen import FrozenReport, verify_frozen
from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW
from aimfair.selective.parameters import named_parameters
from aimfair.selective.sensitivity import Sensitivity

SOURCES = ("real_biased", "synthetic_biased", "synthetic_fair")
"""Of the three loaders: the domain gap is between the first two, the bias between the last two."""

Batch = Any
"""What a loader yields: (inputs, labels, ...), or a dict of "labels" and the model's arguments."""

BatchLoss = Callable[[nn.Module, Batch], Tensor]
"""The mean loss of a batch, whose tensors are on the device of the model."""

SELECT: Mapping[str, Any] = {"rule": "ratio", "criterion": "relative_difference", "density": 0.3}
"""Arguments of :meth:`Sensitivity.select`: the elements that react most to the bias and least to the domain gap."""


@dataclass(frozen=True)
class Debiased:
    """What :func:`debias` has done to a model.

    Attributes:
        mask: the elements that were tuned.
        sensitivity: the statistics that decided it, for other masks.
        losses: mean over the batches of each epoch.
        report: what has changed, compared bit by bit.
    """

    mask: ParameterMask
    sensitivity: Sensitivity
    losses: tuple[float, ...]
    report: FrozenReport


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Of the logits that the model returns, or has as ``logits`` in what it returns."""
    if isinstance(batch, Mapping):
        output = model(**{name: value for name, value in batch.items() if name != "labels"})
        labels = batch["labels"]
    else:
        output, labels = model(batch[0]), batch[1]
    return F.cross_entropy(getattr(output, "logits", output), labels)


def debias(
    model: nn.Module,
    real: Iterable[Batch],
    biased_synthetic: Iterable[Batch],
    balanced_synthetic: Iterable[Batch],
    *,
    select: Mapping[str, Any] = SELECT,
    batches: int | None = None,
    epochs: int = 5,
    loss: BatchLoss = cross_entropy,
    optimizer: Callable[..., torch.optim.Optimizer] = MaskedAdamW,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    **options: Any,
) -> Debiased:
    """Tunes, in place, the weights of a biased model that react to its bias, on balanced synthetic data.

    Labels of groups are not used. Gradients are measured in evaluation mode, over as many batches of each source. The
    model is tuned in training mode, where BatchNorm follows the synthetic data, and ends in the mode that it had.

    Args:
        model: trained on ``real``, on the device to work on. Parameters that require a gradient are measured.
        real: data with the bias. biased_synthetic: synthetic data with the same bias.
        balanced_synthetic: synthetic data with groups of equal size. All three in shuffled batches of one size; smaller
            ones are not measured.
        select: arguments of :meth:`Sensitivity.select`.
        batches: of each source to measure, if all have as many; None: as many as all have.
        epochs: over ``balanced_synthetic``.
        loss: of a batch, for other models and tasks.
        optimizer: called with the named parameters, the mask and ``options``, such as ``lr=1e-4``.
        on_epoch: called with the number of the epoch, from 1, and its mean loss.

    Raises:
        TypeError: a source can be iterated only once.
        ValueError: a source has no batch, their batches differ in size, or nothing can be selected.
        FloatingPointError: a gradient is NaN or infinite, by parameter, or a loss is.
    """
    loaders = dict(zip(SOURCES, (real, biased_synthetic, balanced_synthetic), strict=True))
    for source, loader in loaders.items():
        if isinstance(loader, Iterator):
            raise TypeError(
                f"{source}: found an iterator, which ends; expected a loader or list, iterated for each use"
            )
    device = next(model.parameters()).device
    before = {name: parameter.detach().clone() for name, parameter in named_parameters(model, trainable=False).items()}
    probe, was_training = Sensitivity(model, SOURCES), model.training
    try:
        model.eval()
        _measure(model, loaders, batches, loss, probe, device)
        mask = probe.select(**select)
        tuning, losses = optimizer(model.named_parameters(), mask, **options), list[float]()
        for epoch in range(1, epochs + 1):
            model.train()
            losses.append(_tune(model, balanced_synthetic, loss, tuning, device))
            on_epoch(epoch, losses[-1])
    finally:
        model.zero_grad()
        model.train(was_training)
    return Debiased(mask, probe, tuple(losses), verify_frozen(model, mask, before))


def _measure(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Batch]],
    batches: int | None,
    loss: BatchLoss,
    probe: Sensitivity,
    device: torch.device,
) -> None:
    if batches is not None and batches < 1:
        raise ValueError(f"batches={batches}: expected at least 1")
    sizes: dict[str, int] = {}

    def whole_batches(source: str, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            size = sizes.setdefault(source, _size(batch))
            if _size(batch) == size:
                yield batch

    rounds = zip(*(whole_batches(source, loader) for source, loader in loaders.items()), strict=False)
    for one_of_each in islice(rounds, batches):
        if len(set(sizes.values())) > 1:
            raise ValueError(f"batches of different sizes, whose gradients cannot be compared: {sizes}")
        for source, batch in zip(SOURCES, one_of_each, strict=True):
            loss(model, _to(batch, device)).backward()  # type: ignore[no-untyped-call]
            probe.update(source)
    for source in SOURCES:
        if source not in sizes:
            raise ValueError(f"{source}: the loader has no batch")


def _tune(
    model: nn.Module, loader: Iterable[Batch], loss: BatchLoss, optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """One epoch; its mean loss."""
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in loader:
        optimizer.zero_grad()
        value = loss(model, _to(batch, device))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value.detach()
        count += 1
    mean = float(total / max(count, 1))
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss became {mean}: choose a lower lr")
    return mean


def _size(batch: Batch) -> int:
    return len(batch["labels"] if isinstance(batch, Mapping) else batch[1])


def _to(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_to(value, device) for value in batch]
    return batch.to(device) if isinstance(batch, Tensor) else batch
