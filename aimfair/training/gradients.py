"""How the parameters of a model react to each source of images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from aimfair.config import ModelSettings, SensitivitySettings
from aimfair.data.images import ImageSet
from aimfair.errors import AimfairError
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.progress import SILENT, Task
from aimfair.seeds import derive_seed, generator
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.gradient import BatchGradient
from aimfair.training.inputs import Normalize
from aimfair.training.random_state import own_random_numbers

SOURCES = ("real_biased", "synthetic_biased", "synthetic_fair")
"""R, B and U of arXiv 2503.05665: the domain gap is between the first two, the bias between the last two."""


def batches_of_each_source(sources: Mapping[str, ImageSet], settings: SensitivitySettings) -> int:
    """Whole batches that every source can give, at most ``settings.batches``.

    The same number for all, so that the noise of a mean gradient is, too.

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


def accumulate(
    model: nn.Module,
    sources: Mapping[str, ImageSet],
    settings: SensitivitySettings,
    preprocessing: ModelSettings,
    *,
    seed: int,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> Sensitivity:
    """Statistics of the gradients of the batch-mean cross-entropy, over the same number of batches of each source.

    Images come without augmentation, in an order that depends on ``seed`` and source. The model is left in evaluation
    mode with its buffers as they were, also in training mode.

    Args:
        model: on the device to work on; parameters that require a gradient are measured.
        task: advances by batches, :func:`batches_of_each_source` for each source.

    Raises:
        AimfairError: a source smaller than a batch, or NaN or infinite gradients, by parameter.
    """
    device = next(model.parameters()).device
    batches = batches_of_each_source(sources, settings)
    normalize = Normalize(preprocessing, device)
    probe = Sensitivity(model, sources)
    gradient = BatchGradient(model, settings.batch_size)
    with own_random_numbers(device), _mode(model, train=settings.train_mode):
        for source, images in sources.items():
            order = generator(seed, "sensitivity", source).permutation(len(images))
            for number, indices in enumerate(order[: batches * settings.batch_size].reshape(batches, -1)):
                interrupt.check()
                target = torch.from_numpy(images.target[indices]).to(device)
                gradient(normalize(images.images[indices]), target, derive_seed(seed, "dropout", source, number))
                try:
                    probe.update(source)
                except FloatingPointError as error:
                    raise AimfairError(str(error)) from error
                task.advance(1, note=source)
    return probe


@contextmanager
def _mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Training or evaluation mode inside; at the end no gradients, and running statistics as they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    model.train(train)
    try:
        yield
    finally:
        model.eval()
        model.zero_grad()
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
