"""Gradient sensitivity of a model that several processes hold together (FSDP2)."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from aimfair.base.errors import ConfigError
from aimfair.base.interrupt import Interrupt
from aimfair.base.progress import Task
from aimfair.base.seeds import derive_seed, generator, seed_torch
from aimfair.data.images import ImageSet
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training import shared_batchnorm
from aimfair.training.execution import logits
from aimfair.training.feed import Normalize
from aimfair.training.processes import Processes, out_of_memory
from aimfair.training.settings import SensitivitySettings
from aimfair.training.sharded_gradient import sum_gradients


def accumulate(
    model: nn.Module,
    probe: Sensitivity,
    sources: Mapping[str, ImageSet],
    batches: int,
    settings: SensitivitySettings,
    processes: Processes,
    normalize: Normalize,
    seed: int,
    task: Task,
    interrupt: Interrupt,
) -> None:
    """Adds the gradients of all batches: each process computes its share of every batch, and gets its rows of the
    gradient of the whole batch."""
    ranks = processes.ranks
    if settings.batch_size < ranks.size:
        raise ConfigError(
            f"sensitivity.batch_size: found {settings.batch_size}, expected at least {ranks.size}, an image for each"
            " process"
        )
    device = normalize.device
    sum_gradients(model)
    with (
        out_of_memory(ranks, f"with batches of {settings.batch_size} images", "lower sensitivity.batch_size, "),
        shared_batchnorm.synchronised(model, ranks) if settings.train_mode else nullcontext(),
        ranks.explained(),
    ):
        for source, images in sources.items():
            order = generator(seed, "sensitivity", source).permutation(len(images))
            for number, indices in enumerate(order[: batches * settings.batch_size].reshape(batches, -1)):
                processes.agreed(interrupt)[0].check()
                own = indices[ranks.share(len(indices))]
                purpose = () if ranks.leads else ("process", ranks.rank)
                seed_torch(derive_seed(seed, "dropout", source, number, *purpose), device)
                model.train(True)
                model.train(settings.train_mode)
                target = torch.from_numpy(images.target[own]).to(device)
                loss = F.cross_entropy(logits(model, normalize(images.images[own])), target, reduction="sum")
                (loss / len(indices)).backward()  # type: ignore[no-untyped-call]
                probe.update(source, zero_grads=False)
                model.zero_grad()
                task.advance(1, note=source)
