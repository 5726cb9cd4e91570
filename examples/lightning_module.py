"""Tunes 10% of a model's weights with Lightning: one module measures them, the other tunes them."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aimfair
from aimfair.selective.frozen import FrozenReport

DENSITY, FEATURES, CLASSES = 0.1, 16, 4


class Tuning(lightning.LightningModule):
    def __init__(self, model: nn.Module, mask: aimfair.ParameterMask | None = None):
        super().__init__()
        self.model, self.mask = model, mask

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.mask is not None
        return aimfair.MaskedAdamW(self.model.named_parameters(), self.mask, lr=1e-2, state="compact")


class Measuring(Tuning):
    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.probe = aimfair.Sensitivity(model, sources=("task",), statistics="square")

    def on_before_optimizer_step(self, _: Any) -> None:
        self.probe.update("task")  # leaves no gradient for the step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


def fit(module: lightning.LightningModule, data: Any, epochs: int) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet).fit(module, data)


def main() -> tuple[aimfair.ParameterMask, FrozenReport]:
    torch.manual_seed(0)
    y = torch.randint(CLASSES, (512,))
    data = DataLoader(TensorDataset(torch.randn(CLASSES, FEATURES)[y] + torch.randn(512, FEATURES), y), batch_size=64)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    fit(measuring := Measuring(model), data, epochs=1)
    mask = measuring.probe.select("top_k", criterion="fisher", density=DENSITY)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(Tuning(model, mask), data, epochs=3)
    print(report := aimfair.verify_frozen(model, mask, before))
    return mask, report


if __name__ == "__main__":
    main()
