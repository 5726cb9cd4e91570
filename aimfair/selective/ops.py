"""The operators: the only caller of ``torch.ops.aimfair``.

Every operator writes into tensors it is given and returns nothing. Tensors come in lists, one entry per parameter,
in the same order everywhere; an empty list leaves that part out. There are four families: accumulate, topk, mask and
step. ``aimfair.selective.reference`` has the same signatures in plain PyTorch and is the specification.

Legend
    T       number of tensors in a list
    n[t]    elements of tensor t
    blocks  a mask is cut into blocks of 1024 elements; every tensor begins a new block,
            so tensor t owns ceil(n[t] / 1024) of the B blocks in total
    bits    int32[B * 32]: element i of a tensor is bit ``i % 32`` of its word ``i // 32``; bits past n[t] are 0
    rank    int64[B + 1]: rank[b] = number of set bits before block b, rank[B] = nnz
    nnz[t]  set bits of tensor t

Unsupported input (other dtypes, non-contiguous or overlapping memory, sizes or devices that do not match) raises a
``RuntimeError`` that names the entry, as in ``grads[3]``, before any memory is written.
Sizes are 64-bit; empty lists, empty tensors and any storage offset are fine.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import aimfair.selective.extension  # noqa: F401 (registers the operators)
from aimfair.selective.layout import first_blocks as first_blocks_of
from aimfair.selective.score import Score

ADAMW_STATES = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
SGD_STATES = ("momentum_buffers",)

_ops = torch.ops.aimfair

# -- accumulate ---------------------------------------------------------------------------------------


def accumulate_(
    grads: list[Tensor],
    sums: list[Tensor],
    squares: list[Tensor],
    square_norms: Tensor,
    nonfinite: Tensor,
    *,
    weight: float = 1.0,
    second_sums: list[Tensor] | None = None,
    second_weight: float = 0.0,
    grad_scale: Tensor | None = None,
    zero_grads: bool = False,
) -> None:
    """Adds one batch of gradients into the statistics of one source, in one pass.

    With ``g = grads[t] * (1 / grad_scale)`` in fp32:

    - ``sums[t] += weight * g``, ``squares[t] += g * g``, ``second_sums[t] += second_weight * g``; lists may be empty;
    - ``square_norms[t] += sum(g * g)``;
    - where ``g`` is NaN or infinite it adds nothing anywhere and ``nonfinite[t]`` counts it;
    - ``zero_grads`` sets the gradients to zero in the same pass.

    Args:
        grads: [T] float32, bfloat16 or float16 tensors of any shapes, contiguous.
        sums, squares, second_sums: [T] float32 tensors with n[t] elements, or empty.
        square_norms: float64 [T]. nonfinite: int64 [T].
        grad_scale: float32 with one element; gradients are divided by it (``torch.amp.GradScaler``).
    """
    _ops.accumulate_.default(
        grads, sums, squares, second_sums or [], square_norms, nonfinite, weight, second_weight, grad_scale, zero_grads
    )


@dataclass(frozen=True)
class Plan:
    """The lists of a call, checked once and stored where the kernel reads them, for later calls.

    It holds addresses: its tensors must stay alive, at the same addresses, as long as it is used.
    """

    memory: Tensor
    tensors: int
    blocks: int


@dataclass(frozen=True)
class AccumulatePlan(Plan):
    """Of :func:`accumulate_`."""

    zero_grads: bool


def plan_accumulate(
    grads: list[Tensor],
    sums: list[Tensor],
    squares: list[Tensor],
    *,
    second_sums: list[Tensor] | None = None,
    zero_grads: bool = False,
) -> AccumulatePlan:
    """A plan for :func:`planned_accumulate_`, for at least one tensor. Args as in :func:`accumulate_`."""
    memory = _ops.plan_accumulate.default(grads, sums, squares, second_sums or [], zero_grads)
    return AccumulatePlan(memory, len(grads), _blocks(grads), zero_grads)


def planned_accumulate_(
    plan: AccumulatePlan,
    square_norms: Tensor,
    nonfinite: Tensor,
    *,
    weight: float = 1.0,
    second_weight: float = 0.0,
    grad_scale: Tensor | None = None,
) -> None:
    """:func:`accumulate_` on the lists of a plan."""
    _ops.planned_accumulate_.default(
        plan.memory, plan.tensors, plan.blocks, square_norms, nonfinite, weight, second_weight, grad_scale,
        plan.zero_grads,
    )  # fmt: skip


def set_grads_(plan: Plan, addresses: list[int]) -> None:
    """Replaces the addresses of a plan's gradients by those that ``aimfair._C.PlanMemory`` found, one per tensor.

    Nothing else is checked: the gradients must have the sizes, dtypes and device of those that the plan was made with.
    """
    operator = _ops.set_accumulate_grads_ if isinstance(plan, AccumulatePlan) else _ops.set_grads_
    operator.default(plan.memory, plan.tensors, plan.blocks, addresses)


def _blocks(tensors: list[Tensor]) -> int:
    return first_blocks_of([tensor.numel() for tensor in tensors])[-1]


# -- topk ---------------------------------------------------------------------------------------------


def _flat(score: Score) -> tuple[Any, ...]:
    """The score as the operators take it, in the order of their schemas."""
    below = score.divisor
    divisor = (
        (below.criterion, below.a, below.b or [], below.scale_a, below.scale_b) if below else ("", [], [], 1.0, 1.0)
    )
    return score.criterion, score.a, score.b or [], score.scale_a, score.scale_b, *divisor, score.eps


def select_(bits: Tensor, rank: Tensor, k: int, score: Score, *, largest: bool = True) -> None:
    """Writes the mask of the ``k`` best-scored elements over all tensors at once.

    Exact: the k elements that a stable sort of all scores (descending if ``largest``, else ascending) puts first; equal
    scores go to the lowest global index, and -0.0 equals 0.0. Infinite scores are legal; a NaN score is an error that
    names the tensor, and leaves the mask as it was.

    Args:
        bits, rank: the mask to write, over tensors with the sizes of ``score.a``.
        k: 0 <= k <= sum of n[t].
        score: see :class:`Score`; a cosine is of units alone and refused here.
    """
    _ops.select_.default(bits, rank, k, largest, *_flat(score))


def select_segments_(
    bits: Tensor,
    rank: Tensor,
    units: list[int],
    ks: list[int],
    score: Score,
    *,
    groups: list[int] | None = None,
    largest: bool = True,
) -> None:
    """Writes the mask of the best-scored elements of every segment: :func:`select_` in each by itself.

    Tensor t is cut into ``units[t]`` runs of equal length, as in :func:`unit_scores_`: its rows, 1 for the whole
    tensor, or n[t] / 4 for groups of four elements (2 of 4: ``ks[t]=2``). Each of them is a segment, of which the
    ``ks[t]`` best elements are selected. The rules are those of :func:`select_`: exact, equal scores by lowest index,
    NaN an error that names the tensor and leaves the mask as it was.

    Args:
        bits, rank: the mask to write, over tensors with the sizes of ``score.a``.
        units: [T] runs, which divide n[t]; 0 only in an empty tensor.
        ks: [T], from 0 to the elements of a segment.
        score: as in :func:`select_`.
        groups: [T]: tensors with the same number are one segment together, in list order; they have one unit each and
            the same k. None: no tensor shares a segment.
    """
    _ops.select_segments_.default(bits, rank, units, ks, groups or [], largest, *_flat(score))


def count_keys_(counts: Tensor, first: int, bits: int, score: Score, *, largest: bool = True) -> None:
    """Adds the histogram of the keys of all scores to ``counts``: one round of a selection over several processes.

    The key of a score is an integer from 0 to 2^32 - 1 in the order of :func:`select_`: the greatest key is the best
    score, equal scores have equal keys, and so do -0.0 and 0.0. It is made of the 32 bits of the fp32 score, with 0 for
    -0.0: all bits are flipped if the sign is set, else only the sign; then, unless ``largest``, all are flipped again.

    For every key in [first, first + 2^bits), ``counts[(key - first) >> max(0, bits - 11)]`` is raised by 1. NaN scores
    have no key: they are counted in ``counts[2048]`` and are no error here, so that processes can agree to raise.

    Args:
        counts: int64 [2049].
        first, bits: the range of keys, 0 <= bits <= 32; ``first`` is a multiple of 2^bits, below 2^32.
        score, largest: as in :func:`select_`.
    """
    _ops.count_keys_.default(counts, first, bits, largest, *_flat(score))


def count_equal_(counts: Tensor, key: int, score: Score, *, largest: bool = True) -> None:
    """Adds to ``counts[t]`` the number of elements of tensor t whose key (:func:`count_keys_`) is ``key``.

    Args:
        counts: int64 [T].
        key: 0 <= key < 2^32.
        score, largest: as in :func:`select_`.
    """
    _ops.count_equal_.default(counts, key, largest, *_flat(score))


def select_above_(bits: Tensor, rank: Tensor, key: int, ties: Tensor, score: Score, *, largest: bool = True) -> None:
    """Writes the mask of the elements with a key (:func:`count_keys_`) above ``key``, and of some with exactly ``key``.

    Of tensor t, the first ``ties[t]`` elements whose key is ``key`` are selected, in index order: all of them if there
    are no more, none if ``ties[t]`` is negative. A NaN score is an error that names the tensor, and leaves the mask as
    it was.

    Args:
        bits, rank: the mask to write, over tensors with the sizes of ``score.a``.
        key: 0 <= key < 2^32.
        ties: int64 [T].
        score, largest: as in :func:`select_`.
    """
    _ops.select_above_.default(bits, rank, key, ties, largest, *_flat(score))


def threshold_key(threshold: float, *, largest: bool = True) -> int:
    """The ``key`` with which :func:`select_above_` selects by a threshold.

    With ``ties[t] = n[t]`` it selects the scores that are at least ``threshold``, at most unless ``largest``, compared
    exactly: a threshold that is no fp32 number stands for the next one that is.

    Raises:
        ValueError: the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN")
    rounded = torch.tensor(threshold, dtype=torch.float32)
    if rounded.item() < threshold if largest else rounded.item() > threshold:
        rounded = rounded.nextafter(torch.tensor(math.inf if largest else -math.inf))
    bits = int((rounded + 0.0).view(torch.int32))  # turns -0.0 into 0.0
    key = bits ^ 0x7FFFFFFF if bits < 0 else bits
    return (key if largest else ~key) + 2**31


