"""Tunes 10% of a model's weights in a loop of Accelerate: the same lines on one process, on many and in 16 bits."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aimfair
from aimfair.selective.frozen import FrozenReport

DENSITY, FEATURES, CLASSES = 0.1, 16, 4


def blobs(count: int) -> list[Tensor]:
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (count,))
    return [centers[labels] + torch.randn(count, FEATURES), labels]


def main() -> tuple[aimfair.ParameterMask, FrozenReport]:
    torch.manual_seed(0)
    accelerator = Accelerator()
    data = DataLoader(TensorDataset(*blobs(512)), batch_size=64, shuffle=True)
    model, data = accelerator.prepare(nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES)), data)

    probe = aimfair.Sensitivity(model, sources=("task",), statistics="square")
    for x, y in data:
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        probe.update("task")  # of gradients that DistributedDataParallel has averaged; leaves none
    mask = probe.select("top_k", criterion="fisher", density=DENSITY)

    before = {name: p.detach().clone() for name, p in accelerator.unwrap_model(model).named_parameters()}
    masked = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, state="compact")
    optimizer = accelerator.prepare_optimizer(masked)
    for _ in range(3):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print(f"loss {loss.item():.3f}; {(report := aimfair.verify_frozen(model, mask, before))}")
    return mask, report


if __name__ == "__main__":
    main()
