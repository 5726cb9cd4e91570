"""The one-pass gradient statistics against the same statistics by foreach operators, one pass each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from aimfair.selective import ops
from bench import floors, targets
from bench.harness import Case, Rival, Runner
from bench.shapes import MODELS
from bench.workloads import GRADIENT_SCALE, TensorList, case_id, normal, positive, take, tensor_list, windows


@dataclass(frozen=True)
class Statistics:
    """Which accumulators are kept; norms and the non-finite check always are."""

    work: str
    sums: bool = False
    squares: bool = False
    weight: float = 1.0
    second_sums: bool = False
    second_weight: float = -1.0
    zero_grads: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def accumulators(self) -> int:
        return self.sums + self.squares + self.second_sums


STATISTICS = (
    Statistics(targets.STATISTICS, sums=True, squares=True),
    Statistics("accumulate sum + square, zero grads", sums=True, squares=True, zero_grads=True),
    Statistics("accumulate square", squares=True),
    Statistics("accumulate signed sum", sums=True, weight=-1.0),
    Statistics("accumulate two signed sums", sums=True, second_sums=True),
    Statistics("accumulate sum + square, bf16", sums=True, squares=True, dtype=torch.bfloat16),
)


def cases() -> Iterator[Any]:
    for tensors in (*MODELS, "flat 1e8"):
        for statistics in STATISTICS:
            marks = [pytest.mark.quick] * (tensors == "ResNet-18")
            yield pytest.param(tensors, statistics, id=case_id(statistics.work, tensors), marks=marks)


class Accumulators:
    def __init__(self, tensors: TensorList, statistics: Statistics, device: torch.device):
        shapes = tensors.shapes
        self.grads = normal(shapes, device, scale=GRADIENT_SCALE, dtype=statistics.dtype)
        self.sums = normal(shapes, device, scale=GRADIENT_SCALE) if statistics.sums else []
        self.squares = positive(shapes, device) if statistics.squares else []
        self.second_sums = normal(shapes, device, scale=GRADIENT_SCALE) if statistics.second_sums else []
        self.square_norms = torch.zeros(len(shapes), dtype=torch.float64, device=device)
        self.nonfinite = torch.zeros(len(shapes), dtype=torch.int64, device=device)


@pytest.mark.parametrize(("name", "statistics"), list(cases()))
def test_accumulate(
    name: str, statistics: Statistics, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    tensors = tensor_list(name, shrink)
    kept = Accumulators(tensors, statistics, device)

    def ours() -> None:
        ops.accumulate_(
            kept.grads,
            kept.sums,
            kept.squares,
            kept.square_norms,
            kept.nonfinite,
            weight=statistics.weight,
            second_sums=kept.second_sums or None,
            second_weight=statistics.second_weight,
            zero_grads=statistics.zero_grads,
        )

    case = Case(
        work=statistics.work,
        tensors=name,
        numel=tensors.numel,
        floor_bytes=floors.accumulate_bytes(
            tensors.numel,
            statistics.dtype.itemsize,
            accumulators=statistics.accumulators,
            zero_grads=statistics.zero_grads,
        ),
        ours=ours,
        check=check_accumulate(statistics, kept),
        rivals=foreach_rivals(statistics, kept),
    )
    runner.run(case, benchmark)


def foreach_rivals(statistics: Statistics, kept: Accumulators) -> list[Rival]:
    """Foreach ways into the same accumulators.

    Both take the norms by ``_foreach_norm``. The one looks for non-finite gradients as ``torch.amp.GradScaler`` does;
    the other, cheaper, looks at the norms. Neither keeps such values out of the sums nor counts them, as ours does.
    Low-precision gradients are widened into a buffer first: foreach operators do not mix dtypes in one pass.
    """
    device = kept.square_norms.device
    found_inf, scale = torch.zeros(1, device=device), torch.ones(1, device=device)
    widened = kept.grads
    if statistics.dtype != torch.float32:
        widened = [torch.empty_like(grad, dtype=torch.float32) for grad in kept.grads]

    def accumulate() -> list[Tensor]:
        if widened is not kept.grads:
            torch._foreach_copy_(widened, kept.grads)
        if kept.sums:
            torch._foreach_add_(kept.sums, widened, alpha=statistics.weight)
        if kept.second_sums:
            torch._foreach_add_(kept.second_sums, widened, alpha=statistics.second_weight)
        if kept.squares:
            torch._foreach_addcmul_(kept.squares, widened, widened)
        return list(torch._foreach_norm(widened))

    def finish() -> None:
        if statistics.zero_grads:
            torch._foreach_zero_(kept.grads)

    def as_grad_scaler() -> None:
        accumulate()
        torch._amp_foreach_non_finite_check_and_unscale_(widened, found_inf, scale)
        finish()

    def from_norms() -> None:
        torch.stack(accumulate()).isfinite()
        finish()

    names = (targets.FOUR_FOREACH, "foreach, isfinite of norms")
    return [Rival(name, call) for name, call in zip(names, (as_grad_scaler, from_norms), strict=True)]


def check_accumulate(statistics: Statistics, kept: Accumulators) -> Callable[[], None]:
    """Copies windows of gradients and accumulators; the result checks what one call made of them."""
    found = windows([grad.numel() for grad in kept.grads])
    grads = [grad.float() for grad in take(kept.grads, found)]
    sums, squares, second_sums = (take(a, found) if a else [] for a in (kept.sums, kept.squares, kept.second_sums))
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in kept.grads])

    def check() -> None:
        expected = (
            (kept.sums, sums, [statistics.weight * g for g in grads]),
            (kept.second_sums, second_sums, [statistics.second_weight * g for g in grads]),
            (kept.squares, squares, [g * g for g in grads]),
        )
        for after, before, added in expected:
            for actual, b, a in zip(take(after, found) if after else [], before, added, strict=False):
                torch.testing.assert_close(actual, b + a, rtol=0, atol=0)
        torch.testing.assert_close(kept.square_norms, norms**2, rtol=1e-5, atol=0)
        assert not kept.nonfinite.any(), "finite gradients counted as non-finite"
        if statistics.zero_grads:
            assert not any(grad.any() for grad in kept.grads), "gradients were not zeroed"

    return check
