"""Bad input is refused with the name of the entry, before any memory is written."""

import itertools
import math

import pytest
import torch

import aimfair
from aimfair.selective import layout, ops
from aimfair.selective.score import Score

from . import cases
from .valid_calls import (
    LISTS,
    NUMELS,
    OPERATORS,
    SHAPES,
    WAITING,
    accumulate,
    adamw,
    compact_adamw,
    compact_sgd,
    count_equal,
    count_keys,
    expand_units,
    mask,
    pack_bits,
    refused,
    select,
    select_above,
    select_segments,
    sgd,
    unit_scores,
    unpack_bits,
)


def test_the_arguments_are_valid(device):
    """What the other tests spoil is accepted as it is."""
    for build, operator in OPERATORS.items():
        operator(**build(device))


ELSEWHERE = "Meta|another device"
"""Tensors on several devices are mostly refused by torch's dispatcher, which knows no entries."""

# -- CUDA graphs ------------------------------------------------------------------------------------------------------

captured = pytest.mark.skipif(not aimfair.build_info()["emulated"], reason="of a GPU in tests/cuda/test_graphs.py")


@captured
@pytest.mark.parametrize("build", WAITING)
def test_what_the_host_must_read_is_refused_in_a_capture(build, device, monkeypatch):
    monkeypatch.setenv("AIMFAIR_EMULATOR_CAPTURING", "1")
    refused(build, device, "the host reads its result, which a CUDA graph cannot hold; call it outside of the capture")


@captured
@pytest.mark.parametrize("build", [build for build in OPERATORS if build not in WAITING])
def test_the_others_are_the_same_in_a_capture(build, device, monkeypatch):
    """Where tables are written in smaller pieces."""
    expected = build(device)
    actual = cases.clone(expected)
    OPERATORS[build](**expected)
    monkeypatch.setenv("AIMFAIR_EMULATOR_CAPTURING", "1")
    OPERATORS[build](**actual)
    cases.assert_same(actual, expected)


# -- lists of tensors -------------------------------------------------------------------------------------------------

each_list = pytest.mark.parametrize(
    ("build", "name"),
    [pytest.param(build, name, id=f"{build.__name__}-{name}") for build, names in LISTS.items() for name in names],
)
each_sized_list = pytest.mark.parametrize(
    ("build", "name"),
    [pytest.param(build, name, id=f"{build.__name__}-{name}") for build, names in LISTS.items() for name in names[1:]],
)


@each_list
def test_unsupported_dtypes(build, name, device):
    for dtype in (torch.float64, torch.int32, torch.uint8, torch.complex64):
        values = build(device)[name]
        values[1] = torch.ones(values[1].shape, device=device).to(dtype)
        refused(build, device, rf"{name}\[1\]", **{name: values})


@each_list
def test_not_contiguous(build, name, device):
    values = build(device)[name]
    values[1] = values[1].repeat_interleave(2)[::2]
    refused(build, device, rf"{name}\[1\]", **{name: values})
    values = build(device)[name]
    values[3] = values[3].flatten()[:1].expand(values[3].numel())
    refused(build, device, rf"{name}\[3\]", **{name: values})


@each_list
def test_sparse(build, name, device):
    values = build(device)[name]
    values[1] = values[1].to_sparse()
    inputs = build(device) | {name: values}
    with pytest.raises((RuntimeError, NotImplementedError)):
        OPERATORS[build](**inputs)


@each_list
def test_tensor_on_another_device(build, name, device):
    values = build(device)[name]
    values[1] = values[1].to("meta")
    refused(build, device, ELSEWHERE, **{name: values})


@each_sized_list
def test_lists_of_different_lengths(build, name, device):
    refused(build, device, name, **{name: build(device)[name][:-1]})
    values = build(device)[name]
    refused(build, device, name, **{name: [*values, values[0].clone()]})


@each_sized_list
def test_wrong_number_of_elements(build, name, device):
    if build is unit_scores and name == "out":
        pytest.skip("the number of units is free: see test_units_must_divide")
    for change in (-1, 1):
        values = build(device)[name]
        values[1] = torch.zeros(values[1].numel() + change, dtype=values[1].dtype, device=device)
        refused(build, device, rf"{name}\[1\]", **{name: values})


@pytest.mark.parametrize("build", [adamw, sgd])
def test_gradient_of_another_dtype(build, device):
    values = build(device)["grads"]
    values[2] = values[2].float()
    refused(build, device, r"(params|grads)\[2\]", grads=values)