def unit_scores_(out: list[Tensor], score: Score) -> None:
    """Scores of rows or whole tensors: ``out[t][u]`` = mean score of the elements of unit u of tensor t.

    Tensor t is divided into ``out[t].numel()`` units of equal length: its rows, or 1 for the whole tensor. Sums are in
    float64 in a fixed order, so the result does not depend on threads or instruction set. NaN is an error.

    Args:
        out: [T] float32 tensors; n[t] is a multiple of ``out[t].numel()``.
        score: as in :func:`select_`.
    """
    if not out and not score.a:
        return  # the dispatcher needs a tensor to find the device
    _ops.unit_scores_.default(out, *_flat(score))


# -- mask ---------------------------------------------------------------------------------------------


def expand_units_(bits: Tensor, rank: Tensor, unit_bits: Tensor, numels: list[int], units: list[int]) -> None:
    """Writes an element mask from a mask over rows or tensors.

    ``unit_bits`` is the mask over lists of ``units[t]`` units; unit u of tensor t covers ``numels[t] / units[t]``
    elements.
    """
    _ops.expand_units_.default(bits, rank, unit_bits, numels, units)


def pack_bits_(bits: Tensor, rank: Tensor, bools: list[Tensor]) -> None:
    """Packs [T] bool tensors into a mask."""
    _ops.pack_bits_.default(bits, rank, bools)


