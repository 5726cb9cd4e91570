"""Selections in every tensor, row and four elements by themselves, against the loops that methods use today."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.score import Score
from bench import floors, targets
from bench.bench_select import mask_words
from bench.harness import Case, Rival, Runner
from bench.workloads import TensorList, case_id, normal, tensor_list

DENSITY = 0.10

ARGSORT_ELEMENTS = 2 * 10**7
"""numpy sorts longer lists for longer than a bench should take."""

Pattern = str
Rows = list[Tensor]
"""[segments, elements] per tensor, views."""

SEGMENTS: dict[Pattern, Callable[[tuple[int, ...]], int]] = {
    "top-k per tensor": lambda shape: 1,
    "top-k per row": lambda shape: shape[0] if len(shape) > 1 else 1,
    "2 of 4": lambda shape: int(np.prod(shape)) // 4,
}
"""Into how many segments a tensor of a shape is cut."""


def cases() -> Iterator[Any]:
    for name in ("ResNet-18", "ViT-B/16"):
        for pattern in SEGMENTS:
            quick = name == "ResNet-18"
            yield pytest.param(name, pattern, id=case_id(pattern, name), marks=[pytest.mark.quick] * quick)


@pytest.mark.parametrize(("name", "pattern"), list(cases()))
def test_segments(
    name: str, pattern: Pattern, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    tensors = tensor_list(name, shrink)
    if pattern == "2 of 4":
        tensors = TensorList(name, tuple(shape for shape in tensors.shapes if np.prod(shape) % 4 == 0))
    units = [SEGMENTS[pattern](shape) for shape in tensors.shapes]
    scores = normal(tensors.shapes, device)
    rows = [score.view(count, -1) for score, count in zip(scores, units, strict=True)]
    ks = [2 if pattern == "2 of 4" else max(1, round(DENSITY * row.shape[1])) for row in rows]
    bits, rank = mask_words(tensors, device)
    score = Score("value", scores)
    case = Case(
        work=targets.SEGMENTS,
        tensors=name,
        numel=tensors.numel,
        density=0.5 if pattern == "2 of 4" else DENSITY,
        pattern=pattern,
        floor_bytes=floors.select_bytes(tensors.numel, accumulators=1),
        accumulator_bytes=4 * tensors.numel,
        capturable=False,  # it waits, to say whether a score is NaN
        ours=lambda: ops.select_segments_(bits, rank, units, ks, score),
        check=lambda: check_rows(bits, rows, ks),
        rivals=rivals(rows, ks, tensors.numel, device),
    )
    runner.run(case, benchmark)


def rivals(rows: Rows, ks: list[int], numel: int, device: torch.device) -> list[Rival]:
    """A loop over tensors. The second selects all scores that tie for the last place, the first any of them."""
    masks = [torch.zeros_like(row, dtype=torch.bool) for row in rows]

    def topk() -> None:
        for row, mask, k in zip(rows, masks, ks, strict=True):
            mask.zero_().scatter_(1, row.topk(k, dim=1, sorted=False).indices, True)

    def kthvalue() -> None:
        for row, mask, k in zip(rows, masks, ks, strict=True):
            torch.ge(row, row.kthvalue(row.shape[1] - k + 1, dim=1, keepdim=True).values, out=mask)

    def argsort() -> None:
        for row, mask, k in zip(rows, masks, ks, strict=True):
            order = np.argsort(row.cpu().numpy(), axis=1)[:, -k:]
            selected = np.zeros(row.shape, dtype=bool)
            np.put_along_axis(selected, order, True, axis=1)
            mask.copy_(torch.from_numpy(selected))

    found = [Rival(targets.TOPK_LOOP, topk), Rival("kthvalue + compare, in a loop", kthvalue)]
    if numel <= ARGSORT_ELEMENTS:
        found.append(Rival("numpy argsort, in a loop", argsort, capturable=False))
    return found


def check_rows(bits: Tensor, rows: Rows, ks: list[int]) -> None:
    """The k highest scores of every row, of equal ones the first."""
    masks = [torch.empty(row.shape, dtype=torch.bool, device=bits.device) for row in rows]
    ops.unpack_bits_(masks, bits)
    for row, mask, k in zip(rows, masks, ks, strict=True):
        assert bool((mask.sum(1) == k).all())
        last = row.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
        assert bool((row.masked_fill(mask, -torch.inf) <= last).all()), "an unselected score is higher"
        tied = row == last
        taken = (tied & mask).sum(1, keepdim=True)
        assert torch.equal(tied & mask, tied & (tied.cumsum(1) <= taken)), "a tie went to a later element"
