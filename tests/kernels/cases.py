"""Inputs and comparisons shared by the kernel tests.

Inputs of an operator are kept as the dict of its arguments. A test clones the dict, gives one to the kernel and one to
the reference, and compares every tensor in it: what must change, and what must not. Inputs are made on the CPU, and the
reference always runs there: kernels on a GPU are held against the arithmetic of another device, and the GPU has little
to do but what is tested.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimfair.selective import layout, moments, reference
from aimfair.selective.score import Score

Shape = tuple[int, ...]
Inputs = dict[str, Any]

SHAPES: dict[str, list[Shape]] = {
    "no_tensors": [],
    "empty": [(0,)],
    "one_element": [(1,)],
    "scalar_and_empty": [(), (0, 5), (1, 1)],
    "vector_edges": [(n,) for n in (2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)],
    "block_edges": [(1023,), (1024,), (1025,), (2047,), (2048,), (2049,)],
    "mixed": [(5000,), (3, 7), (0,), (1024,), (), (33, 65), (1,), (8, 3, 3, 3)],
    "hundreds_of_tiny": [(i % 7,) for i in range(400)],
    "larger": [(70_000,), (17,), (300, 401), (65_537,)],
}
MIXED = SHAPES["mixed"]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

DENSITIES: dict[str, float] = {"none": 0.0, "one_bit": -1.0, "1%": 0.01, "10%": 0.1, "50%": 0.5, "all": 1.0}

OFFSETS = [0, 1, 3]
"""Storage offsets in elements; 1 and 3 break the alignment of every vector access."""

_GUARD = 0xA5
_GUARD_ELEMENTS = 64


# -- tensors between guards -------------------------------------------------------------------------------------------


def place(values: Tensor, offset: int = 0) -> Tensor:
    """A contiguous copy of ``values`` that begins ``offset`` elements into its storage, with guard bytes around it."""
    numel, size = values.numel(), values.element_size()
    storage = torch.full(
        ((offset + numel + _GUARD_ELEMENTS) * size,), _GUARD, dtype=torch.uint8, device=values.device
    ).view(values.dtype)
    placed = storage[offset : offset + numel].view(values.shape)
    return placed.copy_(values)


def _storage_bytes(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def bytes_on_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The storage of each tensor, all of a GPU in one copy: a case may have two thousand."""
    storages = [_storage_bytes(tensor) for tensor in tensors]
    away = [i for i, storage in enumerate(storages) if not storage.is_cpu]
    if away:
        sizes = [storages[i].numel() for i in away]
        fetched = torch.cat([storages[i] for i in away]).cpu().split(sizes)
        for i, storage in zip(away, fetched, strict=True):
            storages[i] = storage
    return [storage.numpy() for storage in storages]


def guards_intact(tensor: Tensor, storage: np.ndarray) -> bool:
    """Whether the storage around a placed tensor is as :func:`place` left it; True for tensors made otherwise."""
    size = tensor.element_size()
    begin, end = tensor.storage_offset() * size, (tensor.storage_offset() + tensor.numel()) * size
    if len(storage) != end + _GUARD_ELEMENTS * size:
        return True
    return bool((storage[:begin] == _GUARD).all() and (storage[end:] == _GUARD).all())


def clone(value: Any, device: torch.device | str | None = None) -> Any:
    """A copy of an argument or a dict of arguments, here or there; tensors keep their offset and their guards."""
    if isinstance(value, Tensor):
        storage = _storage_bytes(value).to(device or value.device, copy=True).view(value.dtype)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, dict):
        return {name: clone(item, device) for name, item in value.items()}
    if isinstance(value, Score):
        return value.map(lambda _, tensor: clone(tensor, device))
    return [clone(item, device) for item in value] if isinstance(value, list) else value


def on_device(value: Any, device: torch.device) -> Any:
    """What was made on the CPU, where it is wanted."""
    return value if device.type == "cpu" else clone(value, device)


CPU = torch.device("cpu")