def unpack_bits_(bools: list[Tensor], bits: Tensor) -> None:
    """Unpacks a mask into [T] bool tensors."""
    _ops.unpack_bits_.default(bools, bits)


def rank_(rank: Tensor, bits: Tensor) -> None:
    """Fills the rank directory of ``bits``."""
    _ops.rank_.default(rank, bits)


# -- step ---------------------------------------------------------------------------------------------


def masked_adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bits: Tensor | None = None,
    rank: Tensor | None = None,
    first_blocks: list[int] | None = None,
    max_exp_avg_sqs: list[Tensor] | None = None,
    masters: list[Tensor] | None = None,
    maximize: bool = False,
    compact: bool = False,
    stochastic_rounding: bool = False,
    seed: int = 0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step (decoupled weight decay, arXiv 1711.05101) on the selected elements of all tensors.

    Per selected element, in fp32, with t = ``steps[i]`` after this call's increment::

        g = grad * (1 / grad_scale), negated if maximize
        p = p * (1 - lr * weight_decay)
        m = m * beta1 + g * (1 - beta1)
        v = v * beta2 + g * g * (1 - beta2)
        w = max(w, v)                                     # amsgrad, then w stands for v below
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    Elements that are not selected keep every bit of parameter and state. No fused multiply-add anywhere, so that all
    instruction sets give the same bits.

    Args:
        params, grads: [T] float32, bfloat16 or float16; dtype and size agree within a pair.
        exp_avgs, exp_avg_sqs, max_exp_avg_sqs: [T] float32, bfloat16 or, except the last, uint8, all of one dtype
            (:mod:`aimfair.selective.moments` has the formats). ``compact=False``: n[t] elements each; ``compact=True``:
            nnz[t] elements, the selected ones in index order; uint8: 2 * ceil(n[t] / 1024) more, aligned to 2 bytes.
            ``max_exp_avg_sqs`` present = amsgrad.
        masters: [T] float32, of n[t] or nnz[t] elements like the moments: the selected weights in fp32; the parameter
            is their rounding.
        steps: [T] float32 with one element, raised by 1 here.
        lr: float32 or float64 with one element, on the device of the parameters.
        bits, rank, first_blocks: the mask and the first block of each of the T tensors in it (``layout.first_blocks``
            without its last entry); None = every element. ``rank`` must be the directory of ``bits`` (:func:`rank_`).
        stochastic_rounding: bfloat16 parameters are rounded up or down at random, in proportion to the distance, from a
            generator keyed by (seed, step, element). float32 parameters are unaffected, float16 ones are refused.
            Moments in bfloat16 and uint8 are always rounded that way.
        grad_scale, found_inf: float32 with one element. ``found_inf`` != 0 makes the call change nothing.
    """
    _ops.masked_adamw_.default(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs or [], masters or [], steps,
        bits, rank, first_blocks or [],
        lr, beta1, beta2, eps, weight_decay, maximize, compact, stochastic_rounding, seed, grad_scale, found_inf,
    )  # fmt: skip


def masked_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    dampening: float = 0.0,
    nesterov: bool = False,
    bits: Tensor | None = None,
    rank: Tensor | None = None,
    first_blocks: list[int] | None = None,
    masters: list[Tensor] | None = None,
    maximize: bool = False,
    compact: bool = False,
    stochastic_rounding: bool = False,
    seed: int = 0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SGD step with coupled weight decay, as ``torch.optim.SGD``, on the selected elements of all tensors.

    Per selected element, in fp32::

        g = grad * (1 / grad_scale), negated if maximize
        g = g + weight_decay * p
        b = g at the first step, else momentum * b + (1 - dampening) * g
        g = g + momentum * b if nesterov else b
        p = p - lr * g

    Args as in :func:`masked_adamw_`; ``momentum_buffers`` is empty when ``momentum`` is 0.
    """
    _ops.masked_sgd_.default(
        params, grads, momentum_buffers, masters or [], steps, bits, rank, first_blocks or [],
        lr, momentum, dampening, weight_decay, nesterov, maximize, compact, stochastic_rounding, seed,
        grad_scale, found_inf,
    )  # fmt: skip