@pytest.mark.parametrize(("build", "name"), [
    (adamw, "exp_avgs"), (adamw, "exp_avg_sqs"), (adamw, "max_exp_avg_sqs"), (adamw, "masters"),
    (sgd, "momentum_buffers"), (sgd, "masters"), (accumulate, "sums"), (accumulate, "squares"),
])  # fmt: skip
def test_low_precision_state(build, name, device):
    """Moments may be bfloat16, but all of them, as the first one."""
    for dtype in (torch.bfloat16, torch.float16):
        values = build(device)[name]
        values[1] = values[1].to(dtype)
        refused(build, device, rf"{name}\[1\]", **{name: values})


# -- overlapping memory -----------------------------------------------------------------------------------------------

WRITTEN = {
    accumulate: ["sums", "squares", "second_sums"],
    unit_scores: ["out"],
    unpack_bits: ["bools"],
    adamw: ["params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters"],
    sgd: ["params", "momentum_buffers", "masters"],
}
each_written_list = pytest.mark.parametrize(
    ("build", "name"),
    [pytest.param(build, name, id=f"{build.__name__}-{name}") for build, names in WRITTEN.items() for name in names],
)


@each_written_list
def test_same_tensor_twice(build, name, device):
    """Entries 2 and 4 have twelve elements each."""
    values = build(device)[name]
    shared = values[2] if values[2].numel() == values[4].numel() else values[2][:1]
    values[4] = shared
    refused(build, device, "overlap", **{name: values})


@each_written_list
def test_overlapping_views(build, name, device):
    """Entry 3 begins in the last element of entry 0."""
    values = build(device)[name]
    first, last = values[0].numel(), values[3].numel()
    storage = torch.zeros(first + last, dtype=values[0].dtype, device=device)
    values[0], values[3] = storage[:first], storage[first - 1 : first - 1 + last]
    refused(build, device, "overlap", **{name: values})


@each_written_list
def test_adjacent_views_are_fine(build, name, device):
    """Parameters and state that are views into one flat buffer, one after the other."""
    inputs = build(device)
    buffer = torch.zeros(sum(value.numel() for value in inputs[name]), dtype=inputs[name][0].dtype, device=device)
    inputs[name] = list(buffer.split([value.numel() for value in inputs[name]]))
    OPERATORS[build](**inputs)


@pytest.mark.parametrize("build", list(WRITTEN), ids=lambda build: build.__name__)
def test_written_memory_is_read_as_something_else(build, device):
    """Any two lists of one operator, of which one is written and the dtypes agree."""
    for written, other in itertools.product(WRITTEN[build], LISTS[build]):
        values, others = build(device)[written], build(device)[other]
        if written == other or values[4].dtype != others[4].dtype or values[4].numel() != others[4].numel():
            continue
        others[4] = values[4]
        refused(build, device, "overlap", **{written: values, other: others})


def test_zeroed_gradients_count_as_written(device):
    values = accumulate(device)["grads"]
    values[4] = values[2]
    refused(accumulate, device, "overlap", grads=values, zero_grads=True)


def test_reading_twice_is_fine(device):
    inputs = accumulate(device)
    inputs["grads"][4] = inputs["grads"][2]
    ops.accumulate_(**inputs)
    scores = select(device)
    OPERATORS[select](**scores | {"b": scores["a"], "c": scores["a"], "a": [scores["a"][0], *scores["a"][1:]]})


# -- masks ------------------------------------------------------------------------------------------------------------

MASKED = [select, select_segments, select_above, expand_units, pack_bits, adamw, compact_adamw, sgd, compact_sgd]
each_masked = pytest.mark.parametrize("build", MASKED, ids=lambda build: build.__name__)


@each_masked
def test_bits_of_wrong_size_or_dtype(build, device):
    bits = mask(device)["bits"]
    for wrong in (bits[:-1].clone(), bits.long(), bits.float(), bits.repeat_interleave(2)[::2]):
        refused(build, device, "bits", bits=wrong)
    refused(build, device, "bits|rank", bits=bits[:-32].clone())  # a block less: the two disagree


@each_masked
def test_rank_of_wrong_size_or_dtype(build, device):
    rank = mask(device)["rank"]
    wrongs = (rank[:-1].clone(), torch.cat([rank, rank[:1]]), rank.int(), rank.double(), rank.repeat_interleave(2)[::2])
    for wrong in wrongs:
        refused(build, device, "rank", rank=wrong)


