"""Measures the gradient sensitivity of a model to each source of images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.memory import MicroBatch, pieces
from aimfair.base.progress import SILENT, Task
from aimfair.base.seeds import derive_seed, forked_torch_rng, generator, seed_torch
from aimfair.data.images import ImageSet
from aimfair.selective.parameters import listing
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.processes import ONE, Processes
from aimfair.training.settings import ModelSettings, SensitivitySettings

SOURCES = ("real_biased", "synthetic_biased", "synthetic_fair")
"""R, B and U of arXiv 2503.05665: the domain gap is between the first two, the bias between the last two."""


def batches_of_each_source(sources: Mapping[str, ImageSet], settings: SensitivitySettings) -> int:
    """Full batches that every source has, at most ``settings.batches``: the same number for all, so that mean gradients
    have the same noise.

    Raises:
        AimfairError: a source is smaller than a batch.
    """
    name, smallest = min(((name, len(images)) for name, images in sources.items()), key=lambda item: item[1])
    batches = smallest // settings.batch_size
    if not batches:
        raise AimfairError(
            f"source {name} has {smallest} images, fewer than one batch; sensitivity.batch_size is"
            f" {settings.batch_size}, expected at most {smallest}"
        )
    return min(batches, settings.batches or batches)


def measure_sensitivity(
    model: nn.Module,
    sources: Mapping[str, ImageSet],
    settings: SensitivitySettings,
    preprocessing: ModelSettings,
    *,
    seed: int,
    processes: Processes = ONE,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> Sensitivity:
    """Statistics of the gradients of the batch-mean cross-entropy, over the same number of batches of each source.

    Images come without augmentation, in an order that depends on ``seed`` and source. The model is left in evaluation
    mode with its buffers as they were, also in training mode.

    Beside weights and activations this holds what ``settings.statistics`` keeps, and only those gradients that are not
    accumulated yet: they are freed during the backward pass. When memory runs out everything restarts with batches
    split into smaller parts, whose gradients are kept until all are there: another 4 bytes per weight. (The failed
    batch alone cannot be reverted, as part of its gradients has been accumulated.)

    Args:
        model: on the device to work on; parameters that require a gradient are measured.
        processes: each takes every so-manyth batch, and all get the statistics of all batches; of a sharded model each
            takes its share of every batch, and gets the statistics of its rows.
        task: advances by batches, :func:`batches_of_each_source` for each source.

    Raises:
        AimfairError: a source smaller than a batch, or gradients that are NaN, infinite or too large for float32, by
            parameter.
    """
    if processes.sharded:
        from aimfair.training.sharded_sensitivity import accumulate
    device = next(model.parameters()).device
    batches = batches_of_each_source(sources, settings)
    normalize = Normalize(preprocessing, device)
    prepare(model, preprocessing)
    declared = dict.fromkeys(sources, batches) if settings.statistics == "signed" else None
    probe = Sensitivity(model, sources, statistics=settings.statistics, batches=declared)
    done, ranks = 0, processes.ranks

    def attempt(size: int) -> None:
        nonlocal done
        restore_buffers()
        probe.reset()
        number_in_all = 0
        parts = list(pieces(settings.batch_size, size))
        for source, images in sources.items():
            order = generator(seed, "sensitivity", source).permutation(len(images))
            with probe.capture(source, accumulate_steps=len(parts)):
                for number, indices in enumerate(order[: batches * settings.batch_size].reshape(batches, -1)):
                    if number % ranks.size != ranks.rank:
                        continue
                    interrupt.check()
                    target = torch.from_numpy(images.target[indices]).to(device)
                    x = normalize(images.images[indices])
                    seed_torch(derive_seed(seed, "dropout", source, number), device)
                    for part in parts:
                        # LeViT keeps tensors of the graph in evaluation mode until it leaves it.
                        model.train(True)
                        model.train(settings.train_mode)
                        loss = F.cross_entropy(logits(model, x[part]), target[part], reduction="sum")
                        (loss / len(x)).backward()  # type: ignore[no-untyped-call]
                    number_in_all += 1
                    if number_in_all > done:  # repeated batches are no progress
                        done = number_in_all
                        task.advance(min(ranks.size, batches - number), note=source)

    with forked_torch_rng(device), _mode(model, train=settings.train_mode) as restore_buffers:
        try:
            if processes.sharded:
                accumulate(model, probe, sources, batches, settings, processes, normalize, seed, task, interrupt)
            else:
                MicroBatch(settings.batch_size).attempt(attempt)
            if processes.sharded:
                _require_finite(probe)
            elif processes.several:
                with ranks.explained():
                    probe.reduce()
                _require_finite(probe)
            probe.require_finite()
        except FloatingPointError as error:
            found = str(error).partition(";")[0]
            raise AimfairError(
                f"sensitivity: {found}: the training diverged, or the model scales its gradients; choose a lower"
                " train.lr, or take the scale out of the model"
            ) from error
    return probe


def _require_finite(probe: Sensitivity) -> None:
    """
    Raises:
        FloatingPointError: NaN or infinite gradients in any of several processes, which none of them has raised.
    """
    for source, counts in probe.summary().nonfinite.items():
        if counts:
            raise FloatingPointError(f"NaN or infinite gradients in source {source!r}: {listing(counts)}")


@contextmanager
def _mode(model: nn.Module, *, train: bool) -> Iterator[Callable[[], None]]:
    """Training or evaluation mode inside; on exit no gradients, and buffers restored. Yields a function that restores
    buffers.
    """
    before = [buffer.clone() for buffer in model.buffers()]

    def restore_buffers() -> None:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

    model.train(train)
    try:
        yield restore_buffers
    finally:
        model.eval()
        model.zero_grad()
        restore_buffers()