@dataclass(frozen=True)
class StepPlan(Plan):
    """Of a masked step."""

    bits: Tensor | None
    rank: Tensor | None
    compact: bool
    stochastic_rounding: bool
    states: tuple[str, ...]
    """Names of the state lists it was made with."""
    moment_bits: int


def plan_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    bits: Tensor | None = None,
    rank: Tensor | None = None,
    first_blocks: list[int] | None = None,
    max_exp_avg_sqs: list[Tensor] | None = None,
    masters: list[Tensor] | None = None,
    compact: bool = False,
    stochastic_rounding: bool = False,
) -> StepPlan:
    """A plan for :func:`planned_adamw_`, for at least one tensor. Args as in :func:`masked_adamw_`."""
    memory = _ops.plan_adamw.default(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs or [], masters or [], steps,
        bits, rank, first_blocks or [], compact, stochastic_rounding,
    )  # fmt: skip
    states = ADAMW_STATES if max_exp_avg_sqs else ADAMW_STATES[:2]
    moment_bits = 8 * exp_avgs[0].element_size()
    return StepPlan(memory, len(params), _blocks(params), bits, rank, compact, stochastic_rounding, states, moment_bits)


def plan_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    steps: list[Tensor],
    *,
    bits: Tensor | None = None,
    rank: Tensor | None = None,
    first_blocks: list[int] | None = None,
    masters: list[Tensor] | None = None,
    compact: bool = False,
    stochastic_rounding: bool = False,
) -> StepPlan:
    """A plan for :func:`planned_sgd_`, for at least one tensor. Args as in :func:`masked_sgd_`."""
    memory = _ops.plan_sgd.default(
        params, grads, momentum_buffers, masters or [], steps,
        bits, rank, first_blocks or [], compact, stochastic_rounding,
    )  # fmt: skip
    states = SGD_STATES if momentum_buffers else ()
    moment_bits = 8 * momentum_buffers[0].element_size() if momentum_buffers else 32
    return StepPlan(memory, len(params), _blocks(params), bits, rank, compact, stochastic_rounding, states, moment_bits)


