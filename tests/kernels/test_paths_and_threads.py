"""The same bits for every CPU path and any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

import aimfair
from aimfair.selective import layout, ops
from aimfair.selective.score import Score

from . import cases
from .cases import DTYPES, MIXED, Inputs
from .test_topk import KINDS

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif("config.getoption('--device') == 'cuda'", reason="a GPU has neither paths nor threads")
THREADS = [1, 2, 3]

SHAPES = [*MIXED, (300_000,), (5,), (150, 1001)]
"""Enough blocks for several threads, next to all the odd sizes."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The path and the number of threads are global."""
    path, threads = aimfair.build_info()["cpu_path"], torch.get_num_threads()
    yield
    aimfair.set_cpu_path(path)
    torch.set_num_threads(threads)


def accumulate(dtype: torch.dtype) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.accumulate_inputs(SHAPES, dtype, CPU, 1, weight=0.3, second_weight=-0.7, zero_grads=True)
    for grad in inputs["grads"][:8]:
        cases.with_special(grad)
    return ops.accumulate_, inputs


def select(criterion: str, divisor: str | None = None) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(SHAPES, criterion, CPU, 1, divisor)
    bits, rank = layout.empty_mask([a.numel() for a in inputs["score"].a])
    return ops.select_, inputs | {"bits": bits, "rank": rank, "k": 40_000}


def select_kind(kind: str) -> tuple[Callable[..., None], Inputs]:
    scores = list(KINDS[kind](1_200_000).split([999_999, 17, 200_000 - 16]))
    bits, rank = layout.empty_mask([score.numel() for score in scores])
    return ops.select_, {"bits": bits, "rank": rank, "k": 300_000, "score": Score("value", scores)}


