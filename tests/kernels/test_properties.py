"""Properties that hold for any list of tensors, any mask and any setting, searched by hypothesis."""

import math

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from aimfair.selective import layout, ops, reference
from aimfair.selective.score import Score

from . import cases

examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

numels = st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 2048]), st.integers(0, 5000))
shape_lists = st.lists(numels.map(lambda numel: (numel,)), max_size=7)
densities = st.one_of(st.sampled_from([0.0, -1.0, 1.0]), st.floats(0.0, 1.0))
dtypes = st.sampled_from(cases.DTYPES)
offsets = st.integers(0, 17)
seeds = st.integers(0, 2**32)
fractions = st.floats(0.0, 0.999)
rates = st.one_of(st.just(0.0), st.floats(1e-8, 10.0))
decays = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))

adamw_options = st.fixed_dictionaries({
    "lr": rates, "beta1": fractions, "beta2": fractions, "eps": st.floats(1e-12, 1.0), "weight_decay": decays,
    "amsgrad": st.booleans(), "maximize": st.booleans(),
})  # fmt: skip
sgd_options = st.fixed_dictionaries({
    "lr": rates, "momentum": st.one_of(st.just(0.0), fractions), "weight_decay": decays, "maximize": st.booleans(),
})  # fmt: skip
rounding_options = st.sampled_from([{}, {"masters": True}, {"stochastic_rounding": True, "seed": 2**63 - 1}])


def supported(dtype: torch.dtype, options: dict) -> dict:
    """Random rounding is for bfloat16."""
    return {} if dtype == torch.float16 and "stochastic_rounding" in options else options


@examples
@given(shape_lists, densities, dtypes, offsets, st.booleans(), adamw_options, rounding_options, seeds)
def test_adamw_equals_reference(device, shapes, density, dtype, offset, compact, options, rounding, seed):
    torch.manual_seed(seed)
    bools = cases.random_bools(shapes, density, device)
    options = options | supported(dtype, rounding)
    inputs = cases.adamw_inputs(shapes, dtype, device, bools, compact=compact, offset=offset, **options)
    cases.assert_matches_reference(ops.masked_adamw_, reference.masked_adamw_, inputs, calls=2)


@examples
@given(shape_lists, densities, dtypes, offsets, st.booleans(), sgd_options, rounding_options, st.data(), seeds)
def test_sgd_equals_reference(device, shapes, density, dtype, offset, compact, options, rounding, data, seed):
    torch.manual_seed(seed)
    if options["momentum"]:
        nesterov = data.draw(st.booleans())
        options = options | {"nesterov": nesterov, "dampening": 0.0 if nesterov else data.draw(fractions)}
    bools = cases.random_bools(shapes, density, device)
    options = options | supported(dtype, rounding)
    inputs = cases.sgd_inputs(shapes, dtype, device, bools, compact=compact, offset=offset, **options)
    cases.assert_matches_reference(ops.masked_sgd_, reference.masked_sgd_, inputs, calls=2)


@examples
@given(shape_lists, dtypes, adamw_options, seeds)
def test_unselected_elements_change_no_bit(device, shapes, dtype, options, seed):
    torch.manual_seed(seed)
    bools = cases.random_bools(shapes, 0.5, device)
    inputs = cases.adamw_inputs(shapes, dtype, device, bools, **options)
    before = cases.clone(inputs)
    for _ in range(2):
        ops.masked_adamw_(**inputs)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        for actual, expected, selected in zip(inputs.get(name, []), before.get(name, []), bools, strict=False):
            unselected = ~selected.flatten()
            cases.assert_same(actual.flatten()[unselected], expected.flatten()[unselected], name)


