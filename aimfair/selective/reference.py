"""The specification: every operator of :mod:`aimfair.selective.ops` in plain PyTorch, without the extension.

Signatures and semantics are those of ``ops``, where shapes, dtypes and errors are documented.
A kernel must compute the same to the last bit, except for the order of the float64
sums in :func:`accumulate_` and :func:`unit_scores_`. Hence one operation per fp32 rounding, in
the specified order, and no functions that may fuse a multiply with an add
(``lerp``, ``addcmul``, ``addcdiv``, ``alpha=``).

Input is not checked: the kernels do that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aimfair.selective import layout, moments
from aimfair.selective.layout import BLOCK, WORDS_PER_BLOCK
from aimfair.selective.score import Score

# -- accumulate ------------------------------------------------------------------------------------


def _fp32(value: float, device: torch.device) -> Tensor:
    """A float64 rounded to fp32 once, as a tensor: division by a Python number may multiply by its reciprocal."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded fp32 square root; that of torch on CPU is often off by one ulp."""
    return x.double().sqrt().float()


def _gradient(grad: Tensor, grad_scale: Tensor | None) -> Tensor:
    """fp32 gradient, flat, multiplied by the fp32 reciprocal of ``grad_scale``."""
    flat = grad.view(-1).float()
    return flat if grad_scale is None else flat * (_fp32(1.0, flat.device) / grad_scale.view(()))


@torch.no_grad()
def accumulate_(
    grads: list[Tensor], sums: list[Tensor], squares: list[Tensor], square_norms: Tensor, nonfinite: Tensor, *,
    weight: float = 1.0, second_sums: list[Tensor] | None = None, second_weight: float = 0.0,
    grad_scale: Tensor | None = None, zero_grads: bool = False,
) -> None:  # fmt: skip
    for t, grad in enumerate(grads):
        g = _gradient(grad, grad_scale)
        finite = g.isfinite()
        g = torch.where(finite, g, 0.0)
        square = g * g
        if sums:
            sums[t].view(-1).add_(g * _fp32(weight, g.device))
        if second_sums:
            second_sums[t].view(-1).add_(g * _fp32(second_weight, g.device))
        if squares:
            squares[t].view(-1).add_(square)
        square_norms[t] += square.double().sum()
        nonfinite[t] += (~finite).sum()
        if zero_grads:
            grad.zero_()


# -- topk ------------------------------------------------------------------------------------------


def _criterion_scores(
    criterion: str, a: Tensor, b: Tensor | None, scale_a: float, scale_b: float, eps: Tensor
) -> Tensor:
    """fp32 [n] scores of one criterion. Scales turn sums over batches into means; ``value`` has none."""
    if criterion == "value":
        return a.view(-1)
    x = a.view(-1) * _fp32(scale_a, a.device)
    if criterion == "magnitude":
        return x.abs()
    assert b is not None, f"{criterion} needs two accumulators"
    y = b.view(-1) * _fp32(scale_b, b.device)
    if criterion == "difference":
        return (x - y).abs()
    if criterion == "relative_difference":
        return (x - y).abs() / ((x.abs() + y.abs()) + eps)
    if criterion == "norm_ratio":
        return _sqrt(y) / _sqrt(x + eps)
    raise RuntimeError(f"unknown criterion {criterion!r}")


def _scores(score: Score) -> list[Tensor]:
    """fp32 [n[t]] scores of every tensor."""
    scores, *divisors = (
        [
            _criterion_scores(
                part.criterion, a, part.b[t] if part.b else None, part.scale_a, part.scale_b, _fp32(part.eps, a.device)
            )
            for t, a in enumerate(part.a)
        ]
        for part in score.parts
    )
    for divisor in divisors:
        scores = [x / (y + _fp32(score.eps, y.device)) for x, y in zip(scores, divisor, strict=True)]
    return scores


def _require_no_nan(scores: list[Tensor]) -> None:
    for t, score in enumerate(scores):
        if score.isnan().any():
            raise RuntimeError(f"a[{t}]: the score of element {int(score.isnan().nonzero()[0])} is NaN")