# -- comparisons ------------------------------------------------------------------------------------------------------


def _integers(tensor: Tensor, storage: np.ndarray) -> np.ndarray:
    """The bits of every element."""
    size = tensor.element_size()
    if not tensor.numel():
        return np.empty(tensor.shape, f"i{size}")
    strides = [stride * size for stride in tensor.stride()]
    return np.ndarray(tensor.shape, f"i{size}", storage, tensor.storage_offset() * size, strides)


def assert_same(actual: Any, expected: Any, name: str = "tensor") -> None:
    """Two tensors, lists or dicts of arguments: equal to the last bit, or both NaN (whose payloads are not part of any
    contract), and intact guards around ``actual``. They may be on two devices.
    """
    pairs = list(_pairs(actual, expected, name))
    if pairs and all(tensor.is_cuda for pair in pairs for tensor in pair[1:]) and storages_equal(pairs):
        return
    found, wanted = (bytes_on_host([pair[side] for pair in pairs]) for side in (1, 2))
    for (name, x, y), x_bytes, y_bytes in zip(pairs, found, wanted, strict=True):
        different = _integers(x, x_bytes) != _integers(y, y_bytes)
        if different.any():
            _require_nan(name, x.cpu(), y.cpu(), torch.as_tensor(different))
        assert guards_intact(x, x_bytes), f"{name}: written outside of the tensor"


def storages_equal(pairs: Sequence[tuple[str, Tensor, Tensor]]) -> bool:
    """Whether both sides are equal in every byte, guards included: one comparison, where they are."""
    if len({tensor.device for pair in pairs for tensor in pair[1:]}) > 1:
        return False
    actual, expected = (torch.cat([_storage_bytes(pair[side]) for pair in pairs]) for side in (1, 2))
    return torch.equal(actual, expected)


