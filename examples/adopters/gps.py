"""Tunes one weight per neuron, the one with the largest gradient (GPS, CVPR 2024, arXiv 2312.10136).

As its authors' code has it: biases and the head are tuned whole; norms, position embedding and class token not at all.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import aimfair

CLASSES, PATCH, WIDTH, TOKENS = 4, 4, 32, 17
WHOLE, FROZEN = ("bias", "head"), ("norm", "pos_embed", "cls_token")  # FROZEN takes precedence


class ViT(nn.Module):
    """A small vision transformer with timm's names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).mT
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))


def gps_mask(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], per_neuron: int = 1) -> aimfair.ParameterMask:
    """The ``per_neuron`` weights of each neuron with the largest summed gradient."""
    probe = aimfair.Sensitivity(model, sources=("task",), statistics="sum")
    with probe.capture("task"):  # gradients are summed and freed while backward runs
        for x, y in batches:
            nn.functional.cross_entropy(model(x), y).backward()
    names = [name for name, _ in model.named_parameters()]
    frozen = [name for name in names if any(word in name for word in FROZEN)]
    whole = [name for name in names if any(word in name for word in WHOLE) and name not in frozen]
    neurons = probe.select("top_k", criterion="magnitude", within="row", k=per_neuron, freeze=frozen)
    return neurons | aimfair.ParameterMask.from_names(model, whole)


def images(size: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright quadrant, which is the class."""
    labels = torch.randint(CLASSES, (size,))
    quadrants = nn.functional.one_hot(labels, CLASSES).float().view(-1, 1, 2, 2)
    return 0.5 * torch.randn(size, 3, 16, 16) + nn.functional.interpolate(quadrants, 16), labels


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model, batches = ViT(), [images(32) for _ in range(60)]
    mask = gps_mask(model, batches[:5])
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, state="compact")
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    first, last = losses[0].item(), losses[-1].item()
    print(f"GPS: tuning {mask.density:.1%} of the weights, loss {first:.2f} -> {last:.2f}")
    return first, last


if __name__ == "__main__":
    main()
