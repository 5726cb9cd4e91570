"""Sparse high-rank adapters (SHiRA, NeurIPS 2024, arXiv 2406.13175): tuned in place, exported for PEFT.

PEFT adds the adapter to the weight in every forward pass; here the weights themselves are tuned, and the difference
becomes the adapter.
"""

import sys
import tempfile

import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective.shira import write_adapter

FEATURES, CLASSES, RANK = 24, 6, 2


def shira_mask(model: nn.Module, rank: int) -> aimfair.ParameterMask:
    """SHiRA-WM: the largest ``rank * (in + out)`` weights of every linear layer, as many as an adapter of LoRA has."""
    linears = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    sizes = {name: min(rank * sum(weight.shape), weight.numel()) for name, weight in linears.items()}
    magnitudes = {name: weight.detach().abs() for name, weight in linears.items()}
    return aimfair.select_mask(magnitudes, k=sizes, within="tensor", parameters=model)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def blobs(size: int) -> tuple[Tensor, Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (size,))
    return centers[labels] + 0.8 * torch.randn(size, FEATURES), labels


def tune(model: nn.Module, mask: aimfair.ParameterMask, x: Tensor, y: Tensor, steps: int = 150) -> list[float]:
    """The loss of every step."""
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.0, state="compact")
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main(folder: str) -> tuple[float, float]:
    base, model = small_model(), small_model()
    losses = tune(model, mask := shira_mask(model, RANK), *blobs(1000))
    adapter = write_adapter(aimfair.Delta.between(base, model), base, folder)
    print(
        f"SHiRA: tuning {mask.density:.1%} of the weights, loss {losses[0]:.2f} -> {losses[-1]:.2f}, rank {adapter.r}"
    )
    return losses[0], losses[-1]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
