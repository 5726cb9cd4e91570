"""masked_adamw_ and masked_sgd_: bits of the reference, agreement with torch.optim, and what must never change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aimfair.selective import layout, ops, reference

from . import cases
from .cases import DENSITIES, DTYPES, MIXED, OFFSETS, SHAPES, Inputs


class Optimizer(NamedTuple):
    """A kernel, its specification and the builder of its inputs."""

    kernel: Callable[..., None]
    specification: Callable[..., None]
    inputs: Callable[..., Inputs]
    states: tuple[str, ...]


ADAMW = Optimizer(
    ops.masked_adamw_, reference.masked_adamw_, cases.adamw_inputs, ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
)
SGD = Optimizer(ops.masked_sgd_, reference.masked_sgd_, cases.sgd_inputs, ("momentum_buffers",))

both = pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["adamw", "sgd"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
layouts = pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])


def check(optimizer: Optimizer, inputs: Inputs, calls: int = 2) -> None:
    cases.assert_matches_reference(optimizer.kernel, optimizer.specification, inputs, calls)


# -- bit for bit the reference ----------------------------------------------------------------------------------------


@both
@layouts
@dtypes
@pytest.mark.parametrize("density", [*DENSITIES.values(), None], ids=[*DENSITIES, "no_mask"])
def test_densities(density, dtype, compact, optimizer, device):
    bools = None if density is None else cases.random_bools(MIXED, density, device)
    check(optimizer, optimizer.inputs(MIXED, dtype, device, bools, compact=compact))


@both
@layouts
@pytest.mark.parametrize("row", [33, 512, 4096])
def test_rows(row, compact, optimizer, device):
    """Empty, full and mixed blocks side by side."""
    shapes = SHAPES["larger"]
    inputs = optimizer.inputs(shapes, torch.float32, device, cases.row_bools(shapes, row, device), compact=compact)
    check(optimizer, inputs)


@both
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_and_many_selected_elements_side_by_side(dtype, compact, optimizer, device):
    """Blocks with about 400 selected elements, up to which a CPU lists those of compact state."""
    shapes = [(50_000,), (1025,), (300, 77)]
    bools = cases.random_bools(shapes, 0.39, device)
    options = {"compact": compact, "stochastic_rounding": dtype == torch.bfloat16, "seed": 3}
    check(optimizer, optimizer.inputs(shapes, dtype, device, bools, **options))


@both
@layouts
@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(shapes, density, compact, optimizer, device):
    bools = cases.random_bools(shapes, density, device)
    check(optimizer, optimizer.inputs(shapes, torch.float32, device, bools, compact=compact), calls=1)


@both
@layouts
@dtypes
@pytest.mark.parametrize("offset", OFFSETS[1:])
def test_misaligned_storage(offset, dtype, compact, optimizer, device):
    for density in (0.3, 1.0):
        bools = cases.random_bools(MIXED, density, device)
        check(optimizer, optimizer.inputs(MIXED, dtype, device, bools, compact=compact, offset=offset))


ADAMW_OPTIONS: dict[str, dict[str, Any]] = {
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "masters": {"masters": True},
    "amsgrad_masters": {"amsgrad": True, "masters": True, "maximize": True},
    "no_decay": {"weight_decay": 0.0},
    "zero_betas": {"beta1": 0.0, "beta2": 0.0},
    "large_eps": {"eps": 1.0},
    "zero_lr": {"lr": 0.0},
    "large_lr": {"lr": 1e3},
}
SGD_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "weight_decay": 0.0},
    "decay_only": {"momentum": 0.0},
    "momentum_only": {"weight_decay": 0.0},
    "nesterov": {"nesterov": True},
    "dampening": {"dampening": 0.25},
    "maximize": {"maximize": True},
    "masters": {"masters": True},
    "nesterov_masters": {"nesterov": True, "masters": True, "maximize": True},
}
OPTIONS = [
    *((ADAMW, options) for options in ADAMW_OPTIONS.values()),
    *((SGD, options) for options in SGD_OPTIONS.values()),
]
OPTION_IDS = [f"adamw_{name}" for name in ADAMW_OPTIONS] + [f"sgd_{name}" for name in SGD_OPTIONS]


@layouts
@dtypes
@pytest.mark.parametrize(("optimizer", "options"), OPTIONS, ids=OPTION_IDS)
def test_options(optimizer, options, dtype, compact, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    check(optimizer, optimizer.inputs(MIXED, dtype, device, bools, compact=compact, **options), calls=3)


@both
@layouts
@dtypes
@pytest.mark.parametrize("scale", [1024.0, 3.0, 1e-3])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_grad_scale(maximize, scale, dtype, compact, optimizer, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    scaled = {"grad_scale": torch.tensor([scale], device=device), "maximize": maximize}
    check(optimizer, optimizer.inputs(MIXED, dtype, device, bools, compact=compact, **scaled))


@layouts
@dtypes
@pytest.mark.parametrize(("optimizer", "options"), OPTIONS, ids=OPTION_IDS)
def test_special_values(optimizer, options, dtype, compact, device):
    """NaN, infinities, denormals and signed zeros in gradients, weights and state."""
    bools = cases.random_bools(MIXED, 0.5, device)
    inputs = optimizer.inputs(MIXED, dtype, device, bools, compact=compact, **options)
    for name in ("params", "grads", "masters", *optimizer.states):
        for tensor in inputs.get(name, []):
            cases.with_special(tensor, share=0.05)
    check(optimizer, inputs)


@both
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_learning_rate_dtypes(precision, optimizer, device):
    """The scalars are computed in float64 from what the tensor holds: 0.1 differs between the two dtypes."""
    inputs = optimizer.inputs(MIXED, torch.float32, device, cases.random_bools(MIXED, 0.3, device))
    check(optimizer, inputs | {"lr": torch.tensor([0.1], dtype=precision, device=device)})


def test_late_steps(device):
    """Bias corrections close to and equal to 1, different in each tensor."""
    inputs = cases.adamw_inputs(SHAPES["block_edges"], torch.float32, device)
    for step, value in zip(inputs["steps"], (0.0, 9.0, 999.0, 20_000.0, 1e6, 2.0**24 - 4), strict=True):
        step.fill_(value)
    check(ADAMW, inputs | {"beta2": 0.9999})


@both
def test_subset_of_the_masks_tensors_in_another_order(optimizer, device):
    """A parameter group: its tensors find their blocks through first_blocks."""
    bools = cases.random_bools(MIXED, 0.3, device)
    bits, rank = cases.packed(bools, device)
    firsts = layout.first_blocks([selected.numel() for selected in bools])
    group = [5, 0, 7, 2]
    for compact in (False, True):
        part = [bools[t] for t in group]
        inputs = optimizer.inputs([MIXED[t] for t in group], torch.float32, device, part, compact=compact)
        whole_mask = {"bits": bits, "rank": rank, "first_blocks": [firsts[t] for t in group]}
        check(optimizer, inputs | whole_mask)


@both
def test_parameters_of_a_module(optimizer, device):
    """Leaves that require gradients, updated in place."""
    linear = torch.nn.Linear(40, 30, device=device)
    shapes = [tuple(parameter.shape) for parameter in linear.parameters()]
    inputs = optimizer.inputs(shapes, torch.float32, device, cases.random_bools(shapes, 0.3, device))
    for parameter, value in zip(linear.parameters(), inputs["params"], strict=True):
        parameter.data.copy_(value)
    expected = cases.clone(inputs, "cpu")
    optimizer.specification(**expected)
    optimizer.kernel(**inputs | {"params": list(linear.parameters())})
    cases.assert_same([parameter.detach() for parameter in linear.parameters()], expected["params"])


# -- what must not change ---------------------------------------------------------------------------------------------


@dtypes
@layouts
@pytest.mark.parametrize(("optimizer", "options"), OPTIONS, ids=OPTION_IDS)
def test_unselected_elements_keep_every_bit(optimizer, options, compact, dtype, device):
    """Under weight decay and momentum, over several steps; parameters and dense state hold NaN and denormals too."""
    bools = cases.random_bools(MIXED, 0.3, device)
    inputs = optimizer.inputs(MIXED, dtype, device, bools, compact=compact, **options)
    for param, selected in zip(inputs["params"], bools, strict=True):
        param.copy_(torch.where(selected, param, cases.with_special(param.clone(), share=0.3)))
    kept = ["params"] if compact else ["params", "masters", *optimizer.states]
    kept = [name for name in kept if inputs.get(name)]
    before = cases.clone({name: inputs[name] for name in kept})
    for _ in range(3):
        optimizer.kernel(**inputs)
    for name in kept:
        for t, selected in enumerate(bools):
            unselected = ~selected.flatten()
            actual, expected = inputs[name][t].flatten()[unselected], before[name][t].flatten()[unselected]
            integer = torch.int16 if actual.element_size() == 2 else torch.int32
            assert torch.equal(actual.view(integer), expected.view(integer)), f"{name}[{t}]"
    moved = sum(int((x != y).sum()) for x, y in zip(inputs["params"], before["params"], strict=True) if x.numel())
    assert moved > 0 or options.get("lr") == 0.0


@both
@layouts
@dtypes
def test_zero_mask_changes_no_bit(dtype, compact, optimizer, device):
    inputs = optimizer.inputs(MIXED, dtype, device, cases.random_bools(MIXED, 0.0, device), compact=compact)
    expected = cases.clone(inputs)
    for step in expected["steps"]:
        step += 1
    optimizer.kernel(**inputs)
    cases.assert_same(inputs, expected)


@both
@layouts
@pytest.mark.parametrize("found", [1.0, 7.0, float("inf"), float("nan")])
def test_found_inf_changes_nothing(found, compact, optimizer, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    found_inf = torch.tensor([found], device=device)
    inputs = optimizer.inputs(MIXED, torch.bfloat16, device, bools, compact=compact, masters=True, found_inf=found_inf)
    expected = cases.clone(inputs)
    optimizer.kernel(**inputs)
    cases.assert_same(inputs, expected)


@both
def test_found_inf_of_zero_is_a_step(optimizer, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    check(optimizer, optimizer.inputs(MIXED, torch.float32, device, bools, found_inf=torch.zeros(1, device=device)))


# -- dense and compact ------------------------------------------------------------------------------------------------


def compacted(inputs: Inputs, names: tuple[str, ...], bools: list[Tensor]) -> Inputs:
    """The same arguments with compact state."""
    result = cases.clone(inputs) | {"compact": True}
    for name in names:
        if inputs.get(name):
            result[name] = [
                cases.place(state.flatten()[selected.flatten()])
                for state, selected in zip(inputs[name], bools, strict=True)
            ]
    return result


@dtypes
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize(("optimizer", "options"), [
    (ADAMW, {"amsgrad": True, "masters": True}), (SGD, {"masters": True, "nesterov": True})
], ids=["adamw", "sgd"])  # fmt: skip
def test_compact_equals_dense(optimizer, options, density, dtype, device):
    bools = cases.random_bools(MIXED, density, device)
    names = (*optimizer.states, "masters")
    dense = optimizer.inputs(MIXED, dtype, device, bools, **options)
    compact = compacted(dense, names, bools)
    for _ in range(3):
        optimizer.kernel(**dense)
        optimizer.kernel(**compact)
    cases.assert_same(compact, compacted(dense, names, bools))


# -- torch.optim ------------------------------------------------------------------------------------------------------


def train_with_torch(params: list[Tensor], grads: list[list[Tensor]], cls: type, **options: Any) -> list[Tensor]:
    """Parameters after one torch.optim step per entry of ``grads``, in float64."""
    leaves = [param.double().requires_grad_() for param in params]
    optimizer = cls(leaves, **options)
    for step in grads:
        for leaf, grad in zip(leaves, step, strict=True):
            leaf.grad = grad.double()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


def assert_fp32_rounding(actual: list[Tensor], exact: list[Tensor]) -> None:
    for x, y in zip(actual, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=3e-6, atol=3e-7)


STEPS = 6


def training(device: torch.device) -> tuple[list[Tensor], list[list[Tensor]], dict[str, Any]]:
    """Start, gradients of each step, and an all-ones mask."""
    params = [torch.randn(shape, device=device) for shape in MIXED]
    grads = [[torch.randn(shape, device=device) for shape in MIXED] for _ in range(STEPS)]
    bits, rank = cases.packed(cases.random_bools(MIXED, 1.0, device), device)
    firsts = layout.first_blocks([param.numel() for param in params])[:-1]
    return params, grads, {"bits": bits, "rank": rank, "first_blocks": firsts}


@layouts
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
def test_all_ones_equals_torch_adamw(amsgrad, maximize, weight_decay, compact, device):
    params, grads, mask = training(device)
    exact = train_with_torch(
        params, grads, torch.optim.AdamW,
        lr=0.02, betas=(0.8, 0.95), weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
    )  # fmt: skip

    def zeros() -> list[Tensor]:
        return [torch.zeros(param.numel(), device=device) for param in params]

    exp_avgs, exp_avg_sqs, max_exp_avg_sqs = zeros(), zeros(), zeros() if amsgrad else None
    steps = [torch.zeros((), device=device) for _ in params]
    for step in grads:
        ops.masked_adamw_(
            params, step, exp_avgs, exp_avg_sqs, steps,
            lr=torch.tensor(0.02, device=device), beta1=0.8, beta2=0.95, eps=1e-8, weight_decay=weight_decay,
            max_exp_avg_sqs=max_exp_avg_sqs, maximize=maximize, compact=compact, **mask,
        )  # fmt: skip
    assert_fp32_rounding(params, exact)
    assert all(step.item() == STEPS for step in steps)


@layouts
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("options", [
    {"momentum": 0.0, "weight_decay": 0.0},
    {"momentum": 0.0, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.0},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
], ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()))  # fmt: skip
def test_all_ones_equals_torch_sgd(options, maximize, compact, device):
    params, grads, mask = training(device)
    exact = train_with_torch(params, grads, torch.optim.SGD, lr=0.02, maximize=maximize, **options)
    buffers = [torch.full((param.numel(),), 9.0, device=device) for param in params] if options["momentum"] else []
    steps = [torch.zeros((), device=device) for _ in params]
    for step in grads:
        ops.masked_sgd_(
            params, step, buffers, steps,
            lr=torch.tensor(0.02, device=device), maximize=maximize, compact=compact, **options, **mask,
        )  # fmt: skip
    assert_fp32_rounding(params, exact)


# -- low precision ----------------------------------------------------------------------------------------------------


@both
@layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_train_in_fp32(dtype, compact, optimizer, device):
    """With masters, the trajectory is that of fp32 parameters, and the parameter is its rounding."""
    bools = cases.random_bools(MIXED, 0.4, device)
    low = optimizer.inputs(MIXED, dtype, device, bools, compact=compact, masters=True)
    full = cases.clone({name: value for name, value in low.items() if name != "masters"})
    full["params"] = [param.float() for param in full["params"]]
    full["grads"] = [grad.float() for grad in full["grads"]]
    for _ in range(4):
        optimizer.kernel(**low)
        optimizer.kernel(**full)
    cases.assert_same(low["params"], [param.to(dtype) for param in full["params"]])
    selected = [param[mask].flatten() for param, mask in zip(full["params"], bools, strict=True)]
    masters = [
        master if compact else master[mask.flatten()] for master, mask in zip(low["masters"], bools, strict=True)
    ]
    cases.assert_same(masters, selected)


@both
def test_grad_scale_is_a_division(optimizer, device):
    """Gradients times a power of two with grad_scale, against plain gradients."""
    plain = optimizer.inputs(MIXED, torch.float32, device, cases.random_bools(MIXED, 0.4, device))
    scaled = cases.clone(plain) | {"grad_scale": torch.tensor(4096.0, device=device)}
    for grad in scaled["grads"]:
        grad *= 4096.0
    optimizer.kernel(**plain)
    optimizer.kernel(**scaled)
    for name in ("params", *optimizer.states):
        cases.assert_same(scaled.get(name, []), plain.get(name, []), name)
