"""The comparison of the kernel tests notices what they rely on it for."""

import math

import pytest
import torch
from torch import Tensor

from . import cases


def tensors(offset: int = 1) -> list[Tensor]:
    values = torch.tensor([1.0, -0.0, math.nan, math.inf])
    return [cases.place(values.to(dtype), offset) for dtype in cases.DTYPES] + [cases.place(torch.arange(3), offset)]


def around(tensor: Tensor) -> Tensor:
    """All bytes of its storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def test_equal():
    """Whatever the offset, the payload of a NaN or the strides."""
    actual, expected = tensors(), tensors(offset=3)
    actual[0].view(torch.int32)[2] = -1
    assert actual[0].isnan()[2]
    cases.assert_same({"a": actual, "k": 3}, {"a": expected, "k": 3})
    cases.assert_same(torch.arange(6).view(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    cases.assert_same([torch.empty(0), torch.tensor(2.0)], [torch.empty(0), torch.tensor(2.0)])


def negate(actual: list[Tensor]) -> None:
    actual[0][1] = 0.0  # from -0.0


def write_behind(actual: list[Tensor]) -> None:
    around(actual[1])[-1] = 0


def write_before(actual: list[Tensor]) -> None:
    around(actual[3])[0] = 0


@pytest.mark.parametrize(("change", "message"), [
    (negate, r"x\[0\]: 1 differ, first at 1: 0.0, expected -0.0"),
    (lambda actual: actual[3].fill_(1), r"x\[3\]: 2 differ, first at 0: 1, expected 0"),
    (lambda actual: actual[2][2].fill_(2), r"x\[2\]: 1 differ, first at 2: 2.0, expected nan"),
    (write_behind, r"x\[1\]: written outside of the tensor"),
    (write_before, r"x\[3\]: written outside of the tensor"),
    (list.pop, "x"),
])  # fmt: skip
def test_different(change, message):
    actual, expected = tensors(), tensors()
    assert cases.storages_equal(list(cases._pairs(actual, expected, "x")))
    change(actual)
    with pytest.raises(AssertionError, match=message):
        cases.assert_same(actual, expected, "x")
    if len(actual) == len(expected):
        assert not cases.storages_equal(list(cases._pairs(actual, expected, "x")))


def test_storages_of_other_sizes_are_not_equal():
    assert not cases.storages_equal(list(cases._pairs(tensors(1), tensors(3), "x")))
