"""Whole optimizer steps, Python included: ``MaskedAdamW`` and ``MaskedSGD`` against torch's fused optimizers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.optim import Optimizer

import aimfair
from bench import floors
from bench.harness import Case, Rival, Runner
from bench.shapes import MODELS
from bench.workloads import GRADIENT_SCALE, Pattern, Selection, case_id, flat, normal, take, tensor_list, windows

ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
SGD: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9}


@dataclass(frozen=True)
class Kind:
    optimizer: str
    torch: Callable[..., Optimizer]
    ours: Callable[..., Optimizer]
    state_count: int
    moment_bits: int = 32

    @property
    def name(self) -> str:
        return self.optimizer if self.moment_bits == 32 else f"{self.optimizer} {self.moment_bits}-bit"


def adamw(moment_bits: int = 32) -> Kind:
    return Kind(
        "AdamW",
        lambda params: torch.optim.AdamW(params, fused=True, capturable=params[0].is_cuda, **ADAMW),
        lambda params, **options: aimfair.MaskedAdamW(params, **ADAMW, moment_bits=moment_bits, **options),
        2,
        moment_bits,
    )


def sgd() -> Kind:
    return Kind(
        "SGD",
        lambda params: torch.optim.SGD(params, fused=True, **SGD),
        lambda params, **options: aimfair.MaskedSGD(params, **SGD, **options),
        1,
    )


def cases() -> Iterator[Any]:
    for name in MODELS:
        for kind, pattern, density, state in (
            (adamw(), "random", 0.01, "compact"),
            (adamw(), "random", 0.10, "dense"),
            (adamw(), "random", 0.10, "compact"),
            (adamw(), "all", 1.0, "dense"),
            (adamw(16), "random", 0.10, "compact"),
            (adamw(8), "random", 0.10, "compact"),
            (sgd(), "random", 0.10, "compact"),
        ):
            marks = [pytest.mark.quick] * (name == "ResNet-18")
            words = case_id(kind.name, name, f"{density:.0%}", pattern, state)
            yield pytest.param(name, kind, pattern, density, state, id=words, marks=marks)


@pytest.mark.parametrize(("name", "kind", "pattern", "density", "state"), list(cases()))
def test_optimizer(
    name: str,
    kind: Kind,
    pattern: Pattern,
    density: float,
    state: str,
    device: torch.device,
    shrink: float,
    runner: Runner,
    benchmark: BenchmarkFixture,
) -> None:
    tensors = tensor_list(name, shrink)
    params = parameters(normal(tensors.shapes, device), normal(tensors.shapes, device, scale=GRADIENT_SCALE))
    names = [f"parameter_{t}" for t in range(len(params))]
    selection = Selection(tensors, pattern, density, device)
    mask = aimfair.ParameterMask(tuple(names), tensors.shapes, selection.bits, selection.rank)
    ours = kind.ours(list(zip(names, params, strict=True)), mask=mask, state=state)
    rival = kind.torch(params)
    check = check_optimizer(kind, params, selection, steps=2)
    ours.step()  # makes the state, which is no extra memory of a step
    compact = state == "compact"
    case = Case(
        work=f"{kind.name}.step()",
        tensors=name,
        numel=tensors.numel,
        density=density,
        pattern=pattern,
        state=state,
        floor_bytes=floors.step_bytes(
            tensors.numel,
            selection.bits,
            sum(selection.nnz),
            4,
            dense_states=0 if compact else kind.state_count,
            compact_states=kind.state_count if compact else 0,
            compact_state_size=kind.moment_bits // 8,
        ),
        ours=ours.step,
        check=check,
        rivals=[Rival(f"torch.optim.{kind.optimizer}, fused", rival.step)],
    )
    runner.run(case, benchmark)


def parameters(values: list[Tensor], grads: list[Tensor]) -> list[torch.nn.Parameter]:
    result = [torch.nn.Parameter(value) for value in values]
    for parameter, grad in zip(result, grads, strict=True):
        parameter.grad = grad
    return result


def check_optimizer(
    kind: Kind, params: list[torch.nn.Parameter], selection: Selection, *, steps: int
) -> Callable[[], None]:
    """Copies windows of the parameters; the result compares them, ``steps`` steps later, with torch's optimizer."""
    values = [param.detach() for param in params]
    found = windows([value.numel() for value in values], selection)
    bools = take(selection.bools, found)
    before = take(values, found)
    grads = take(flat([param.grad for param in params if param.grad is not None]), found)
    expected = parameters([value.clone() for value in before], grads)
    oracle = kind.torch(expected)

    def check() -> None:
        for _ in range(steps):
            oracle.step()
        apart = []
        for selected, b, e, a in zip(bools, before, expected, take(values, found), strict=True):
            assert torch.equal(a[~selected], b[~selected]), "unselected weights moved"
            if kind.moment_bits == 32:
                torch.testing.assert_close(a[selected], e.detach()[selected], rtol=1e-5, atol=1e-7)
            apart.append((a[selected] - e.detach()[selected]).abs())
        if kind.moment_bits < 32:  # moments far below the largest of their block round to zero or to the smallest code
            far = torch.cat(apart)
            assert far.max() <= 2 * steps * ADAMW["lr"], "a step was longer than the learning rate"
            assert (far > 0.1 * ADAMW["lr"]).float().mean() < 0.01, "steps differ by more than rounding"

    return check