def test_bits_that_are_no_whole_blocks(device):
    bits = mask(device)["bits"]
    refused(mask, device, "bits", bits=bits[:-1].clone())
    refused(mask, device, "rank", rank=mask(device)["rank"][:-1].clone())
    refused(unpack_bits, device, "bits", bits=bits[:-32].clone())
    refused(unpack_bits, device, "bits", bits=bits.long())


@each_masked
def test_mask_on_another_device(build, device):
    for name in ("bits", "rank"):
        refused(build, device, ELSEWHERE, **{name: mask(device)[name].to("meta")})


STEPS = [adamw, compact_adamw, sgd, compact_sgd]
each_step = pytest.mark.parametrize("build", STEPS, ids=lambda build: build.__name__)


@each_step
def test_bits_and_rank_come_together(build, device):
    refused(build, device, "rank", rank=None)
    refused(build, device, "bits", bits=None)


@each_step
@pytest.mark.parametrize("firsts", [
    [0, 1, 3, 4], [0, 1, 3, 4, 5, 6], [0, 1, 3, 4, 6], [-1, 1, 3, 4, 5], [0, 5, 3, 4, 5], [0, 1, 3, 4, 2**40],
], ids=str)  # fmt: skip
def test_first_blocks_outside_of_the_mask(firsts, build, device):
    """Too few, too many, past the end of the mask (entry 1 has two blocks), negative, huge."""
    refused(build, device, "first_blocks", first_blocks=firsts)


@pytest.mark.parametrize(("build", "name"), [
    (compact_adamw, "exp_avgs"), (compact_adamw, "masters"), (compact_sgd, "momentum_buffers"), (compact_sgd, "masters")
])  # fmt: skip
def test_state_of_another_mask(build, name, device):
    """Compact state is as long as the mask says: here nothing is selected in the first tensor."""
    if device.type == "cuda":
        pytest.skip("the rank directory is on the device, and reading it would wait for the device")
    bools = cases.random_bools(SHAPES, 1.0, device)
    bools[0].zero_()
    bits, rank = cases.packed(bools, device)
    full = [torch.zeros(numel, device=device) for numel in NUMELS]
    fitting = {other: [torch.zeros(0, device=device), *[tensor.clone() for tensor in full[1:]]]
               for other in LISTS[build][2:]}  # fmt: skip
    OPERATORS[build](**build(device) | fitting | {"bits": bits, "rank": rank})
    refused(build, device, rf"{name}\[0\]", **fitting | {name: full, "bits": bits, "rank": rank})


# -- scalars ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square_norms", "nonfinite"])
def test_statistics_per_tensor(name, device):
    value = accumulate(device)[name]
    wrongs = (value[:-1].clone(), torch.cat([value, value[:1]]), value.float(), value.repeat_interleave(2)[::2])
    for wrong in wrongs:
        refused(accumulate, device, name, **{name: wrong})


@each_step
@pytest.mark.parametrize("name", ["lr", "grad_scale", "found_inf"])
def test_scalar_tensors(name, build, device):
    wrongs = [torch.ones(2, device=device), torch.ones(0, device=device), torch.ones(1, device=device).long(),
              torch.ones(1, device=device).half()]  # fmt: skip
    if name != "lr":
        wrongs.append(torch.ones(1, device=device).double())
    for wrong in wrongs:
        refused(build, device, name, **{name: wrong})
    refused(build, device, ELSEWHERE, **{name: torch.ones(1, device="meta")})


def test_grad_scale_of_accumulate(device):
    for wrong in (torch.ones(2, device=device), torch.ones(0, device=device), torch.ones(1, device=device).double()):
        refused(accumulate, device, "grad_scale", grad_scale=wrong)


@each_step
def test_steps(build, device):
    for wrong in (torch.ones(2, device=device), torch.ones(0, device=device), torch.ones(1, device=device).double()):
        steps = build(device)["steps"]
        steps[3] = wrong
        refused(build, device, r"steps\[3\]", steps=steps)
    refused(build, device, "steps", steps=build(device)["steps"][:-1])
    steps = build(device)["steps"]
    refused(build, device, "overlap", steps=[steps[0]] * len(steps))


@pytest.mark.parametrize("build", [adamw, compact_adamw])
@pytest.mark.parametrize(("name", "value"), [
    ("beta1", 1.0), ("beta1", -0.1), ("beta1", math.nan), ("beta2", 1.0), ("beta2", -1e-9), ("beta2", math.nan),
    ("eps", -1e-8), ("eps", math.nan),
])  # fmt: skip
def test_adamw_constants(name, value, build, device):
    refused(build, device, name, **{name: value})


