"""Masks that change while training: the least changed weights are dropped, those with large gradients grow in their
place (SpIEL-AG, arXiv 2401.16405). A dropped weight is its old self again; the others keep their moments."""

import torch
from torch import Tensor, nn

import aimfair

FEATURES, CLASSES, DENSITY, EVERY, STEPS = 24, 6, 0.05, 20, 160


@torch.no_grad()
def regrow(model: nn.Module, optimizer: aimfair.MaskedAdamW, base: dict[str, Tensor], share: float) -> int:
    """Drops up to ``share`` of the selected weights of each tensor and selects as many others; how many changed.

    Args:
        base: the weights before the training.
    """
    mask, named = optimizer.mask, dict(model.named_parameters())
    changes = {name: (p - base[name]).abs() for name, p in named.items()}
    gradients = {name: p.grad.abs() for name, p in named.items()}
    sizes = dict(zip(mask.names, mask.nnz_per_tensor, strict=True))
    worst = best(changes, mask, {name: int(share * size) for name, size in sizes.items()}, largest=False)
    candidates = aimfair.select_mask(gradients, k=some(sizes), within="tensor") - (mask - worst)
    there = zip(candidates.nnz_per_tensor, worst.nnz_per_tensor, strict=True)
    incoming = best(gradients, candidates, dict(zip(mask.names, map(min, there), strict=True)))
    grown = incoming - worst
    dropped = best(changes, worst - incoming, dict(zip(mask.names, grown.nnz_per_tensor, strict=True)), largest=False)
    for name, chosen in dropped.to_bool().items():
        named[name][chosen] = base[name][chosen]
    optimizer.update_mask((mask - dropped) | grown)
    return grown.nnz


def best(
    scores: dict[str, Tensor], among: aimfair.ParameterMask, sizes: dict[str, int], *, largest: bool = True
) -> aimfair.ParameterMask:
    """So many of each tensor, of those in a mask."""
    last = -torch.inf if largest else torch.inf
    held = {name: scores[name].where(chosen, last) for name, chosen in among.to_bool().items()}
    if not some(sizes):
        return among - among
    return aimfair.select_mask(held, k=some(sizes), within="tensor", largest=largest)


def some(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size}


def blobs(size: int) -> tuple[Tensor, Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (size,))
    return centers[labels] + 0.8 * torch.randn(size, FEATURES), labels


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, CLASSES)), blobs(1000)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = aimfair.ParameterMask.random(model, DENSITY)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.0, state="compact")
    losses, grown = [], 0
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            grown += regrow(model, optimizer, base, share=0.5 * (1 - step / STEPS))
    first, last = losses[0].item(), losses[-1].item()
    tuned = f"tuning {optimizer.mask.density:.1%} of the weights, {grown} times another one"
    print(f"SpIEL: {tuned}, loss {first:.2f} -> {last:.2f}")
    return first, last


if __name__ == "__main__":
    main()