@torch.no_grad()
def select_(bits: Tensor, rank: Tensor, k: int, score: Score, *, largest: bool = True) -> None:
    scores = _scores(score)
    _require_no_nan(scores)
    numels = [values.numel() for values in scores]
    if not scores:
        _write_mask(bits, rank, [])
        return
    flat = torch.cat(scores) + 0.0  # turns -0.0 into 0.0, which some sorts distinguish
    selected = torch.zeros_like(flat, dtype=torch.bool)
    selected[flat.sort(stable=True, descending=largest).indices[:k]] = True
    _write_mask(bits, rank, torch.split(selected, numels))


@torch.no_grad()
def select_segments_(
    bits: Tensor, rank: Tensor, units: list[int], ks: list[int], score: Score, *, groups: list[int] | None = None,
    largest: bool = True,
) -> None:  # fmt: skip
    scores = _scores(score)
    _require_no_nan(scores)
    together: dict[int, list[int]] = {}
    for t in range(len(scores)):
        together.setdefault(groups[t] if groups else t, []).append(t)
    selected = list(scores)  # filled below
    for members in together.values():
        first = members[0]
        rows = torch.cat([scores[t] for t in members]).view(max(units[first], 1), -1) + 0.0
        best = rows.sort(dim=1, stable=True, descending=largest).indices[:, : ks[first]]
        chosen = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, best, True).flatten()
        for t, part in zip(members, torch.split(chosen, [scores[t].numel() for t in members]), strict=True):
            selected[t] = part
    _write_mask(bits, rank, selected)


def _keys(score: Tensor, largest: bool) -> Tensor:
    """int64 [n] keys from 0 to 2^32 - 1 in the order of the scores, the best ones greatest."""
    bits = (score + 0.0).view(torch.int32).long()  # turns -0.0 into 0.0
    key = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (key if largest else ~key) + 2**31


@torch.no_grad()
def count_keys_(counts: Tensor, first: int, bits: int, score: Score, *, largest: bool = True) -> None:
    for values in _scores(score):
        keys = _keys(values[~values.isnan()], largest)
        bins = (keys[(keys >= first) & (keys < first + 2**bits)] - first) >> max(0, bits - 11)
        counts[:2048] += torch.bincount(bins, minlength=2048)
        counts[2048] += values.isnan().sum()


@torch.no_grad()
def count_equal_(counts: Tensor, key: int, score: Score, *, largest: bool = True) -> None:
    for t, values in enumerate(_scores(score)):
        counts[t] += (_keys(values[~values.isnan()], largest) == key).sum()


@torch.no_grad()
def select_above_(bits: Tensor, rank: Tensor, key: int, ties: Tensor, score: Score, *, largest: bool = True) -> None:
    scores = _scores(score)
    _require_no_nan(scores)
    selected = []
    for values, wanted in zip(scores, ties, strict=True):
        keys = _keys(values, largest)
        equal = keys == key
        selected.append((keys > key) | (equal & (equal.cumsum(0) <= wanted)))
    _write_mask(bits, rank, selected)


@torch.no_grad()
def unit_scores_(out: list[Tensor], score: Score) -> None:
    scores = _scores(score)
    _require_no_nan(scores)
    for units, values in zip(out, scores, strict=True):
        if units.numel():
            rows = values.double().view(units.numel(), -1)
            units.view(-1).copy_((rows.sum(1) / rows.shape[1]).float())


# -- mask ------------------------------------------------------------------------------------------


def _pack(selected: Tensor) -> Tensor:
    """bool [n] -> int32 words, padded with zero bits to whole blocks."""
    padded = torch.nn.functional.pad(selected.flatten(), (0, -selected.numel() % BLOCK))
    weights = 1 << torch.arange(32, device=selected.device)
    return (padded.view(-1, 32) * weights).sum(1).to(torch.int32)


def _unpack(words: Tensor) -> Tensor:
    """int32 words -> bool [32 * words]."""
    return ((words[:, None] >> torch.arange(32, device=words.device, dtype=torch.int32)) & 1).flatten().bool()


def _unpack_tensor(bits: Tensor, first_block: int, numel: int) -> Tensor:
    """bool [numel]: the part of a mask that belongs to the tensor beginning at ``first_block``."""
    words = (numel + 31) // 32
    first_word = first_block * WORDS_PER_BLOCK
    return _unpack(bits[first_word : first_word + words])[:numel]


