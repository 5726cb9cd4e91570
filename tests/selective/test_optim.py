"""MaskedAdamW and MaskedSGD: torch's step on selected elements, no bit changed elsewhere, and what is refused."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective import ops
from aimfair.selective.launch import Operator
from aimfair.selective.masked_optimizer import MaskedOptimizer

from .models import (
    Toy,
    assert_unselected_unchanged,
    data_parallel,
    random_gradients,
    same_bits,
    set_gradients,
    toy,
    weights,
)

ADAMW = [
    {},
    {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3},
    {"amsgrad": True, "weight_decay": 0.0},
    {"maximize": True},
]
SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "dampening": 0.3},
    {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "momentum": 0.5, "maximize": True},
]
CASES = [(aimfair.MaskedAdamW, torch.optim.AdamW, options) for options in ADAMW] + [
    (aimfair.MaskedSGD, torch.optim.SGD, options) for options in SGD
]

every_case = pytest.mark.parametrize(("masked", "plain", "options"), CASES)
both = pytest.mark.parametrize("masked", [aimfair.MaskedAdamW, aimfair.MaskedSGD])
layouts = pytest.mark.parametrize("state", ["dense", "compact"])
GRANULARITIES = ["element", "row", "tensor"]


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


def options_of(masked: type[MaskedOptimizer]) -> dict[str, Any]:
    return {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9} if masked is aimfair.MaskedSGD else {"lr": 0.1}


def run(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    for step in gradients:
        set_gradients(model, step)
        optimizer.step()
    return weights(model)


def assert_same_weights(x: dict[str, Tensor], y: dict[str, Tensor]) -> None:
    for name in x:
        assert same_bits(x[name], y[name]), name


# -- what a step is ---------------------------------------------------------------------------------------------------


@every_case
@layouts
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_selected_elements_step_as_in_torch(model, masked, plain, options, state, granularity):
    twin, before = copy.deepcopy(model), weights(model)
    mask = aimfair.ParameterMask.random(model, 0.4, granularity=granularity)
    gradients = [random_gradients(model) for _ in range(4)]
    actual = run(masked(model.named_parameters(), mask, state=state, **options), model, gradients)
    expected = run(plain(twin.parameters(), **options), twin, gradients)
    selected = mask.to_bool()
    for name in actual:
        chosen = selected[name]
        torch.testing.assert_close(actual[name][chosen], expected[name][chosen], rtol=2e-6, atol=2e-6)
    assert_unselected_unchanged(model, before, selected)


@every_case
@pytest.mark.parametrize("mask", ["full", "none"])
def test_everything_selected_steps_as_in_torch(model, masked, plain, options, mask):
    twin = copy.deepcopy(model)
    gradients = [random_gradients(model) for _ in range(4)]
    full = aimfair.ParameterMask.full(model) if mask == "full" else None
    actual = run(masked(model.parameters(), full, **options), model, gradients)
    expected = run(plain(twin.parameters(), **options), twin, gradients)
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=2e-6, atol=2e-6)


@both
def test_nothing_selected_changes_nothing_and_keeps_no_state(model, masked):
    before = weights(model)
    optimizer = masked(model.named_parameters(), aimfair.ParameterMask.empty(model), **options_of(masked))
    run(optimizer, model, [random_gradients(model)])
    assert_same_weights(weights(model), before)
    assert not optimizer.state


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra", ["", "master_weights", "stochastic_rounding"])
def test_dense_and_compact_state_give_the_same_bits(device, masked, dtype, extra):
    if dtype == torch.float16 and extra == "stochastic_rounding":
        pytest.skip("stochastic rounding is for bfloat16")
    model = toy(device).to(dtype)
    twin, before = copy.deepcopy(model), weights(model)
    mask = aimfair.ParameterMask.random(model, 0.3)
    gradients = [random_gradients(model) for _ in range(3)]
    options = options_of(masked) | ({extra: True} if extra else {})
    dense = run(masked(model.named_parameters(), mask, state="dense", **options), model, gradients)
    compact = run(masked(twin.named_parameters(), mask, state="compact", **options), twin, gradients)
    assert_same_weights(dense, compact)
    assert_unselected_unchanged(model, before, mask.to_bool())


@layouts
def test_mixed_dtypes_and_masters(device, state):
    """Masters are kept where they help; float32 parameters step as without."""
    model = toy(device)
    model.body.to(torch.bfloat16)
    twin = copy.deepcopy(model).float()
    mask = aimfair.ParameterMask.random(model, 0.5)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=0.01, state=state, master_weights=True)
    reference = aimfair.MaskedAdamW(twin.named_parameters(), mask, lr=0.01, state=state)
    for _ in range(5):
        gradients = {name: g.bfloat16().float() for name, g in random_gradients(twin).items()}
        set_gradients(twin, gradients)
        set_gradients(model, {name: gradients[name].to(p.dtype) for name, p in model.named_parameters()})
        optimizer.step()
        reference.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        chosen = mask.bool_of(name)
        assert same_bits(p.detach()[chosen], q.detach().to(p.dtype)[chosen]), name
        assert ("master" in optimizer.state[p]) == (p.dtype == torch.bfloat16 and bool(chosen.any()))


def test_stochastic_rounding_follows_its_seed(device):
    start = toy(device).bfloat16()
    gradients = [random_gradients(start) for _ in range(2)]

    def trained(seed: int, mask: aimfair.ParameterMask | None = None) -> dict[str, Tensor]:
        model = copy.deepcopy(start)
        options = {"lr": 1e-4, "weight_decay": 0.0, "stochastic_rounding": True, "seed": seed}
        return run(aimfair.MaskedAdamW(model.named_parameters(), mask, **options), model, gradients)

    first = trained(1)
    assert_same_weights(first, trained(1))
    assert not same_bits(first["body.0.weight"], trained(2)["body.0.weight"])
    assert_same_weights(first, trained(1, aimfair.ParameterMask.full(start)))  # the numbers belong to the element


def test_stochastic_rounding_differs_between_equal_tensors_and_groups(device):
    parameters = [nn.Parameter(torch.ones(2000, device=device, dtype=torch.bfloat16)) for _ in range(4)]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:3]}]
    optimizer = aimfair.MaskedSGD(groups, lr=1e-3, stochastic_rounding=True)
    optimizer.add_param_group({"params": parameters[3:]})
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for x, y in itertools.combinations(parameters, 2):
        assert not torch.equal(x, y)


@both
def test_lr_as_a_tensor(model, device, masked):
    twin = copy.deepcopy(model)
    options = options_of(masked)
    gradients = [random_gradients(model) for _ in range(2)]
    mask = aimfair.ParameterMask.random(model, 0.4)
    number = run(masked(model.named_parameters(), mask, **options), model, gradients)
    rate = torch.tensor(options.pop("lr"), dtype=torch.float64, device=device)
    optimizer = masked(twin.named_parameters(), mask, lr=rate, **options)
    assert_same_weights(number, run(optimizer, twin, gradients))
    rate.zero_()
    before = weights(twin)
    if masked is aimfair.MaskedSGD:
        assert_same_weights(run(optimizer, twin, gradients), before)


def test_param_groups_have_their_own_options(model):
    twin, mask = copy.deepcopy(model), aimfair.ParameterMask.random(model, 0.5)
    decayed = [(name, p) for name, p in model.named_parameters() if p.dim() >= 2]
    others = [(name, p) for name, p in model.named_parameters() if p.dim() < 2]
    groups = [{"params": others, "weight_decay": 0.0, "lr": 0.02}, {"params": decayed, "betas": (0.5, 0.9)}]
    gradients = [random_gradients(model) for _ in range(3)]
    actual = run(aimfair.MaskedAdamW(groups, mask, lr=0.01, weight_decay=0.5), model, gradients)
    parameters = dict(twin.named_parameters())
    plain = [
        {**group, "params": [parameters[name] for name, _ in group["params"]]} for group in groups
    ]  # fmt: skip
    expected = run(torch.optim.AdamW(plain, lr=0.01, weight_decay=0.5), twin, gradients)
    for name, chosen in mask.to_bool().items():
        torch.testing.assert_close(actual[name][chosen], expected[name][chosen], rtol=2e-6, atol=2e-6)


def counted_operator(monkeypatch, masked: type[MaskedOptimizer]) -> list[str]:
    """What is called from now on, in order: on lists, the making of a plan, on a plan."""
    calls: list[str] = []
    operator = masked.operator

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return getattr(operator, name)(*arguments, **options)

        return call

    monkeypatch.setattr(masked, "operator", Operator(*map(counted, ("masked", "plan", "planned"))))
    return calls


def test_one_operator_call_per_group(model, monkeypatch):
    model.body.to(torch.bfloat16)
    calls = counted_operator(monkeypatch, aimfair.MaskedAdamW)
    named = list(model.named_parameters())
    optimizer = aimfair.MaskedAdamW([{"params": named[:5]}, {"params": named[5:]}], aimfair.ParameterMask.full(model))
    run(optimizer, model, [random_gradients(model)])
    assert calls == ["plan", "planned"] * 2


@both
def test_a_plan_is_made_again_for_other_state_and_not_for_other_gradients(masked, model, monkeypatch):
    calls = counted_operator(monkeypatch, masked)
    set_grads = ops.set_grads_
    monkeypatch.setattr(ops, "set_grads_", lambda *arguments: (calls.append("grads"), set_grads(*arguments)))
    optimizer = masked(model.named_parameters(), **options_of(masked))
    set_gradients(model, random_gradients(model))

    def steps(number: int) -> list[str]:
        calls.clear()
        for _ in range(number):
            optimizer.step()
        return calls

    assert steps(3) == ["plan", "planned", "planned", "planned"]
    parameter = next(p for p in model.parameters() if p.numel())
    kept = [parameter.grad]  # held, so that what comes in its place lies elsewhere
    parameter.grad = parameter.grad.clone()
    assert steps(2) == ["grads", "planned", "planned"]
    for name in ["step", *optimizer.moments]:
        if name in optimizer.state[parameter]:
            kept.append(optimizer.state[parameter][name])
            optimizer.state[parameter][name] = kept[-1].clone()
            assert steps(2) == ["plan", "planned", "planned"]
    optimizer.param_groups[0]["seed"] += 1
    assert steps(1) == ["planned"]
    optimizer.param_groups[0]["stochastic_rounding"] = True
    assert steps(2) == ["plan", "planned", "planned"]
    parameter.data = parameter.data.clone()
    assert steps(2) == ["plan", "planned", "planned"]
    optimizer.state[parameter] = dict(optimizer.state[parameter])
    assert steps(2) == ["plan", "planned", "planned"]


@both
@pytest.mark.parametrize("edit", ["delete", "reverse"])
def test_edited_groups_step_as_in_torch(edit, masked, device):
    """Code of others takes groups away, or puts them into another order."""
    plain = {aimfair.MaskedAdamW: torch.optim.AdamW, aimfair.MaskedSGD: torch.optim.SGD}[masked]
    final = []
    for optimizer_of in (masked, plain):
        parameters = [nn.Parameter(torch.arange(1.0, 4.0, device=device)) for _ in range(3)]
        groups = [{"params": [parameter], "lr": 0.1 * number} for number, parameter in enumerate(parameters, 1)]
        optimizer = optimizer_of(groups)
        for step in range(4):
            if step == 2:
                optimizer.param_groups.pop(0) if edit == "delete" else optimizer.param_groups.reverse()
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, step + 1.0)
            optimizer.step()
        final.append(torch.stack([parameter.detach() for parameter in parameters]))
    torch.testing.assert_close(*final, rtol=1e-6, atol=1e-6)


@both
def test_parameter_put_into_a_group_is_refused(masked, device):
    weight, other = (nn.Parameter(torch.ones(3, device=device)) for _ in range(2))
    optimizer = masked([weight])
    weight.grad, other.grad = torch.ones(3, device=device), torch.ones(3, device=device)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(other)
    with pytest.raises(
        ValueError, match="parameter 1 of param group 0 requires a gradient and has no place in the mask"
    ):
        optimizer.step()


@both
def test_replaced_state_is_that_of_the_next_step(masked, model):
    optimizer = masked(model.named_parameters(), **options_of(masked))
    set_gradients(model, random_gradients(model))
    for _ in range(3):
        optimizer.step()
    parameter = next(p for p in model.parameters() if p.numel())
    optimizer.state[parameter] = {}
    optimizer.step()
    assert optimizer.state[parameter]["step"] == 1
    del optimizer.state[parameter]
    optimizer.step()
    optimizer.step()
    assert optimizer.state[parameter]["step"] == 2


@both
def test_parameter_that_became_shorter_is_refused(masked, device):
    weight = nn.Parameter(torch.ones(20, device=device))
    memory = weight.data
    optimizer = masked([("weight", weight)], **options_of(masked))
    gradient = torch.ones(20, device=device)
    weight.grad = gradient
    for _ in range(3):
        optimizer.step()
    before = memory.clone()
    weight.grad = None
    weight.data = memory[:10]
    weight.grad = gradient[:10]
    with pytest.raises(RuntimeError, match=r"has 20 elements, expected 10 \(parameter 'weight'\)"):
        optimizer.step()
    assert torch.equal(memory, before)


@both
def test_sparse_gradient_at_a_later_step_is_refused_by_name(masked, device):
    weight = nn.Parameter(torch.ones(4, 3, device=device))
    optimizer = masked([("weight", weight)], **options_of(masked))
    weight.grad = torch.ones(4, 3, device=device)
    for _ in range(2):
        optimizer.step()
    weight.grad = torch.ones(4, 3, device=device).to_sparse()
    with pytest.raises(TypeError, match=r"the gradient of 'weight' has layout torch\.sparse_coo"):
        optimizer.step()


@both
def test_autograd_sees_the_change(masked, device):
    weight = nn.Parameter(torch.ones(3, device=device))
    optimizer = masked([weight], **options_of(masked))
    weight.grad = torch.ones(3, device=device)
    for _ in range(3):  # on lists and on a plan
        loss = weight.square().sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_gradient_in_another_order_of_memory_at_the_same_place_is_refused(device):
    weight = nn.Parameter(torch.ones(2, 3, 4, 4, device=device))
    optimizer = aimfair.MaskedAdamW([("weight", weight)])
    memory = torch.ones(weight.numel(), device=device)
    weight.grad = memory.view(weight.shape)
    optimizer.step()
    weight.grad = memory.view(2, 4, 4, 3).permute(0, 3, 1, 2)
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"grads\[0\] is not contiguous \(parameter 'weight'\)"):
        optimizer.step()
    assert torch.equal(weight, before)


def test_gradient_in_the_memory_of_a_parameter_is_refused_at_a_later_step(device):
    weight = nn.Parameter(torch.ones(3, device=device))
    optimizer = aimfair.MaskedAdamW([("weight", weight)])
    weight.grad = torch.ones(3, device=device)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = weight.detach()
    with pytest.raises(RuntimeError, match=r"overlaps the memory of"):
        optimizer.step()
    assert torch.equal(weight, before)


# -- from one step to the next ----------------------------------------------------------------------------------------


@both
@layouts
def test_parameters_without_a_gradient_are_skipped(model, masked, state):
    """Sets of gradients that change from step to step give what each parameter stepped alone gives."""
    twin, mask = copy.deepcopy(model), aimfair.ParameterMask.random(model, 0.5)
    together = masked(model.named_parameters(), mask, state=state, **options_of(masked))
    alone = {n: masked([(n, p)], mask, state=state, **options_of(masked)) for n, p in twin.named_parameters()}
    names = list(alone)
    for present in (names, names[3:], names[3:], names[::2], names, []):
        gradients = {name: g for name, g in random_gradients(model).items() if name in present}
        set_gradients(model, gradients)
        set_gradients(twin, gradients)
        together.step()
        for optimizer in alone.values():
            optimizer.step()
        assert_same_weights(weights(model), weights(twin))


def test_state_replaced_between_steps_is_used(model):
    optimizer = aimfair.MaskedSGD(model.named_parameters(), lr=1.0, momentum=0.5)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    run(optimizer, model, [random_gradients(model), zero])
    before = model.head.bias.detach().clone()
    optimizer.state[model.head.bias]["momentum_buffer"] = torch.full_like(model.head.bias, 8.0)
    run(optimizer, model, [zero])
    assert torch.equal(model.head.bias, before - 4.0)
    optimizer.state = type(optimizer.state)(dict)  # momentum forgotten
    before = weights(model)
    run(optimizer, model, [zero])
    assert_same_weights(weights(model), before)


def test_options_changed_between_steps_are_used(model):
    twin = copy.deepcopy(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.1)
    for changes in ({}, {"lr": 0.01}, {"weight_decay": 0.4, "maximize": True}, {"lr": 0.02, "betas": (0.7, 0.9)}):
        optimizer.param_groups[0].update(changes)
        reference.param_groups[0].update(changes)
        gradients = [random_gradients(model)]
        expected = run(reference, twin, gradients)
        for name, value in run(optimizer, model, gradients).items():
            torch.testing.assert_close(value, expected[name], rtol=2e-6, atol=2e-6)
    optimizer.param_groups[0]["amsgrad"] = True
    run(optimizer, model, [random_gradients(model)])
    assert "max_exp_avg_sq" in optimizer.state[model.head.bias]


# -- matching ---------------------------------------------------------------------------------------------------------


@both
def test_names_match_in_any_order_and_number(model, masked):
    """Two optimizers over halves of the model in reverse order step as one over all of it."""
    twin, mask = copy.deepcopy(model), aimfair.ParameterMask.random(model, 0.5)
    gradients = [random_gradients(model) for _ in range(2)]
    whole = run(masked(model.named_parameters(), mask, **options_of(masked)), model, gradients)
    backwards = list(twin.named_parameters())[::-1]
    for part in (backwards[:6], backwards[6:]):
        half = masked(part, mask, **options_of(masked))
        run(half, twin, gradients)
    assert_same_weights(whole, weights(twin))


def test_plain_parameters_match_by_order(model):
    twin, mask = copy.deepcopy(model), aimfair.ParameterMask.random(model, 0.5)
    gradients = [random_gradients(model)]
    named = run(aimfair.MaskedAdamW(model.named_parameters(), mask), model, gradients)
    assert_same_weights(named, run(aimfair.MaskedAdamW(twin.parameters(), mask), twin, gradients))


def test_frozen_parameters_are_passed_over(model):
    """Before the mask was made they are not in it; freezing by the mask leaves all the others to the optimizer."""
    model.conv.requires_grad_(False)
    mask = aimfair.ParameterMask.from_names(model, ["head.weight", "body.0.bias"])
    for parameters in (model.parameters(), model.named_parameters()):
        aimfair.MaskedAdamW(parameters, mask)
    mask.freeze_unselected(model)
    before = weights(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=0.1)
    model(torch.randn(4, 3, 5, 5, device=model.scale.device)).square().sum().backward()
    optimizer.step()
    assert_unselected_unchanged(model, before, mask.to_bool())
    assert {id(p) for p in optimizer.state} == {id(model.head.weight), id(model.body[0].bias)}


def test_names_of_compiled_and_wrapped_models_match(model):
    mask = aimfair.ParameterMask.random(model, 0.5)
    compiled = torch.compile(model, backend="eager")
    for wrapped in (compiled, data_parallel(model), data_parallel(compiled)):
        before = weights(model)
        run(aimfair.MaskedAdamW(wrapped.named_parameters(), mask, lr=0.1), model, [random_gradients(model)])
        assert_unselected_unchanged(model, before, mask.to_bool())
    own = aimfair.ParameterMask.full(nn.ModuleDict({"module": nn.Linear(2, 2)}))
    aimfair.MaskedAdamW(nn.ModuleDict({"module": nn.Linear(2, 2)}).named_parameters(), own)


def test_another_model_is_refused(model):
    mask = aimfair.ParameterMask.full(model)
    with pytest.raises(
        ValueError, match=r"2 parameters do not match the mask's 13 .*'scale' is \(\), found \(40, 33\)"
    ):
        aimfair.MaskedAdamW(nn.Linear(33, 40).parameters(), mask)
    with pytest.raises(ValueError, match=r"12 parameters do not match the mask's 13.*named_parameters"):
        aimfair.MaskedAdamW(list(model.parameters())[:-1], mask)
    with pytest.raises(ValueError, match=r"not in the mask: weight, bias; freeze them.*None"):
        aimfair.MaskedAdamW(nn.Linear(33, 40).named_parameters(), mask)
    with pytest.raises(ValueError, match=r"'head\.bias' has shape \(7,\), in the mask it is \(5,\)"):
        aimfair.MaskedAdamW([("head.bias", nn.Parameter(torch.ones(7)))], mask)


# -- what is refused --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("change", "kind", "message"), [
    (lambda m: m.double(), TypeError, r"'scale' is torch\.float64"),
    (lambda m: m.to(memory_format=torch.channels_last), ValueError, r"'conv\.weight' is not contig.*contiguous_format"),
])  # fmt: skip
def test_parameters_the_kernels_cannot_tune(model, masked, change, kind, message):
    mask = aimfair.ParameterMask.full(model)
    change(model)
    with pytest.raises(kind, match=message):
        masked(model.named_parameters(), mask)


@both
def test_bad_gradients_are_refused_by_name_and_nothing_moves(model, masked):
    before = weights(model)
    optimizer = masked(model.named_parameters(), aimfair.ParameterMask.full(model), **options_of(masked))
    gradients = random_gradients(model)
    set_gradients(model, gradients)
    model.body[0].weight.grad = gradients["body.0.weight"].t().contiguous().t()
    with pytest.raises(RuntimeError, match=r"grads\[\d+\] is not contiguous \(parameter 'body\.0\.weight'\)"):
        optimizer.step()
    model.body[0].weight.grad = gradients["body.0.weight"].to_sparse()
    with pytest.raises((RuntimeError, TypeError), match=r"body\.0\.weight"):
        masked(model.named_parameters(), **options_of(masked)).step()
    assert_same_weights(weights(model), before)


def test_stochastic_rounding_of_float16_is_refused_by_name(device):
    model = toy(device).half()
    optimizer = aimfair.MaskedSGD(model.named_parameters(), lr=0.1, stochastic_rounding=True)
    with pytest.raises(RuntimeError, match=r"float16.*\(parameter 'scale'\)"):
        run(optimizer, model, [random_gradients(model)])
