"""The exact global top-k mask against kthvalue + compare and topk + scatter."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.layout import empty_mask
from aimfair.selective.score import Score, ScoreCriterion
from bench import floors, targets
from bench.harness import Case, Rival, Runner
from bench.shapes import MODELS, row_length
from bench.workloads import TensorList, case_id, normal, positive, tensor_list

TOPK_ELEMENTS = 2 * 10**8
"""On a CPU topk takes 16 bytes of scratch per element, so that longer lists are left to kthvalue."""

Scores = Callable[[], Tensor]


def mask_words(tensors: TensorList, device: torch.device) -> tuple[Tensor, Tensor]:
    bits, rank = empty_mask(tensors.numels, device)
    return bits.fill_(-1), rank.fill_(-1)  # in memory before the first call, and wrong


def cases() -> Iterator[Any]:
    chosen = [("flat 1e7", 0.10, "value")]
    chosen += [("flat 1e8", density, "value") for density in (0.01, 0.10, 0.30)]
    chosen += [(name, 0.10, "difference") for name in MODELS]
    chosen += [(name, 0.10, "norm_ratio") for name in ("ResNet-50", "ViT-B/16")]
    for name, density, criterion in chosen:
        quick = name in ("ResNet-18", "flat 1e7", "flat 1e8") and density == 0.10
        words = case_id(criterion, name, f"{density:.0%}")
        yield pytest.param(name, density, criterion, id=words, marks=[pytest.mark.quick] * quick)


@pytest.mark.parametrize(("name", "density", "criterion"), list(cases()))
def test_select(
    name: str,
    density: float,
    criterion: ScoreCriterion,
    device: torch.device,
    shrink: float,
    runner: Runner,
    benchmark: BenchmarkFixture,
) -> None:
    tensors = tensor_list(name, shrink)
    make = positive if criterion == "norm_ratio" else normal
    a = make(tensors.shapes, device)
    b = [] if criterion == "value" else make(tensors.shapes, device)
    bits, rank = mask_words(tensors, device)
    k = max(1, round(density * tensors.numel))
    accumulators = 1 + bool(b)
    score, scores = Score(criterion, a, b or None), score_function(tensors, criterion, a, b)
    case = Case(
        work=f"select {criterion}",
        tensors=name,
        numel=tensors.numel,
        density=density,
        pattern="top-k",
        floor_bytes=floors.select_bytes(tensors.numel, accumulators=accumulators),
        accumulator_bytes=4 * accumulators * tensors.numel,
        capturable=False,  # it waits, to say whether a score is NaN
        ours=lambda: ops.select_(bits, rank, k, score),
        check=lambda: check_top_k(
            mask_of(tensors, bits), exact_norm_ratio(a, b) if criterion == "norm_ratio" else scores(), k
        ),
        rivals=top_k_rivals(scores, tensors.numel, k, device),
    )
    runner.run(case, benchmark)


def score_function(tensors: TensorList, criterion: ScoreCriterion, a: list[Tensor], b: list[Tensor]) -> Scores:
    """A call that returns all scores as one tensor: the scores themselves if they are one, else a buffer it fills."""
    if criterion == "value":
        assert len(a) == 1, "the scores of several tensors would have to be concatenated"
        return lambda: a[0].view(-1)
    buffer = torch.empty(tensors.numel, device=a[0].device)
    views = [view.view(shape) for view, shape in zip(buffer.split(tensors.numels), tensors.shapes, strict=True)]

    def difference() -> Tensor:
        for x, y, out in zip(a, b, views, strict=True):
            torch.sub(x, y, out=out)
        return buffer.abs_()

    def norm_ratio() -> Tensor:
        for x, y, out in zip(a, b, views, strict=True):
            torch.div(y.sqrt(), torch.add(x, 1e-12, out=out).sqrt_(), out=out)
        return buffer

    return {"difference": difference, "norm_ratio": norm_ratio}[criterion]


def exact_norm_ratio(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Correctly rounded, as ours; ``torch.sqrt`` on a CPU is off by one unit for a part of its inputs."""

    def root(x: Tensor) -> Tensor:
        return x.double().sqrt_().float()

    return torch.cat([(root(y) / root(x + 1e-12)).view(-1) for x, y in zip(a, b, strict=True)])


