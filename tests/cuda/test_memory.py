"""Device memory that calls take beyond their arguments."""

import pytest
import torch

from aimfair.selective import layout, ops
from aimfair.selective.score import Score
from tests.kernels import cases

from .device import CUDA, extra_bytes, needs_cuda

pytestmark = needs_cuda

SHAPES = [(30_000_000,), (1000,), (4000, 5000)]
NUMEL = sum(map(cases.numel_of, SHAPES))


@pytest.mark.parametrize("k", [1000, NUMEL // 10, NUMEL // 2])
@pytest.mark.parametrize("kind", ["normal", "few_values"])
def test_select_takes_less_than_a_twentieth_of_its_input(kind, k):
    scores = [torch.randn(shape, device=CUDA) for shape in SHAPES]
    if kind == "few_values":  # ties at both ends of the bracket
        scores = [score.round() for score in scores]
    bits, rank = layout.empty_mask([score.numel() for score in scores], CUDA)
    assert extra_bytes(lambda: ops.select_(bits, rank, k, Score("value", scores))) < 0.05 * 4 * NUMEL


@pytest.mark.parametrize(
    "units", [lambda shape: 1, lambda shape: shape[0] if len(shape) > 1 else 1], ids=["tensors", "rows"]
)
def test_segments_take_less_than_a_twentieth_of_their_input(units):
    scores = [torch.randn(shape, device=CUDA) for shape in SHAPES]
    bits, rank = layout.empty_mask([score.numel() for score in scores], CUDA)
    counts = [units(shape) for shape in SHAPES]
    ks = [score.numel() // count // 10 for score, count in zip(scores, counts, strict=True)]
    assert extra_bytes(lambda: ops.select_segments_(bits, rank, counts, ks, Score("value", scores))) < 0.05 * 4 * NUMEL


def test_the_others_take_less_than_a_hundredth():
    """Of what they work on: a step of all that it updates, statistics of their accumulators, and so on."""
    bools = cases.random_bools(SHAPES, 0.1, CUDA)
    step = cases.adamw_inputs(SHAPES, torch.float32, CUDA, bools)
    assert extra_bytes(lambda: ops.masked_adamw_(**step)) < 0.01 * 16 * NUMEL
    statistics = {
        "grads": step["grads"],
        "sums": step["exp_avgs"],
        "squares": step["exp_avg_sqs"],
        "square_norms": torch.zeros(len(SHAPES), dtype=torch.float64, device=CUDA),
        "nonfinite": torch.zeros(len(SHAPES), dtype=torch.int64, device=CUDA),
    }
    assert extra_bytes(lambda: ops.accumulate_(**statistics)) < 0.01 * 12 * NUMEL
    bits, rank = step["bits"], step["rank"]
    assert extra_bytes(lambda: ops.pack_bits_(bits, rank, bools)) < 0.01 * NUMEL
    assert extra_bytes(lambda: ops.unpack_bits_(bools, bits)) < 0.01 * NUMEL
    rows = [torch.zeros(shape[0], device=CUDA) for shape in SHAPES]
    assert extra_bytes(lambda: ops.unit_scores_(rows, Score("value", step["params"]))) < 0.01 * 4 * NUMEL
