"""Tunes the largest weights of every linear layer (Super-Tuning, arXiv 2607.09287), without an adapter's forward pass.

PEFT's version keeps the selected weights beside the layer and scatters them into a copy of it in every forward pass.
"""

import torch
from torch import Tensor, nn

import aimfair

FEATURES, CLASSES, SPARSITY = 24, 6, 0.95


def super_mask(model: nn.Module, sparsity: float, *, top: bool = True) -> aimfair.ParameterMask:
    """``int(n * (1 - sparsity))`` of the n weights of every linear layer.

    Args:
        top: the largest in magnitude; else the smallest, which suits some tasks better.
    """
    linears = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    sizes = {name: int(weight.numel() * (1 - sparsity)) for name, weight in linears.items()}
    magnitudes = {name: weight.detach().abs() for name, weight in linears.items()}
    return aimfair.select_mask(magnitudes, k=sizes, within="tensor", largest=top, parameters=model)


def blobs(size: int) -> tuple[Tensor, Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (size,))
    return centers[labels] + 0.8 * torch.randn(size, FEATURES), labels


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    mask, (x, y) = super_mask(model, SPARSITY), blobs(1000)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.0, state="compact")
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    first, last = losses[0].item(), losses[-1].item()
    print(f"Super-Tuning: tuning {mask.density:.1%} of the weights, loss {first:.2f} -> {last:.2f}")
    return first, last


if __name__ == "__main__":
    main()
