"""Tunes the largest entries of each matrix's low-rank part, which is computed anew now and then (LIFT, ICML 2025,
arXiv 2506.00772). The optimizer keeps the moments of weights that stay selected."""

import torch
from torch import Tensor, nn

import aimfair

FEATURES, CLASSES, RANK, EVERY = 24, 6, 4, 25


def low_rank_part(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank."""
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@torch.no_grad()
def lift_mask(model: nn.Module, rank: int, filter_rank: int) -> aimfair.ParameterMask:
    """``rank * (rows + columns)`` entries of each matrix: as many as an adapter of LoRA has.

    Args:
        filter_rank: of the low-rank part.
    """
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    scores = {name: low_rank_part(p, filter_rank).abs() for name, p in matrices.items()}
    sizes = {name: min(rank * sum(p.shape), p.numel()) for name, p in matrices.items()}
    return aimfair.select_mask(scores, k=sizes, within="tensor", parameters=model)


def blobs(size: int, seed: int) -> tuple[Tensor, Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(seed))
    labels = torch.randint(CLASSES, (size,))
    return centers[labels] + 0.8 * torch.randn(size, FEATURES), labels


def tune(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """The loss of every step."""
    losses = []
    for step in range(steps):
        if isinstance(optimizer, aimfair.MaskedAdamW) and step and step % EVERY == 0:
            optimizer.update_mask(lift_mask(model, RANK, RANK))
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    tune(model, torch.optim.AdamW(model.parameters(), lr=1e-2), *blobs(1000, seed=1), steps=100)  # the first task
    mask = lift_mask(model, RANK, RANK)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, state="compact")
    losses = tune(model, optimizer, *blobs(1000, seed=2), steps=100)
    print(f"LIFT: tuning {mask.density:.1%} of the weights, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
