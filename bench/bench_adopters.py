"""Published methods of selective tuning: their masks and their training, as published and on this package.

``mask``: from scores to a mask. ``train``: from a mask to an optimizer, and STEPS steps with forward and backward
passes, so that the extra memory is that of gradients and optimizer state. The model is a stack of linear layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import aimfair
from bench import published
from bench.harness import Case, Rival, Runner
from examples.adopters.spiel import regrow

WIDTH, LAYERS, ROWS, STEPS = 768, 4, 32, 3
LR, RATE, RANK = 1e-3, 0.05, 16

ON_CPU = "the published ways are those for the CPU; run with --device cpu"

Scores = dict[str, Tensor]


class Stack(nn.Module):
    """Feed-forward blocks of a ViT-B: LAYERS times WIDTH -> 4 WIDTH -> WIDTH, without biases."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        shapes = [(4 * width, width), (width, 4 * width)] * layers
        self.layers = nn.ModuleList(nn.Linear(b, a, bias=False) for a, b in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + down(up(x).relu())
        return x


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        ours, theirs: from scores to a mask.
        way: the published way to train: masked or gathered gradients, or values scattered in the forward pass.
    """

    name: str
    ours: Callable[[Scores], aimfair.ParameterMask]
    theirs: Callable[[Scores], published.Masks]
    way: str
    sgd: bool = False


def _shares(scores: Scores) -> dict[str, int]:
    return {name: int(RATE * values.numel()) + 1 for name, values in scores.items()}


def _like_lora(scores: Scores) -> dict[str, int]:
    return {name: min(RANK * sum(values.shape), values.numel()) for name, values in scores.items()}


def _per_tensor(name: str, sizes: Callable[[Scores], dict[str, int]], way: str) -> Method:
    return Method(
        name,
        lambda scores: aimfair.select_mask(scores, k=sizes(scores), within="tensor"),
        lambda scores: published.per_tensor(scores, sizes(scores)),
        way,
    )


METHODS = (
    Method(
        "SalUn",
        lambda scores: aimfair.select_mask(scores, k=int(0.3 * sum(values.numel() for values in scores.values()))),
        lambda scores: published.salun(scores, 0.3),
        "masked",
        sgd=True,
    ),
    Method(
        "GPS",
        lambda scores: aimfair.select_mask(scores, k=1, within="row"),
        lambda scores: published.gps(scores, 1),
        "masked",
    ),
    _per_tensor("SIFT", _shares, "gathered"),
    _per_tensor("LIFT", _like_lora, "gathered"),
    _per_tensor("SHiRA", _like_lora, "scattered"),
    _per_tensor("Super-Tuning", _shares, "scattered"),
)


def _cases() -> Iterator[Any]:
    for method in METHODS:
        for work in ("mask", "train"):
            yield pytest.param(method, work, id=f"adopters-{method.name}-{work}")


@pytest.mark.parametrize(("method", "work"), list(_cases()))
def test_adopters(
    method: Method, work: str, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    if device.type == "cuda":
        pytest.skip(ON_CPU)
    torch.manual_seed(0)
    layers, width = _size(shrink)
    model = Stack(width, layers)
    scores = {name: torch.rand(parameter.shape) for name, parameter in model.named_parameters()}
    numel = sum(values.numel() for values in scores.values())
    if work == "mask":
        found: list[aimfair.ParameterMask] = []
        ours, rival = lambda: found.append(method.ours(scores)), lambda: method.theirs(scores)

        def check() -> None:
            expected = method.theirs(scores)
            for name, selected in found[0].to_bool().items():
                # rand has 2^24 values: of equal ones at the threshold any may be published's choice
                assert torch.equal(scores[name][selected].sort().values, scores[name][expected[name]].sort().values)

    else:
        training = Training(method, model, method.ours(scores), width)
        ours, rival, check = training.ours, training.theirs, training.check
    case = Case(
        work=f"{method.name} {work}",
        tensors=f"{layers} blocks",
        numel=numel,
        floor_bytes=0,
        density=method.ours(scores).density,
        pattern="published",
        state="compact" if work == "train" else "",
        capturable=False,
        ours=ours,
        check=check,
        rivals=[Rival("as published", rival, masked=True)],
    )
    runner.run(case, benchmark)


def test_adopters_spiel(device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture) -> None:
    """A round of dropping and growing, with the moments of the optimizer and the weights that go back."""
    if device.type == "cuda":
        pytest.skip(ON_CPU)
    torch.manual_seed(0)
    layers, width = _size(shrink)
    model = Stack(width, layers)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = aimfair.ParameterMask.random(model, RATE)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=LR, weight_decay=0.0, state="compact")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    pairs = []  # the published form of the same state
    for name, parameter in model.named_parameters():
        layer = published.Scattered(base[name], mask.bool_of(name))
        with torch.no_grad():
            layer.values.copy_((parameter - base[name]).flatten()[layer.indices])
        moments = {key: torch.randn(len(layer.indices)) for key in ("exp_avg", "exp_avg_sq")}
        pairs.append((layer, parameter.grad.flatten(), moments))
    changed: list[int] = []
    case = Case(
        work="SpIEL mask",
        tensors=f"{layers} blocks",
        numel=mask.numel,
        floor_bytes=0,
        density=mask.density,
        pattern="published",
        state="compact",
        capturable=False,
        ours=lambda: changed.append(regrow(model, optimizer, base, 0.3)),
        check=lambda: _require(0 < changed[0] <= 0.3 * mask.nnz and optimizer.mask.nnz == mask.nnz),
        rivals=[
            Rival("as published", lambda: [published.regrow(*pair[:2], 0.3, pair[2]) for pair in pairs], masked=True)
        ],
    )
    runner.run(case, benchmark)


def _require(holds: bool) -> None:
    assert holds


def _size(shrink: float) -> tuple[int, int]:
    """Blocks and width."""
    return max(1, round(LAYERS * min(1.0, shrink * 100))), max(8, round(WIDTH * min(1.0, shrink * 10)))


class Training:
    """STEPS steps from a mask on, both ways from the same weights."""

    def __init__(self, method: Method, model: Stack, mask: aimfair.ParameterMask, width: int):
        self._method, self._model, self._mask, self._masks = method, model, mask, mask.to_bool()
        self._x, self._y = torch.randn(ROWS, width), torch.randn(ROWS, width)
        self._start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._run(model, lambda: None)  # what torch keeps for matrix products is of neither way

    def _run(self, model: nn.Module, step: Callable[[], object]) -> None:
        for _ in range(STEPS):
            model.zero_grad()
            nn.functional.mse_loss(model(self._x), self._y).backward()
            step()
        model.zero_grad()  # so that both ways begin without gradients

    def _rewind(self) -> None:
        self._model.load_state_dict(self._start)
        self._model.zero_grad()

    def ours(self) -> None:
        self._rewind()
        options: dict[str, Any] = {"lr": LR, "weight_decay": 0.0, "state": "compact"}
        named = self._model.named_parameters()
        if self._method.sgd:
            optimizer: torch.optim.Optimizer = aimfair.MaskedSGD(named, self._mask, momentum=0.9, **options)
        else:
            optimizer = aimfair.MaskedAdamW(named, self._mask, **options)
        self._run(self._model, optimizer.step)

    def theirs(self) -> None:
        self._rewind()
        if self._method.way == "scattered":
            model = self._scattered()
            values = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self._run(model, torch.optim.AdamW(values, lr=LR, weight_decay=0.0, fused=True).step)
            self._merge(model)
        elif self._method.way == "gathered":
            self._run(self._model, published.GatheredGradients(self._model, self._masks, LR).step)
        else:
            self._run(self._model, published.MaskedGradients(self._model, self._masks, self._optimizer).step)

    def _optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        if self._method.sgd:
            return torch.optim.SGD(parameters, lr=LR, momentum=0.9, fused=True)
        return torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)

    def _scattered(self) -> Stack:
        model = Stack(8, len(self._model.layers) // 2)
        for i, (name, layer) in enumerate(self._model.named_parameters()):
            model.layers[i] = published.Scattered(layer.detach(), self._masks[name])
        return model

    @torch.no_grad()
    def _merge(self, scattered: Stack) -> None:
        """Adds the values to the weights, as an adapter is merged after training."""
        for layer in scattered.layers:
            layer.weight.view(-1).index_add_(0, layer.indices, layer.values)

    def check(self) -> None:
        """Both ways lead to the same weights, up to rounding."""
        found = {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}
        self.theirs()
        agree = total = 0
        for name, parameter in self._model.named_parameters():
            assert torch.equal(found[name][~self._masks[name]], self._start[name][~self._masks[name]])
            apart = (found[name] - parameter.detach())[self._masks[name]].abs()
            agree, total = agree + int((apart < 0.1 * LR).sum()), total + apart.numel()
        assert agree > 0.98 * total
