"""Valid arguments of every operator with all options on, and what it means that a change to them is refused."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from aimfair.selective import ops

from . import cases
from .cases import Inputs

SHAPES = [(5,), (1030,), (3, 4), (40,), (12,)]
NUMELS = [cases.numel_of(shape) for shape in SHAPES]


def half(shapes: Iterable[cases.Shape], device: torch.device) -> list[Tensor]:
    """Every other element: always the same mask, so that compact state of one call fits the mask of another."""
    return [torch.arange(cases.numel_of(shape), device=device).view(shape) % 2 == 0 for shape in shapes]


def accumulate(device: torch.device) -> Inputs:
    return cases.accumulate_inputs(SHAPES, torch.float32, device, grad_scale=torch.ones(1, device=device))


def mask(device: torch.device) -> Inputs:
    bits, rank = cases.packed(half(SHAPES, device), device)
    return {"bits": bits, "rank": rank}


def scores(device: torch.device) -> Inputs:
    """A score in the flat arguments of the schemas."""
    score = cases.score_inputs(SHAPES, "difference", device, divisor="relative_difference")["score"]
    names = ("criterion", "a", "b", "scale_a", "scale_b", "divisor_criterion", "c", "d", "scale_c", "scale_d", "eps")
    return dict(zip(names, ops._flat(score), strict=True))


def positional(name: str, inputs: Inputs) -> tuple[Any, ...]:
    """Arguments in the order of the schema, with the defaults of ``aimfair.selective.ops``."""
    parameters = inspect.signature(getattr(ops, name)).parameters
    arguments = []
    for argument in getattr(torch.ops.aimfair, name).default._schema.arguments:
        value = inputs[argument.name] if argument.name in inputs else parameters[argument.name].default
        if value is None and not isinstance(argument.type, torch.OptionalType):
            value = "" if str(argument.type) == "str" else []
        arguments.append(value)
    return tuple(arguments)


def flat(name: str) -> Callable[..., None]:
    """The operator itself, below :class:`Score`: what it refuses of a C++ caller, who has no such type."""

    def call(**inputs: Any) -> None:
        getattr(torch.ops.aimfair, name).default(*positional(name, inputs))

    return call


def select(device: torch.device) -> Inputs:
    return mask(device) | {"k": 7} | scores(device)


def select_segments(device: torch.device) -> Inputs:
    """A whole tensor, runs, a group of two tensors, and runs again."""
    segments = {"units": [1, 103, 1, 1, 4], "ks": [3, 4, 9, 9, 2], "groups": [5, 6, -7, -7, 8]}
    return mask(device) | segments | scores(device)


def count_keys(device: torch.device) -> Inputs:
    return {"counts": torch.ones(2049, dtype=torch.int64, device=device), "first": 3 << 30, "bits": 30} | scores(device)


def count_equal(device: torch.device) -> Inputs:
    return {"counts": torch.ones(len(SHAPES), dtype=torch.int64, device=device), "key": 1 << 31} | scores(device)


def select_above(device: torch.device) -> Inputs:
    ties = torch.arange(len(SHAPES), device=device)
    return mask(device) | {"key": 1 << 31, "ties": ties} | scores(device)


def unit_scores(device: torch.device) -> Inputs:
    out = [torch.zeros(units, device=device) for units in (5, 10, 3, 40, 1)]
    return {"out": out} | scores(device)


def expand_units(device: torch.device) -> Inputs:
    units = [5, 10, 3, 40, 1]
    unit_bits, _ = cases.packed(half([(count,) for count in units], device), device)
    return mask(device) | {"unit_bits": unit_bits, "numels": list(NUMELS), "units": units}


def pack_bits(device: torch.device) -> Inputs:
    return mask(device) | {"bools": half(SHAPES, device)}


def unpack_bits(device: torch.device) -> Inputs:
    return {"bools": half(SHAPES, device), "bits": mask(device)["bits"]}


def adamw(device: torch.device, compact: bool = False, **options: Any) -> Inputs:
    bools = half(SHAPES, device)
    scalars = {"grad_scale": torch.ones(1, device=device), "found_inf": torch.zeros(1, device=device)}
    return cases.adamw_inputs(
        SHAPES, torch.bfloat16, device, bools, compact=compact, amsgrad=True, masters=True, **scalars | options
    )


def sgd(device: torch.device, compact: bool = False, **options: Any) -> Inputs:
    bools = half(SHAPES, device)
    return cases.sgd_inputs(SHAPES, torch.bfloat16, device, bools, compact=compact, masters=True, **options)


def compact_adamw(device: torch.device) -> Inputs:
    return adamw(device, compact=True)


def compact_sgd(device: torch.device) -> Inputs:
    return sgd(device, compact=True)


OPERATORS: dict[Callable[[torch.device], Inputs], Callable[..., None]] = {
    accumulate: ops.accumulate_,
    select: flat("select_"),
    select_segments: flat("select_segments_"),
    count_keys: flat("count_keys_"),
    count_equal: flat("count_equal_"),
    select_above: flat("select_above_"),
    unit_scores: flat("unit_scores_"),
    expand_units: ops.expand_units_,
    pack_bits: ops.pack_bits_,
    unpack_bits: ops.unpack_bits_,
    mask: ops.rank_,
    adamw: ops.masked_adamw_,
    compact_adamw: ops.masked_adamw_,
    sgd: ops.masked_sgd_,
    compact_sgd: ops.masked_sgd_,
}

WAITING = (select, select_segments, select_above, unit_scores)
"""They say whether a score is NaN, for which the host reads what the device found."""

LISTS = {
    accumulate: ["grads", "sums", "squares", "second_sums"],
    select: ["a", "b", "c", "d"],
    select_segments: ["a", "b", "c", "d"],
    count_keys: ["a", "b", "c", "d"],
    count_equal: ["a", "b", "c", "d"],
    select_above: ["a", "b", "c", "d"],
    unit_scores: ["a", "b", "c", "d", "out"],
    pack_bits: ["bools"],
    unpack_bits: ["bools"],
    adamw: ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters"],
    compact_adamw: ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters"],
    sgd: ["params", "grads", "momentum_buffers", "masters"],
    compact_sgd: ["params", "grads", "momentum_buffers", "masters"],
}
"""Lists of each operator; the sizes of the others are checked against the first."""


def refused(build: Callable[[torch.device], Inputs], device: torch.device, fragment: str, **changes: Any) -> None:
    """Calls the operator with ``changes`` to valid arguments: it must name the culprit and write nothing."""
    inputs = build(device) | changes
    tensors = [tensor for tensor in cases.tensors_in(inputs) if not tensor.is_meta]
    before = cases.clone(tensors)
    with pytest.raises(RuntimeError, match=fragment):
        OPERATORS[build](**inputs)
    cases.assert_same(tensors, before)