def _pairs(actual: Any, expected: Any, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of both with their names; everything else about them must be equal."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            yield from _pairs(actual[key], expected[key], key)
    elif isinstance(expected, Score):
        yield from _pairs(vars(actual), vars(expected), name)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), name
        for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
            yield from _pairs(x, y, f"{name}[{i}]")
    elif isinstance(expected, Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        yield name, actual, expected
    else:
        assert actual == expected, name


def _require_nan(name: str, actual: Tensor, expected: Tensor, different: Tensor) -> None:
    wrong = different & ~(actual.isnan() & expected.isnan()) if actual.is_floating_point() else different
    places = wrong.flatten().nonzero().flatten()
    if places.numel():
        i = int(places[0])
        found, wanted = actual.flatten()[i].item(), expected.flatten()[i].item()
        raise AssertionError(f"{name}: {places.numel()} differ, first at {i}: {found!r}, expected {wanted!r}")


def tensors_in(value: Any) -> Iterator[Tensor]:
    value = vars(value) if isinstance(value, Score) else value
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


# -- masks ------------------------------------------------------------------------------------------------------------


def numel_of(shape: Shape) -> int:
    return math.prod(shape)


def random_bools(shapes: Sequence[Shape], density: float, device: torch.device) -> list[Tensor]:
    """Random bool tensors; a negative density selects a single element, of the last tensor that has any."""
    if density >= 0:
        return on_device([torch.rand(shape) < density for shape in shapes], device)
    bools = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
    for selected in reversed(bools):
        if selected.numel():
            selected.view(-1)[int(torch.randint(selected.numel(), ()))] = True
            break
    return on_device(bools, device)


def row_bools(shapes: Sequence[Shape], row: int, device: torch.device) -> list[Tensor]:
    """Whole runs of ``row`` elements, about one in three, so that blocks are empty, full and mixed."""
    bools = []
    for shape in shapes:
        numel = numel_of(shape)
        rows = torch.rand(numel // row + 1) < 0.34
        bools.append(rows.repeat_interleave(row)[:numel].view(shape))
    return on_device(bools, device)


def packed(bools: Sequence[Tensor], device: torch.device, offset: int = 0) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` of bool tensors, by the reference."""
    bits, rank = layout.empty_mask([selected.numel() for selected in bools])
    reference.pack_bits_(bits, rank, [selected.cpu() for selected in bools])
    return on_device(place(bits, offset), device), on_device(place(rank, offset), device)


# -- values -----------------------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-45, 6e-8, 3e38, -3e38, 1.0, -1.0]
"""Signed zeros, infinities, NaN, denormals and the edges of the range, of fp32 and after rounding to 16 bits."""


def normal(shape: Shape, dtype: torch.dtype, offset: int = 0) -> Tensor:
    return place(torch.randn(shape).to(dtype), offset)


def with_special(tensor: Tensor, share: float = 0.1) -> Tensor:
    """Overwrites about ``share`` of the elements with :data:`SPECIAL` values."""
    shape, device = tensor.shape, tensor.device
    special = torch.tensor(SPECIAL, device=device)[torch.randint(len(SPECIAL), shape, device=device)]
    return tensor.copy_(torch.where(torch.rand(shape, device=device) < share, special.to(tensor.dtype), tensor))


# -- argument dicts ---------------------------------------------------------------------------------------------------


def accumulate_inputs(
    shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, offset: int = 0, **options: Any
) -> Inputs:
    """Arguments of ``accumulate_`` with all three accumulators, as if some batches had been added before."""

    def accumulators() -> list[Tensor]:
        return [normal((numel_of(shape),), torch.float32, offset) for shape in shapes]

    inputs = {
        "grads": [normal(shape, dtype, offset) for shape in shapes],
        "sums": accumulators(),
        "squares": [sums.abs_() for sums in accumulators()],
        "second_sums": accumulators(),
        "square_norms": place(torch.rand(len(shapes), dtype=torch.float64), offset),
        "nonfinite": place(torch.randint(5, (len(shapes),)), offset),
    }
    return on_device(inputs, device) | options


CRITERIA = ["value", "magnitude", "difference", "relative_difference", "norm_ratio"]

SECOND_OF = {"value": False, "magnitude": False, "difference": True, "relative_difference": True, "norm_ratio": True}
"""Whether a criterion reads a second list."""


def score_inputs(
    shapes: Sequence[Shape],
    criterion: str,
    device: torch.device,
    offset: int = 0,
    divisor: str | None = None,
) -> Inputs:
    """A score for ``select_`` and ``unit_scores_``; a third of the values repeat, so scores tie.

    ``a`` has the shapes asked for, ``b`` is flat, in the score and in its divisor.
    """

    def accumulators(name: str) -> list[Tensor]:
        tensors = []
        for shape in shapes:
            values = torch.randn(shape)
            values = torch.where(torch.rand(shape) < 0.34, values.round(), values)
            tensors.append(place(values.abs() if name == "norm_ratio" else values, offset))
        return tensors

    def score(name: str, scale_a: float, scale_b: float, divisor: Score | None = None) -> Score:
        a = accumulators(name)
        b = [tensor.view(-1) for tensor in accumulators(name)] if SECOND_OF[name] else None
        return Score(name, a, b, scale_a, scale_b, divisor)

    below = score(divisor, 0.11, 1.3) if divisor else None
    return {"score": on_device(score(criterion, 1 / 3, 0.7, below), device)}


class _StepInputs:
    """Builds what AdamW and SGD have in common: parameters, gradients, mask, masters and scalars."""

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        bools: Sequence[Tensor] | None,
        compact: bool,
        offset: int,
        moment_bits: int,
    ):
        self.shapes, self.offset, self.moment_bits = shapes, offset, moment_bits
        bools = None if bools is None else [selected.cpu() for selected in bools]
        selected = [numel_of(shape) if bools is None else int(bools[t].sum()) for t, shape in enumerate(shapes)]
        self.state_numels = selected if compact else [numel_of(shape) for shape in shapes]
        self.params = [normal(shape, dtype, offset) for shape in shapes]
        self.slots = [torch.ones(shape, dtype=torch.bool) for shape in shapes]
        if compact and bools is not None:
            self.slots = list(bools)
        self.inputs: Inputs = {
            "params": self.params,
            "grads": [normal(shape, dtype, offset) for shape in shapes],
            "steps": [place(torch.full((1,), float(t % 3))) for t in range(len(shapes))],
            "compact": compact,
        }
        if bools is not None:
            bits, rank = packed(bools, CPU, offset)
            firsts = layout.first_blocks([numel_of(shape) for shape in shapes])[:-1]
            self.inputs |= {"bits": bits, "rank": rank, "first_blocks": firsts}

    def moments(self, *, root: bool = False) -> list[Tensor]:
        """Those of ``exp_avg_sq``, which are not negative, are kept as roots in 8 bits."""
        values = [normal((numel,), torch.float32, self.offset) for numel in self.state_numels]
        values = [value.abs_() for value in values] if root else values
        return values if self.moment_bits == 32 else [self._rounded(t, value, root) for t, value in enumerate(values)]

    def _rounded(self, t: int, values: Tensor, root: bool) -> Tensor:
        dtype, slots = moments.DTYPES[self.moment_bits], torch.arange(values.numel())
        numel, elements = self.slots[t].numel(), self.slots[t].flatten().nonzero().flatten()
        offset = 2 * self.offset if dtype == torch.uint8 else self.offset  # bases are aligned to two bytes
        state = place(torch.zeros(moments.length(dtype, numel, values.numel()), dtype=dtype), offset)
        moments.write(state, numel, elements, slots, values, moments.NEAREST, root=root)
        return state

    def masters(self) -> list[Tensor]:
        """fp32 weights that round to the parameters."""
        return [
            place(param.float()[slots].flatten(), self.offset)
            for param, slots in zip(self.params, self.slots, strict=True)
        ]


def adamw_inputs(
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    device: torch.device,
    bools: Sequence[Tensor] | None = None,
    *,
    compact: bool = False,
    offset: int = 0,
    amsgrad: bool = False,
    masters: bool = False,
    moment_bits: int = 32,
    lr: float = 1e-2,
    **options: Any,
) -> Inputs:
    """Arguments of ``masked_adamw_`` in the middle of a training: random moments, tensors at different steps."""
    step = _StepInputs(shapes, dtype, bools, compact, offset, moment_bits)
    inputs = step.inputs | {
        "exp_avgs": step.moments(),
        "exp_avg_sqs": step.moments(root=True),
        "lr": torch.tensor(lr),
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.1,
    }
    if amsgrad:
        inputs["max_exp_avg_sqs"] = step.moments(root=True)
    if masters:
        inputs["masters"] = step.masters()
    return on_device(inputs, device) | options


def sgd_inputs(
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    device: torch.device,
    bools: Sequence[Tensor] | None = None,
    *,
    compact: bool = False,
    offset: int = 0,
    momentum: float = 0.9,
    masters: bool = False,
    moment_bits: int = 32,
    lr: float = 1e-2,
    **options: Any,
) -> Inputs:
    """Arguments of ``masked_sgd_`` in the middle of a training; some tensors are at their first step."""
    step = _StepInputs(shapes, dtype, bools, compact, offset, moment_bits)
    inputs = step.inputs | {
        "momentum_buffers": step.moments() if momentum else [],
        "lr": torch.tensor(lr),
        "momentum": momentum,
        "weight_decay": 0.1,
    }
    if masters:
        inputs["masters"] = step.masters()
    return on_device(inputs, device) | options


def assert_matches_reference(
    kernel: Callable[..., None], specification: Callable[..., None], inputs: Inputs, calls: int = 1
) -> None:
    """Calls both ``calls`` times on copies of ``inputs``: every tensor must end with the same bits."""
    expected = clone(inputs, "cpu")
    for _ in range(calls):
        specification(**expected)
        kernel(**inputs)
    assert_same(inputs, expected)
