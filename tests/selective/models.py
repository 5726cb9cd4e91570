"""A small model with every kind of parameter, and gradients for it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CLASSES = 5


class Toy(nn.Module):
    """Tensors of four, two, one, zero dimensions, with more and less than a block, an empty one and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.ones(3, 2))
        self.body = nn.ModuleList([nn.Linear(72, 40), nn.Linear(40, 33)])
        self.head = nn.Linear(33, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).relu().flatten(1) * self.scale + self.empty.sum()
        for layer in self.body:
            x = layer(x).relu()
        return self.head(x)


def toy(device: torch.device | str = "cpu") -> Toy:
    return Toy().to(device)


def data_parallel(model: nn.Module) -> nn.DataParallel:
    """A wrapper around a model that stays where it is; the constructor would move it to a GPU that is there."""
    wrapper = nn.DataParallel.__new__(nn.DataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


def batch(device: torch.device | str = "cpu", size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 5, 5, device=device), torch.randint(CLASSES, (size,), device=device)


def backward(model: nn.Module, images: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    loss = nn.functional.cross_entropy(model(images), labels)
    (loss * scale).backward()
    return loss.detach()


def random_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


def set_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equality that tells NaN payloads and signed zeros apart."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.contiguous().view(integer), y.contiguous().view(integer))


def assert_unselected_unchanged(model: nn.Module, before: Mapping[str, Tensor], selected: Mapping[str, Tensor]) -> None:
    """Elements that a mask leaves out have the bits they had; at least one that it selects has not."""
    changed = False
    for name, parameter in model.named_parameters():
        left_out = ~selected[name] if name in selected else torch.ones_like(parameter, dtype=torch.bool)
        assert same_bits(parameter.detach()[left_out], before[name][left_out]), name
        changed |= not same_bits(parameter.detach()[~left_out], before[name][~left_out])
    assert changed, "no selected element moved"