def select_segments(criterion: str) -> tuple[Callable[..., None], Inputs]:
    """Rows, of which those of the last tensor are one group with the largest: short, tiny and long segments."""
    inputs = cases.score_inputs(SHAPES, criterion, CPU, 1)
    numels = [a.numel() for a in inputs["score"].a]
    units = [shape[0] if len(shape) > 1 else min(numel, 1) for shape, numel in zip(SHAPES, numels, strict=True)]
    ks = [numel // max(unit, 1) // 3 for numel, unit in zip(numels, units, strict=True)]
    groups = list(range(len(SHAPES)))
    small, large = SHAPES.index((5,)), SHAPES.index((300_000,))
    groups[small] = groups[large]
    ks[small] = ks[large]
    bits, rank = layout.empty_mask(numels)
    segments = {"units": units, "ks": ks, "groups": groups}
    return ops.select_segments_, inputs | segments | {"bits": bits, "rank": rank}


def count_keys(criterion: str) -> tuple[Callable[..., None], Inputs]:
    counts = torch.zeros(2049, dtype=torch.int64)
    return ops.count_keys_, cases.score_inputs(SHAPES, criterion, CPU, 1) | {"counts": counts, "first": 0, "bits": 32}


def count_equal(criterion: str) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(SHAPES, criterion, CPU, 1)
    return ops.count_equal_, inputs | {"counts": torch.zeros(len(SHAPES), dtype=torch.int64), "key": 1 << 31}


def select_above(criterion: str) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(SHAPES, criterion, CPU, 1)
    bits, rank = layout.empty_mask([a.numel() for a in inputs["score"].a])
    ties = torch.tensor([a.numel() // 20 for a in inputs["score"].a])
    return ops.select_above_, inputs | {"bits": bits, "rank": rank, "key": 1 << 31, "ties": ties}


def unit_scores(criterion: str) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(SHAPES, criterion, CPU, 1)
    out = [torch.zeros(shape[0] if len(shape) > 1 else min(cases.numel_of(shape), 1)) for shape in SHAPES]
    return ops.unit_scores_, inputs | {"out": out}


def expand_units() -> tuple[Callable[..., None], Inputs]:
    numels, units = [300_000, 7, 150_150, 33 * 65], [300, 7, 150, 33]
    unit_bits, _ = cases.packed(cases.random_bools([(count,) for count in units], 0.5, CPU), CPU)
    bits, rank = layout.empty_mask(numels)
    arguments = {"bits": bits, "rank": rank, "unit_bits": unit_bits, "numels": numels, "units": units}
    return ops.expand_units_, arguments


def pack_bits() -> tuple[Callable[..., None], Inputs]:
    bools = cases.random_bools(SHAPES, 0.3, CPU)
    bits, rank = layout.empty_mask([selected.numel() for selected in bools])
    return ops.pack_bits_, {"bits": bits, "rank": rank, "bools": bools}


def unpack_bits() -> tuple[Callable[..., None], Inputs]:
    bools = cases.random_bools(SHAPES, 0.3, CPU)
    bits, _ = cases.packed(bools, CPU)
    return ops.unpack_bits_, {"bools": [~selected for selected in bools], "bits": bits}


def rank() -> tuple[Callable[..., None], Inputs]:
    bits, written = cases.packed(cases.random_bools(SHAPES, 0.3, CPU), CPU)
    return ops.rank_, {"rank": written.fill_(-7), "bits": bits}


def adamw(dtype: torch.dtype, density: float, compact: bool) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.adamw_inputs(
        SHAPES, dtype, CPU, cases.random_bools(SHAPES, density, CPU), compact=compact, offset=1, amsgrad=compact,
        stochastic_rounding=dtype == torch.bfloat16, seed=5, grad_scale=torch.tensor(3.0),
    )  # fmt: skip
    for grad in inputs["grads"][:8]:
        cases.with_special(grad, share=0.02)
    return ops.masked_adamw_, inputs


def moments(bits: int, compact: bool) -> tuple[Callable[..., None], Inputs]:
    bools = cases.random_bools(SHAPES, 0.3, CPU)
    return ops.masked_adamw_, cases.adamw_inputs(SHAPES, torch.float32, CPU, bools, compact=compact, moment_bits=bits)


def sgd(dtype: torch.dtype, density: float, compact: bool) -> tuple[Callable[..., None], Inputs]:
    bools = cases.random_bools(SHAPES, density, CPU)
    return ops.masked_sgd_, cases.sgd_inputs(SHAPES, dtype, CPU, bools, compact=compact, offset=1, masters=True)


def rows(compact: bool) -> tuple[Callable[..., None], Inputs]:
    bools = cases.row_bools(SHAPES, 700, CPU)
    return ops.masked_adamw_, cases.adamw_inputs(SHAPES, torch.float32, CPU, bools, compact=compact)


def dense_list(dtype: torch.dtype) -> tuple[Callable[..., None], Inputs]:
    return ops.masked_adamw_, cases.adamw_inputs(SHAPES, dtype, CPU, offset=1)


CALLS: dict[str, Callable[[], tuple[Callable[..., None], Inputs]]] = {
    **{f"accumulate-{dtype}": lambda dtype=dtype: accumulate(dtype) for dtype in DTYPES},
    **{f"select-{name}": lambda name=name: select(name) for name in cases.CRITERIA},
    **{f"select-{kind}": lambda kind=kind: select_kind(kind) for kind in KINDS},
    "select-ratio": lambda: select("difference", "relative_difference"),
    **{f"select_segments-{name}": lambda name=name: select_segments(name) for name in cases.CRITERIA},
    **{f"count_keys-{name}": lambda name=name: count_keys(name) for name in cases.CRITERIA},
    **{f"count_equal-{name}": lambda name=name: count_equal(name) for name in cases.CRITERIA},
    **{f"select_above-{name}": lambda name=name: select_above(name) for name in cases.CRITERIA},
    **{f"unit_scores-{name}": lambda name=name: unit_scores(name) for name in cases.CRITERIA},
    "expand_units": expand_units,
    "pack_bits": pack_bits,
    "unpack_bits": unpack_bits,
    "rank": rank,
    **{
        f"{step.__name__}-{dtype}-{density}-{'compact' if compact else 'dense'}": (
            lambda step=step, dtype=dtype, density=density, compact=compact: step(dtype, density, compact)
        )
        for step in (adamw, sgd)
        for dtype in DTYPES
        for density in (0.01, 0.3, 1.0)
        for compact in (False, True)
    },
    **{
        f"moments-{bits}-{'compact' if compact else 'dense'}": lambda bits=bits, compact=compact: moments(bits, compact)
        for bits in (16, 8)
        for compact in (False, True)
    },
    "rows-dense": lambda: rows(False),
    "rows-compact": lambda: rows(True),
    **{f"no_mask-{dtype}": lambda dtype=dtype: dense_list(dtype) for dtype in DTYPES},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_same_bits(call):
    operator, inputs = call()
    expected = None
    for path in aimfair.cpu_paths():
        aimfair.set_cpu_path(path)
        for threads in THREADS:
            torch.set_num_threads(threads)
            actual = cases.clone(inputs)
            operator(**actual)
            expected = expected or actual
            cases.assert_same(actual, expected, f"{path} with {threads} threads")


def test_paths():
    paths = aimfair.cpu_paths()
    assert paths == [path for path in ("scalar", "avx2", "avx512", "neon") if path in paths]
    assert paths[0] == "scalar"
    for path in paths:
        aimfair.set_cpu_path(path)
        assert aimfair.build_info()["cpu_path"] == path


def test_unknown_path_is_refused():
    path = aimfair.build_info()["cpu_path"]
    with pytest.raises((RuntimeError, ValueError), match="sse9"):
        aimfair.set_cpu_path("sse9")
    assert aimfair.build_info()["cpu_path"] == path


@pytest.mark.parametrize("threads", THREADS)
def test_nan_is_named_by_every_path(threads):
    """The first tensor with a NaN, whichever thread meets its NaN first."""
    scores = [torch.randn(400_000) for _ in range(4)]
    scores[1][399_999] = torch.nan
    scores[3][0] = torch.nan
    bits, rank = layout.empty_mask([score.numel() for score in scores])
    torch.set_num_threads(threads)
    for path in aimfair.cpu_paths():
        aimfair.set_cpu_path(path)
        with pytest.raises(RuntimeError, match=r"a\[1\]"):
            ops.select_(bits, rank, 10_000, Score("value", scores))
        assert not bits.any()
        assert not rank.any()
