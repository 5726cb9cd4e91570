"""What a step of fine-tuning keeps in memory, measured on a model and its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from aimfair.data.images import ImageSet
from aimfair.selective.mask import ParameterMask
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.loop import set_training_mode
from aimfair.training.models import load_model
from aimfair.training.optimizer import build_optimizer
from aimfair.training.settings import FinetuneSettings, ModelSettings

_STEPS = 2  # the state is there after the first, and its peak with it in the second
_FEW = 8  # images of a step whose peak is not measured


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights, gradients, optimizer, mask: of the tensors that are there after a step.
        peak: most that was allocated in a step of a whole batch, activations included; None on the CPU.
    """

    weights: int
    gradients: int
    optimizer: int
    mask: int
    peak: int | None

    @property
    def total(self) -> int:
        """What is kept between steps, without activations."""
        return self.weights + self.gradients + self.optimizer + self.mask


def measure(
    baseline: Path,
    mask_file: Path,
    images: ImageSet,
    settings: FinetuneSettings,
    preprocessing: ModelSettings,
    device: torch.device,
) -> Memory:
    """Takes two steps with the first images of the balanced set, on a copy of the biased model.

    Args:
        baseline: folder of the biased model. mask_file: the mask of the method.
        device: on which peak memory is measured too if it is a GPU.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    model = load_model(baseline, preprocessing).to(device)
    prepare(model, preprocessing)
    mask = ParameterMask.load(mask_file, model)
    mask.freeze_unselected(model)
    optimizer = build_optimizer(model, settings, mask)
    set_training_mode(model, settings.batchnorm)
    count = min(settings.batch_size if on_gpu else _FEW, len(images))
    pixels = Normalize(preprocessing, device)(images.images[:count])
    target = torch.from_numpy(images.target[:count]).to(device)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(logits(model, pixels), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    parameters = list(model.parameters())
    state = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    return Memory(
        weights=_bytes(parameters),
        gradients=_bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        optimizer=_bytes(state),
        mask=_bytes([mask.bits, mask.rank]),
        peak=torch.cuda.max_memory_allocated(device) - before if on_gpu else None,
    )


def text(size: int) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