def top_k_rivals(scores: Scores, numel: int, k: int, device: torch.device) -> list[Rival]:
    """Neither obeys the tie rule: of scores that tie for the last place the first selects all, the second any."""
    mask = torch.zeros(numel, dtype=torch.bool, device=device)

    def kthvalue() -> None:
        values = scores()
        torch.ge(values, values.kthvalue(numel - k + 1).values, out=mask)

    def topk() -> None:
        indices = scores().topk(k, sorted=False).indices
        mask.zero_().index_fill_(0, indices, True)

    rivals = [Rival(targets.KTHVALUE, kthvalue)]
    if device.type == "cuda" or numel <= TOPK_ELEMENTS:
        rivals.append(Rival(targets.TOPK, topk))
    return rivals


@pytest.mark.parametrize("name", MODELS, ids=case_id)
def test_select_rows(
    name: str, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    tensors = tensor_list(name, shrink)
    a, b = normal(tensors.shapes, device), normal(tensors.shapes, device)
    lengths = [row_length(shape) for shape in tensors.shapes]
    units = [numel // length for numel, length in zip(tensors.numels, lengths, strict=True)]
    means = [torch.zeros(count, device=device) for count in units]
    bits, rank = mask_words(tensors, device)
    unit_bits, unit_rank = empty_mask(units, device)
    k = max(1, round(0.10 * sum(units)))

    def ours() -> None:
        ops.unit_scores_(means, Score("difference", a, b))
        ops.select_(unit_bits, unit_rank, k, Score("value", means))
        ops.expand_units_(bits, rank, unit_bits, tensors.numels, units)

    bools = [torch.zeros(shape, dtype=torch.bool, device=device).view(count, -1)
             for shape, count in zip(tensors.shapes, units, strict=True)]  # fmt: skip
    scores = score_function(tensors, "difference", a, b)

    def row_means() -> Tensor:
        rows = zip(scores().split(tensors.numels), units, strict=True)
        return torch.cat([row.view(count, -1).mean(1) for row, count in rows])

    def expand(selected: Tensor) -> None:
        for out, row in zip(bools, selected.split(units), strict=True):
            out.copy_(row.unsqueeze(1).expand_as(out))

    def kthvalue() -> None:
        values = row_means()
        expand(values >= values.kthvalue(sum(units) - k + 1).values)

    def topk() -> None:
        values = row_means()
        selected = torch.zeros_like(values, dtype=torch.bool)
        expand(selected.index_fill_(0, values.topk(k, sorted=False).indices, True))

    def check() -> None:
        rows = zip(scores().split(tensors.numels), units, strict=True)
        expected = torch.cat([row.view(count, -1).double().mean(1).float() for row, count in rows])
        torch.testing.assert_close(torch.cat(means), expected, rtol=1e-6, atol=0)
        mask = mask_of(tensors, bits).split(tensors.numels)
        by_row = [row.view(count, -1) for row, count in zip(mask, units, strict=True)]
        assert all(torch.equal(row.any(1), row.all(1)) for row in by_row), "rows selected in part"
        check_top_k(torch.cat([row.any(1) for row in by_row]), torch.cat(means), k)

    case = Case(
        work="select difference",
        tensors=name,
        numel=tensors.numel,
        density=0.10,
        pattern="top-k rows",
        floor_bytes=floors.select_bytes(tensors.numel, accumulators=2),
        accumulator_bytes=8 * tensors.numel,
        capturable=False,
        ours=ours,
        check=check,
        rivals=[Rival("row means + kthvalue + compare", kthvalue), Rival("row means + topk + scatter", topk)],
    )
    runner.run(case, benchmark)


def mask_of(tensors: TensorList, bits: Tensor) -> Tensor:
    """bool [numel]"""
    bools = [torch.empty(numel, dtype=torch.bool, device=bits.device) for numel in tensors.numels]
    ops.unpack_bits_(bools, bits)
    return torch.cat(bools)


def check_top_k(mask: Tensor, scores: Tensor, k: int) -> None:
    """The k highest scores, of equal ones the first."""
    assert int(mask.count_nonzero()) == k
    last = scores.masked_fill(~mask, torch.inf).min()
    assert scores.masked_fill(mask, -torch.inf).max() <= last, "an unselected score is higher than a selected one"
    tied = mask[scores == last]
    assert tied[: int(tied.count_nonzero())].all(), "a tie went to a later element"