def test_sgd_constants(device):
    refused(sgd, device, "nesterov", nesterov=True, momentum=0.0, momentum_buffers=[])
    refused(sgd, device, "nesterov", nesterov=True, dampening=0.1)
    refused(sgd, device, "momentum_buffers", momentum_buffers=[])
    refused(sgd, device, "momentum_buffers", momentum=0.0)


def test_stochastic_rounding_is_for_bfloat16_without_masters(device):
    refused(adamw, device, "stochastic_rounding", stochastic_rounding=True)
    refused(sgd, device, "stochastic_rounding", stochastic_rounding=True)
    for build in (adamw, sgd):
        lists = {name: build(device)[name] for name in ("params", "grads")}
        for tensors in lists.values():
            tensors[3] = tensors[3].half()
        refused(build, device, r"params\[3\]", **lists, masters=None, stochastic_rounding=True)


# -- selection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, sum(NUMELS) + 1, 2**62, -(2**62)])
def test_k_out_of_range(k, device):
    refused(select, device, r"\bk\b", k=k)


@pytest.mark.parametrize(("build", "name"), [(count_keys, "first"), (count_equal, "key"), (select_above, "key")])
def test_keys_out_of_range(build, name, device):
    for key in (-1, 2**32, 2**62, -(2**62)):
        refused(build, device, rf"\b{name}\b", **{name: key})


def test_range_of_keys(device):
    for bits in (-1, 33, 2**40):
        refused(count_keys, device, r"\bbits\b", bits=bits)
    for first, bits in ((1, 1), (1 << 31, 32), (3 << 29, 30)):
        refused(count_keys, device, r"\bfirst\b", first=first, bits=bits)


@pytest.mark.parametrize(("build", "name"), [(count_keys, "counts"), (count_equal, "counts"), (select_above, "ties")])
def test_counts(build, name, device):
    value = build(device)[name]
    wrongs = (value[:-1].clone(), torch.cat([value, value[:1]]), value.double(), value.repeat_interleave(2)[::2])
    for wrong in wrongs:
        refused(build, device, name, **{name: wrong})
    refused(build, device, ELSEWHERE, **{name: value.to("meta")})


@pytest.mark.parametrize("build", [select, select_segments, count_keys, count_equal, select_above, unit_scores])
def test_criteria(build, device):
    refused(build, device, "criterion", criterion="nonsense")
    refused(build, device, "criterion", criterion="")
    refused(build, device, "criterion", divisor_criterion="nonsense")
    refused(build, device, r"\bb\b", b=None)
    refused(build, device, r"\bb\b", criterion="magnitude")
    refused(build, device, r"\bb\b", criterion="value")
    refused(build, device, r"\bc\b", c=None)
    refused(build, device, r"\bd\b", d=None)
    refused(build, device, r"\bd\b", divisor_criterion="magnitude")
    refused(build, device, r"\bc\b|divisor_criterion", divisor_criterion=None, d=None)


def test_scores_that_make_no_sense(device):
    """Refused when the score is made, before any operator."""
    a, b = ([torch.ones(3, device=device), torch.ones(2, device=device)] for _ in range(2))
    good = Score("difference", a, b)
    for message, make in {
        "criterion='nonsense': expected one of value, magnitude": lambda: Score("nonsense", a),
        "'magnitude' reads one list: b": lambda: Score("magnitude", a, b),
        "'value' reads one list: b": lambda: Score("value", a, b),
        "'difference' compares two lists: b is missing": lambda: Score("difference", a),
        "b has 1 tensors, expected 2": lambda: Score("difference", a, b[:1]),
        r"divisor\.a has 1 tensors, expected 2": lambda: Score("value", a, divisor=Score("value", b[:1])),
        "cannot have a divisor": lambda: Score("value", a, divisor=Score("value", a, divisor=good)),
    }.items():
        with pytest.raises(ValueError, match=message):
            make()
    bits, rank = layout.empty_mask([3, 2], device)
    with pytest.raises(RuntimeError, match="criterion"):
        ops.select_(bits, rank, 1, Score("cosine", a, b))


