"""Makes a classifier forget one class by changing only the weights most salient for it (SalUn, arXiv 2310.12508)."""

import torch
from torch import Tensor, nn

import aimfair

CLASSES, FORGOTTEN, FEATURES, DENSITY = 5, 2, 16, 0.3


def blobs(size: int) -> tuple[Tensor, Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (size,))
    return centers[labels] + 0.4 * torch.randn(size, FEATURES), labels


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 200) -> None:
    for _ in range(steps):
        batch = torch.randint(len(y), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracies(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    right, forgotten = model(x).argmax(1) == y, y == FORGOTTEN
    return {"forgotten": right[forgotten].float().mean().item(), "retained": right[~forgotten].float().mean().item()}


def saliency_mask(model: nn.Module, x: Tensor, y: Tensor, density: float) -> aimfair.ParameterMask:
    probe = aimfair.Sensitivity(model, sources=("forget",), statistics="sum")
    nn.functional.cross_entropy(model(x), y).backward()
    probe.update("forget")
    return probe.select("top_k", criterion="magnitude", density=density)


def unlearn(model: nn.Module, x: Tensor, y: Tensor) -> aimfair.ParameterMask:
    """Tunes the salient weights on all data, with random other labels for the forgotten class."""
    forget = y == FORGOTTEN
    mask = saliency_mask(model, x[forget], y[forget], DENSITY)
    relabelled = torch.where(forget, (y + torch.randint(1, CLASSES, y.shape)) % CLASSES, y)
    train(model, aimfair.MaskedSGD(model.named_parameters(), mask, lr=0.1, momentum=0.9), x, relabelled)
    return mask


def main() -> list[dict[str, float]]:
    torch.manual_seed(0)
    training, test = blobs(2000), blobs(1000)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), *training)
    before, mask, after = accuracies(model, *test), unlearn(model, *training), accuracies(model, *test)
    for kind in before:
        print(f"{kind} classes: accuracy {before[kind]:.3f} -> {after[kind]:.3f} with {mask.density:.0%} of weights")
    return [before, after]


if __name__ == "__main__":
    main()