def planned_adamw_(
    plan: StepPlan,
    *,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    seed: int = 0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """:func:`masked_adamw_` on the lists of a plan, with ``amsgrad`` if it was made with ``max_exp_avg_sqs``."""
    amsgrad = plan.states == ADAMW_STATES
    _refuse_other_plan("planned_adamw_", plan, ADAMW_STATES if amsgrad else ADAMW_STATES[:2])
    _ops.planned_adamw_.default(
        plan.memory, plan.tensors, plan.blocks, amsgrad, plan.bits, plan.rank, plan.compact, plan.stochastic_rounding,
        plan.moment_bits, lr, beta1, beta2, eps, weight_decay, maximize, seed, grad_scale, found_inf,
    )  # fmt: skip


def planned_sgd_(
    plan: StepPlan,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    seed: int = 0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """:func:`masked_sgd_` on the lists of a plan, which needs momentum buffers if ``momentum`` is not 0."""
    _refuse_other_plan("planned_sgd_", plan, SGD_STATES if momentum else ())
    _ops.planned_sgd_.default(
        plan.memory, plan.tensors, plan.blocks, plan.bits, plan.rank, plan.compact, plan.stochastic_rounding,
        plan.moment_bits, lr, momentum, dampening, weight_decay, nesterov, maximize, seed, grad_scale, found_inf,
    )  # fmt: skip


def _refuse_other_plan(operator: str, plan: StepPlan, states: tuple[str, ...]) -> None:
    if plan.states != states:
        found, expected = (", ".join(names) or "no state" for names in (plan.states, states))
        raise RuntimeError(f"aimfair::{operator}: plan was made with {found}, expected {expected}")