@pytest.mark.parametrize(("change", "message"), [
    ({"units": [1, 7, 1, 1, 4]}, r"units\[1\] is 7, which does not divide 1030 elements"),
    ({"units": [1, 0, 1, 1, 4]}, r"units\[1\]"),
    ({"units": [1, -103, 1, 1, 4]}, r"units\[1\]"),
    ({"units": [1, 103, 1, 1]}, r"units has 4 entries, expected 5"),
    ({"ks": [3, 4, 9, 9, 2, 1]}, r"ks has 6 entries, expected 5"),
    ({"groups": [1, 2, 3]}, r"groups has 3 entries, expected 5"),
    ({"ks": [3, 11, 9, 9, 2]}, r"ks\[1\] is 11, expected 0 to 10, the elements of a segment"),
    ({"ks": [-1, 4, 9, 9, 2]}, r"ks\[0\] is -1"),
    ({"ks": [3, 4, 53, 53, 2]}, r"ks\[2\] is 53, expected 0 to 52"),
    ({"ks": [2**62, 4, 9, 9, 2]}, r"ks\[0\]"),
    ({"ks": [3, 4, 9, 8, 2]}, r"ks\[3\] is 8, expected 9"),
    ({"groups": [5, 5, 7, 7, 8], "ks": [3, 3, 9, 9, 2]}, r"units\[1\] is 103, expected 1 in group 5"),
])  # fmt: skip
def test_segments_that_make_no_sense(change, message, device):
    refused(select_segments, device, message, **change)


def test_units_must_divide(device):
    for units in (7, 0, 2000):
        out = unit_scores(device)["out"]
        out[1] = torch.zeros(units, device=device)
        refused(unit_scores, device, r"out\[1\]", out=out)


def test_expanded_units_must_divide(device):
    for units in (7, 0, -5, 2000):
        refused(expand_units, device, r"units\[1\]", units=[5, units, 3, 40, 1])
    refused(expand_units, device, "units", units=[5, 10, 3, 40])
    refused(expand_units, device, r"numels\[0\]", numels=[-5, *NUMELS[1:]])
    refused(expand_units, device, "unit_bits", unit_bits=torch.zeros(3, dtype=torch.int32, device=device))
    refused(expand_units, device, "unit_bits", unit_bits=expand_units(device)["unit_bits"].long())


def test_huge_sizes_do_not_overflow(device):
    """Sizes whose number of blocks or words exceeds 64 bits if multiplied carelessly."""
    refused(expand_units, device, r"numels\[0\]", numels=[2**62] * 5, units=[1] * 5)
    refused(expand_units, device, r"numels\[0\]", numels=[2**63 - 1] * 5, units=[1] * 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_mixed_devices():
    cpu = torch.device("cpu")
    for name in LISTS[accumulate]:
        values = accumulate(cpu)[name]
        values[1] = values[1].cuda()
        refused(accumulate, cpu, rf"{name}\[\d\]", **{name: values})


def test_empty_lists_are_fine(device):
    square_norms, nonfinite = torch.zeros(0, dtype=torch.float64, device=device), torch.zeros(0, device=device).long()
    ops.accumulate_([], [], [], square_norms, nonfinite)
    bits, rank = layout.empty_mask([], device)
    empty = Score("value", [])
    ops.select_(bits, rank, 0, empty)
    ops.select_segments_(bits, rank, [], [], empty)
    counts = torch.zeros(2049, dtype=torch.int64, device=device)
    ops.count_keys_(counts, 0, 32, empty)
    ops.count_equal_(nonfinite, 0, empty)
    ops.select_above_(bits, rank, 0, nonfinite, empty)
    assert not counts.any()
    ops.pack_bits_(bits, rank, [])
    ops.unpack_bits_([], bits)
    ops.unit_scores_([], empty)
    ops.expand_units_(bits, rank, bits.clone(), [], [])
    lr = torch.ones(1, device=device)
    ops.masked_adamw_([], [], [], [], [], lr=lr, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0)
    ops.masked_sgd_([], [], [], [], lr=lr, momentum=0.0, weight_decay=0.0)
    assert rank.tolist() == [0]


@pytest.mark.parametrize("build", [adamw, sgd])
@pytest.mark.skipif("config.getoption('--device') == 'cuda'", reason="reading the mask would wait for the device")
def test_bits_past_the_end(build, device):
    """Such a mask would select what is not there; one bit is enough, in the last word or in a later one."""
    for bit in (NUMELS[0], 1023):
        changed = mask(device)
        changed["bits"][bit // 32] |= 1 << (bit % 32) if bit % 32 < 31 else -(1 << 31)
        ops.rank_(changed["rank"], changed["bits"])
        refused(build, device, r"params\[0\] has set bits past its end", **changed)
