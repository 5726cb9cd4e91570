"""How seven published methods build and use their masks today, written out in plain torch and numpy.

Each function does what the code of its authors (or of PEFT) does per tensor and per step, without its overheads: where
that code copies to the host or forms one-hot matrices, the direct way is taken instead. SalUn: OPTML-Group's
generate_mask.py; GPS: utils/pruning.py; SIFT: sift/sift.py; LIFT: src/sparseAdam.py; SHiRA, Super-Tuning: PEFT;
SpIEL: AlanAnsell/peft.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Masks = dict[str, Tensor]
"""bool, in the shapes of the parameters."""

# -- masks -------------------------------------------------------------------------------------------------------------


def salun(scores: Tensors, density: float) -> Masks:
    """Of all: two sorts give the rank of every element."""
    everything = torch.cat([values.flatten() for values in scores.values()])
    ranks = torch.argsort(torch.argsort(everything, descending=True))
    parts = (ranks < int(density * len(ranks))).split([values.numel() for values in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def gps(scores: Tensors, per_neuron: int) -> Masks:
    """Of each row: numpy sorts it whole."""
    masks = {}
    for name, values in scores.items():
        rows = values.reshape(len(values), -1).numpy()
        chosen = np.zeros(rows.shape, bool)
        np.put_along_axis(chosen, rows.argsort(axis=1)[:, -per_neuron:], True, axis=1)
        masks[name] = torch.from_numpy(chosen).view_as(values)
    return masks


def per_tensor(scores: Tensors, sizes: Mapping[str, int], *, largest: bool = True) -> Masks:
    """Of each tensor: topk, and its indices into a mask. SIFT, LIFT, SHiRA and Super-Tuning."""
    masks = {}
    for name, values in scores.items():
        indices = values.flatten().topk(sizes[name], largest=largest).indices
        masks[name] = torch.zeros(values.numel(), dtype=torch.bool).index_fill_(0, indices, True).view_as(values)
    return masks


@torch.no_grad()
def regrow(layer: "Scattered", gradient: Tensor, share: float, state: Mapping[str, Tensor]) -> int:
    """SpIEL: drops the least changed values and grows as many with large gradients, of one layer; how many changed.

    Args:
        gradient: of the whole weight, flat.
        state: moments of the values, which are zeroed where another weight takes the place.
    """
    outgoing = layer.values.abs().topk(int(share * len(layer.values)), largest=False).indices
    leaving = layer.indices[outgoing]
    is_leaving, remains, is_coming = (torch.zeros(len(gradient), dtype=torch.bool) for _ in range(3))
    is_leaving[leaving] = True
    remains[layer.indices] = True
    remains[leaving] = False
    candidates = gradient.abs().topk(len(layer.values)).indices
    coming = candidates[~remains[candidates]][: len(outgoing)]
    is_coming[coming] = True
    outgoing = outgoing[~is_coming[leaving]]
    coming = coming[~is_leaving[coming]]
    outgoing = outgoing[: len(coming)]
    layer.indices[outgoing] = coming
    layer.values[outgoing] = 0.0
    for moments in state.values():
        moments[outgoing] = 0.0
    return len(outgoing)


# -- training ----------------------------------------------------------------------------------------------------------


class MaskedGradients:
    """SalUn and GPS: gradients times the mask, then torch's optimizer on every weight.

    With momentum and without decay, unselected weights stay as they are, since their gradients are always zero.
    """

    def __init__(self, model: nn.Module, masks: Masks, make: Callable[..., torch.optim.Optimizer]):
        self._masks = [(parameter, masks[name]) for name, parameter in model.named_parameters()]
        self._optimizer = make(model.parameters())

    def step(self) -> None:
        for parameter, mask in self._masks:
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        self._optimizer.step()


class GatheredGradients:
    """SIFT and LIFT: the selected gradients are gathered, stepped in a small optimizer, and added to the weight."""

    def __init__(self, model: nn.Module, masks: Masks, lr: float):
        self._selected = []
        for name, parameter in model.named_parameters():
            indices = masks[name].flatten().nonzero().flatten()
            self._selected.append((parameter, indices, nn.Parameter(torch.zeros(len(indices)))))
        self._optimizer = torch.optim.AdamW(
            [values for *_, values in self._selected], lr=lr, weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def step(self) -> None:
        for parameter, indices, values in self._selected:
            assert parameter.grad is not None
            values.grad = parameter.grad.flatten()[indices]
            values.zero_()
        self._optimizer.step()
        for parameter, indices, values in self._selected:
            parameter.view(-1).index_add_(0, indices, values)


class Scattered(nn.Module):
    """SHiRA, Super-Tuning and SpIEL: a frozen linear layer, and values that every forward pass adds to a copy of it."""

    def __init__(self, weight: Tensor, mask: Tensor):
        super().__init__()
        self.weight = weight
        self.indices = mask.flatten().nonzero().flatten()
        self.values = nn.Parameter(torch.zeros(len(self.indices)))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.weight.flatten().scatter_add(0, self.indices, self.values)
        return nn.functional.linear(x, whole.view_as(self.weight))