def _write_mask(bits: Tensor, rank: Tensor, selected: Sequence[Tensor]) -> None:
    if selected:
        bits.copy_(torch.cat([_pack(tensor) for tensor in selected]))
    rank_(rank, bits)


@torch.no_grad()
def rank_(rank: Tensor, bits: Tensor) -> None:
    per_block = _unpack(bits).view(-1, BLOCK).sum(1)
    rank.zero_()
    rank[1:] = per_block.cumsum(0)


@torch.no_grad()
def pack_bits_(bits: Tensor, rank: Tensor, bools: list[Tensor]) -> None:
    _write_mask(bits, rank, bools)


@torch.no_grad()
def unpack_bits_(bools: list[Tensor], bits: Tensor) -> None:
    firsts = layout.first_blocks([tensor.numel() for tensor in bools])
    for tensor, first in zip(bools, firsts, strict=False):
        tensor.view(-1).copy_(_unpack_tensor(bits, first, tensor.numel()))


@torch.no_grad()
def expand_units_(bits: Tensor, rank: Tensor, unit_bits: Tensor, numels: list[int], units: list[int]) -> None:
    firsts = layout.first_blocks(units)
    selected = [
        _unpack_tensor(unit_bits, first, count).repeat_interleave(numel // count if count else 0)
        for first, numel, count in zip(firsts, numels, units, strict=False)
    ]
    _write_mask(bits, rank, selected)


# -- step ------------------------------------------------------------------------------------------


def _splitmix64(z: Tensor) -> Tensor:
    """Mixes the bits of an int64 tensor read as unsigned; ``>>`` is arithmetic in torch, hence the masks."""

    def signed(constant: int) -> int:
        return constant - (1 << 64)

    z = z + signed(0x9E3779B97F4A7C15)
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * signed(0x94D049BB133111EB)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _random_16(seed: int, step: int, first_block: int, elements: Tensor, moment: int = -1) -> Tensor:
    """int64 in [0, 65536), keyed by (seed, step, element): one key per mask block, one hash per element.

    Args:
        moment: 0 for the first moment of the optimizer, 1 for the second, 2 for the third; -1 for the parameter.
    """
    stream = (seed + 0x9E3779B97F4A7C15 * step) & ((1 << 64) - 1)
    stream_key = _splitmix64(torch.tensor(stream - (1 << 64) if stream >> 63 else stream, device=elements.device))
    key = _splitmix64(stream_key ^ (first_block + elements // BLOCK))
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    x = (elements % BLOCK + BLOCK * (moment + 1) + low) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x ^ high) >> 16


def _stochastic_bfloat16(values: Tensor, random_16: Tensor) -> Tensor:
    """Rounds fp32 up or down with probability proportional to the distance. Infinities stay: their low bits are 0."""
    bits = (values.view(torch.int32).long() & 0xFFFFFFFF) + random_16
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


class _Selected:
    """The selected elements of one parameter: reads their weights and state, writes them back."""

    def __init__(self, param: Tensor, master: Tensor | None, bits: Tensor | None, first_block: int, compact: bool):
        self.param = param.view(-1)
        self.master = None if master is None else master.view(-1)
        self.first_block = first_block
        if bits is None:
            self.elements = torch.arange(param.numel(), device=param.device)
        else:
            self.elements = _unpack_tensor(bits, first_block, param.numel()).nonzero().flatten()
        self.slots = torch.arange(self.elements.numel(), device=param.device) if compact else self.elements

    def weights(self) -> Tensor:
        return self.param[self.elements].float() if self.master is None else self.master[self.slots]

    def moment(self, state: Tensor, *, root: bool = False) -> Tensor:
        return moments.read(state.view(-1), self.param.numel(), self.elements, self.slots, root=root)

    def write_moment(
        self, state: Tensor, values: Tensor, moment: int, key: tuple[int, int], *, root: bool = False
    ) -> None:
        """``moment`` is its place among those of the optimizer, ``key`` is (seed, step)."""
        random = _random_16(*key, self.first_block, self.elements, moment)
        moments.write(state.view(-1), self.param.numel(), self.elements, self.slots, values, random, root=root)

    def write_weights(self, values: Tensor, stochastic: tuple[int, int] | None) -> None:
        """Rounds to the dtype of the parameter; ``stochastic`` is (seed, step)."""
        if self.master is not None:
            self.master[self.slots] = values
        if stochastic is not None and self.param.dtype == torch.bfloat16:
            rounded = _stochastic_bfloat16(values, _random_16(*stochastic, self.first_block, self.elements))
        else:
            rounded = values.to(self.param.dtype)
        if self.param.dtype != torch.float32:
            rounded[values.isnan()] = torch.nan  # the quiet NaN, for any payload
        self.param[self.elements] = rounded


def _power(base: float, exponent: int) -> float:
    """``base**exponent`` by squaring, each product rounded: the same on every device, unlike ``pow`` of C libraries."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _blocks_of(params: list[Tensor], first_blocks: list[int] | None) -> list[int]:
    return first_blocks or layout.first_blocks([param.numel() for param in params])


@torch.no_grad()
def masked_adamw_(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], steps: list[Tensor],
    *, lr: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float,
    bits: Tensor | None = None, rank: Tensor | None = None, first_blocks: list[int] | None = None,
    max_exp_avg_sqs: list[Tensor] | None = None, masters: list[Tensor] | None = None,
    maximize: bool = False, compact: bool = False, stochastic_rounding: bool = False, seed: int = 0,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    if found_inf is not None and found_inf.item() != 0:
        return
    blocks = _blocks_of(params, first_blocks)
    for t, param in enumerate(params):
        selected = _Selected(param, masters[t] if masters else None, bits, blocks[t], compact)

        def fp32(value: float, device: torch.device = param.device) -> Tensor:
            return _fp32(value, device)

        steps[t] += 1
        step, rate = int(steps[t].item()), lr.item()
        decay = fp32(1.0 - rate * weight_decay)
        step_size = fp32(rate) / fp32(1.0 - _power(beta1, step))
        inverse_bias_correction2 = fp32(1.0) / _sqrt(fp32(1.0 - _power(beta2, step)))

        g = _gradient(grads[t], grad_scale)[selected.elements]
        if maximize:
            g = -g
        p = selected.weights() * decay
        m = selected.moment(exp_avgs[t]) * fp32(beta1) + g * fp32(1.0 - beta1)
        v = selected.moment(exp_avg_sqs[t], root=True) * fp32(beta2) + (g * g) * fp32(1.0 - beta2)
        second = v
        if max_exp_avg_sqs:
            largest = selected.moment(max_exp_avg_sqs[t])
            second = torch.where(largest >= v, largest, v)
            selected.write_moment(max_exp_avg_sqs[t], second, 2, (seed, step))
        p = p - (step_size * m) / (_sqrt(second) * inverse_bias_correction2 + fp32(eps))

        selected.write_moment(exp_avgs[t], m, 0, (seed, step))
        selected.write_moment(exp_avg_sqs[t], v, 1, (seed, step), root=True)
        selected.write_weights(p, (seed, step) if stochastic_rounding else None)


@torch.no_grad()
def masked_sgd_(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], steps: list[Tensor], *,
    lr: Tensor, momentum: float, weight_decay: float, dampening: float = 0.0, nesterov: bool = False,
    bits: Tensor | None = None, rank: Tensor | None = None, first_blocks: list[int] | None = None,
    masters: list[Tensor] | None = None,
    maximize: bool = False, compact: bool = False, stochastic_rounding: bool = False, seed: int = 0,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    if found_inf is not None and found_inf.item() != 0:
        return
    blocks = _blocks_of(params, first_blocks)
    for t, param in enumerate(params):
        selected = _Selected(param, masters[t] if masters else None, bits, blocks[t], compact)
        steps[t] += 1
        step = int(steps[t].item())

        g = _gradient(grads[t], grad_scale)[selected.elements]
        if maximize:
            g = -g
        p = selected.weights()
        if weight_decay != 0:
            g = g + _fp32(weight_decay, g.device) * p
        if momentum != 0:
            buffer = g
            if step > 1:
                previous = selected.moment(momentum_buffers[t])
                buffer = _fp32(momentum, g.device) * previous + _fp32(1.0 - dampening, g.device) * g
            selected.write_moment(momentum_buffers[t], buffer, 0, (seed, step))
            g = g + _fp32(momentum, g.device) * buffer if nesterov else buffer
        p = p - _fp32(lr.item(), g.device) * g

        selected.write_weights(p, (seed, step) if stochastic_rounding else None)