@examples
@given(shape_lists, densities, dtypes, adamw_options, seeds)
def test_compact_equals_dense(device, shapes, density, dtype, options, seed):
    torch.manual_seed(seed)
    bools = cases.random_bools(shapes, density, device)
    dense = cases.adamw_inputs(shapes, dtype, device, bools, **options)
    compact = cases.clone(dense) | {"compact": True}
    states = [name for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs") if name in dense]
    for name in states:
        compact[name] = [state[selected] for state, selected in zip(dense[name], bools, strict=True)]
    ops.masked_adamw_(**dense)
    ops.masked_adamw_(**compact)
    cases.assert_same(compact["params"], dense["params"], "params")
    for name in states:
        expected = [state[selected] for state, selected in zip(dense[name], bools, strict=True)]
        cases.assert_same(compact[name], expected, name)


@examples
@given(shape_lists, adamw_options, seeds)
def test_all_ones_equals_torch_adamw(device, shapes, options, seed):
    """Against float64, from fresh state, to fp32 rounding of the size of an update."""
    torch.manual_seed(seed)
    options = options | {"eps": max(options["eps"], 1e-8), "lr": min(options["lr"], 0.1)}
    bools = cases.random_bools(shapes, 1.0, device)
    inputs = cases.adamw_inputs(shapes, torch.float32, device, bools, **options)
    for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "steps"):
        for tensor in inputs.get(name, []):
            tensor.zero_()
    leaves = [param.double().requires_grad_() for param in inputs["params"]] or [torch.zeros(1, requires_grad=True)]
    betas = (options["beta1"], options["beta2"])
    settings_of_torch = {name: options[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
    optimizer = torch.optim.AdamW(leaves, betas=betas, **settings_of_torch)
    for _ in range(3):
        for leaf, grad in zip(leaves, inputs["grads"], strict=False):
            leaf.grad = grad.double()
        optimizer.step()
        ops.masked_adamw_(**inputs)
    for actual, exact in zip(inputs["params"], leaves, strict=False):
        torch.testing.assert_close(actual.double(), exact.detach(), rtol=5e-6, atol=5e-6)


scores = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126]),
)


@settings(examples, max_examples=200)
@given(st.lists(st.lists(scores, max_size=40), max_size=6), st.floats(0.0, 1.0), st.booleans())
def test_selection_is_a_stable_sort(device, values, fraction, largest):
    tensors = [torch.tensor(column, dtype=torch.float32, device=device) for column in values]
    flat = np.array([value for column in values for value in column], dtype=np.float32)
    k = round(fraction * len(flat))
    expected = np.zeros(len(flat), dtype=bool)
    expected[np.argsort(-flat if largest else flat, kind="stable")[:k]] = True
    assert np.array_equal(selected(tensors, k, largest), expected)


def selected(tensors: list[Tensor], k: int, largest: bool = True) -> np.ndarray:
    """The selection by value as one flat bool array."""
    sizes = [tensor.numel() for tensor in tensors]
    device = tensors[0].device if tensors else "cpu"
    bits, rank = layout.empty_mask(sizes, device)
    ops.select_(bits, rank, k, Score("value", tensors), largest=largest)
    assert int(rank[-1]) == k
    bools = [torch.empty(size, dtype=torch.bool, device=device) for size in sizes]
    ops.unpack_bits_(bools, bits)
    return np.concatenate([np.empty(0, dtype=bool), *[column.cpu().numpy() for column in bools]])


@examples
@given(shape_lists, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.booleans(), seeds)
def test_a_smaller_selection_lies_within_a_larger_one(device, shapes, first, second, largest, seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(shape, device=device).round(decimals=1) for shape in shapes]
    total = sum(tensor.numel() for tensor in tensors)
    small, large = sorted(round(fraction * total) for fraction in (first, second))
    assert not (selected(tensors, small, largest) & ~selected(tensors, large, largest)).any()


@examples
@given(shape_lists, densities, seeds)
def test_packing_round_trip(device, shapes, density, seed):
    torch.manual_seed(seed)
    bools = cases.random_bools(shapes, density, device)
    bits, rank = layout.empty_mask([tensor.numel() for tensor in bools], device)
    ops.pack_bits_(bits, rank, bools)
    unpacked = [torch.empty_like(tensor) for tensor in bools]
    ops.unpack_bits_(unpacked, bits)
    cases.assert_same(unpacked, bools)
    cases.assert_same([bits, rank], list(cases.packed(bools, device)))


@examples
@given(shape_lists, dtypes, offsets, st.booleans(), st.floats(-1e3, 1e3), seeds)
def test_accumulate_equals_reference(device, shapes, dtype, offset, zero_grads, weight, seed):
    torch.manual_seed(seed)
    inputs = cases.accumulate_inputs(shapes, dtype, device, offset, weight=weight, zero_grads=zero_grads)
    for grad in inputs["grads"]:
        cases.with_special(grad, share=0.02)
    expected = cases.clone(inputs, "cpu")
    reference.accumulate_(**expected)
    ops.accumulate_(**inputs)
    torch.testing.assert_close(inputs.pop("square_norms").cpu(), expected.pop("square_norms"), rtol=1e-6, atol=0)
    cases.assert_same(inputs, expected)
