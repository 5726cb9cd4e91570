"""Optimizer state: its size, its round trips across layouts and with torch's optimizers, copies and pickles."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective.masked_optimizer import MaskedOptimizer

from .models import Toy, random_gradients, same_bits, set_gradients, toy, weights

ADAMW = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}
SGD = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "dampening": 0.2}
KINDS = {
    "adamw": (aimfair.MaskedAdamW, ADAMW),
    "adamw-masters": (aimfair.MaskedAdamW, ADAMW | {"master_weights": True}),
    "adamw-stochastic": (aimfair.MaskedAdamW, ADAMW | {"stochastic_rounding": True, "seed": 7}),
    "adamw-16bit": (aimfair.MaskedAdamW, ADAMW | {"moment_bits": 16, "seed": 7}),
    "adamw-8bit": (aimfair.MaskedAdamW, ADAMW | {"moment_bits": 8, "seed": 7, "amsgrad": False}),
    "sgd": (aimfair.MaskedSGD, SGD),
    "sgd-8bit": (aimfair.MaskedSGD, SGD | {"moment_bits": 8}),
    "sgd-masters": (aimfair.MaskedSGD, SGD | {"master_weights": True}),
    "sgd-plain": (aimfair.MaskedSGD, {"lr": 0.05}),
}

every_kind = pytest.mark.parametrize(("masked", "options"), KINDS.values(), ids=KINDS)
LAYOUTS = ["dense", "compact"]


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


@pytest.fixture
def mask(model) -> aimfair.ParameterMask:
    """Every third tensor empty, the others at densities from a few elements to all."""
    bools = {
        name: torch.rand_like(p.float()) < (0.0, 0.3, 1.0)[t % 3]
        for t, (name, p) in enumerate(model.named_parameters())
    }
    return aimfair.ParameterMask.from_bool(bools)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: list[dict[str, Tensor]]) -> None:
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for values in gradients:
        set_gradients(model, {name: value.to(dtypes[name]) for name, value in values.items()})
        optimizer.step()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    expected = weights(other)
    for name, value in weights(model).items():
        assert same_bits(value, expected[name]), name


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_of_state(model, mask, state, dtype):
    model = model.to(dtype)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, state=state, master_weights=True, amsgrad=True)
    assert not optimizer.state
    step(optimizer, model, [random_gradients(model)])
    names = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"} | ({"master"} if dtype == torch.bfloat16 else set())
    for (name, parameter), nnz in zip(model.named_parameters(), mask.nnz_per_tensor, strict=True):
        entry = optimizer.state.get(parameter)
        assert (entry is not None) == (nnz > 0), name
        if entry is None:
            continue
        assert entry.keys() == names | {"step"}
        assert torch.equal(entry["step"].cpu(), torch.tensor(1.0))
        for key in names:
            assert entry[key].shape == (parameter.shape if state == "dense" else (nnz,))
            assert (entry[key].dtype, entry[key].device) == (torch.float32, parameter.device)


def test_sgd_without_momentum_keeps_steps_only(model, mask):
    optimizer = aimfair.MaskedSGD(model.named_parameters(), mask, lr=0.1)
    step(optimizer, model, [random_gradients(model)])
    assert {key for entry in optimizer.state.values() for key in entry} == {"step"}


def test_state_of_unselected_elements_stays_zero(model, mask):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask)
    step(optimizer, model, [random_gradients(model)] * 2)
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            if parameter in optimizer.state:
                values = optimizer.state[parameter][key]
                assert not values[~mask.bool_of(name)].any()
                assert values[mask.bool_of(name)].all()


# -- round trips ------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", LAYOUTS)
@pytest.mark.parametrize("loaded", LAYOUTS)
def test_training_goes_on_bit_for_bit(model, mask, masked, options, dtype, saved, loaded):
    model = model.to(dtype)
    gradients = [random_gradients(model) for _ in range(5)]
    optimizer = masked(model.named_parameters(), mask, state=saved, **options)
    step(optimizer, model, gradients[:3])
    twin = copy.deepcopy(model)
    # Other options than saved: the state brings its own.
    resumed = masked(twin.named_parameters(), mask, state=loaded, **options | {"lr": 9.0})
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == 0.05
    step(optimizer, model, gradients[3:])
    step(resumed, twin, gradients[3:])
    assert_same(model, twin)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert (parameter in optimizer.state) == (other in resumed.state)
        if parameter in optimizer.state:
            assert optimizer.state[parameter].keys() == resumed.state[other].keys()


@every_kind
def test_dense_compact_dense_keeps_the_selected_state(model, mask, masked, options):
    model = model.bfloat16()
    dense = masked(model.named_parameters(), mask, **options)
    step(dense, model, [random_gradients(model)] * 2)
    compact = masked(model.named_parameters(), mask, state="compact", **options)
    compact.load_state_dict(dense.state_dict())
    again = masked(model.named_parameters(), mask, **options)
    again.load_state_dict(compact.state_dict())
    for parameter, entry in dense.state.items():
        for key, value in entry.items():
            assert same_bits(again.state[parameter][key], value), key


@pytest.mark.parametrize("state", LAYOUTS)
@pytest.mark.parametrize(("masked", "plain", "options"), [
    (aimfair.MaskedAdamW, torch.optim.AdamW, {"lr": 0.05}),
    (aimfair.MaskedAdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
    (aimfair.MaskedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    (aimfair.MaskedSGD, torch.optim.SGD, {"lr": 0.05}),
])  # fmt: skip
def test_state_of_torch_is_taken(model, mask, masked, plain, options, state):
    gradients = [random_gradients(model) for _ in range(4)]
    torch_optimizer = plain(model.parameters(), **options)
    step(torch_optimizer, model, gradients[:2])
    twin = copy.deepcopy(model)
    before = weights(twin)
    optimizer = masked(twin.parameters(), mask, state=state, lr=1.0)
    optimizer.load_state_dict(through_a_file(torch_optimizer.state_dict()))
    step(optimizer, twin, gradients[2:])
    step(torch_optimizer, model, gradients[2:])
    for (name, value), expected in zip(weights(twin).items(), model.parameters(), strict=True):
        chosen = mask.bool_of(name)
        torch.testing.assert_close(value[chosen], expected.detach()[chosen], rtol=2e-6, atol=2e-6)
        assert same_bits(value[~chosen], before[name][~chosen])


def test_dense_state_is_taken_by_torch(model):
    mask = aimfair.ParameterMask.full(model)
    gradients = [random_gradients(model) for _ in range(4)]
    optimizer = aimfair.MaskedAdamW(model.parameters(), mask, lr=0.05)
    step(optimizer, model, gradients[:2])
    twin = copy.deepcopy(model)
    torch_optimizer = torch.optim.AdamW(twin.parameters(), lr=1.0)
    torch_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    step(optimizer, model, gradients[2:])
    step(torch_optimizer, twin, gradients[2:])
    for value, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


def test_float32_state_of_bfloat16_weights_is_kept(model, mask):
    model = model.bfloat16()
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask)
    step(optimizer, model, [random_gradients(model)])
    other = aimfair.MaskedAdamW(model.named_parameters(), mask)
    other.load_state_dict(optimizer.state_dict())
    for parameter, entry in optimizer.state.items():
        assert other.state[parameter]["exp_avg"].dtype == torch.float32
        assert same_bits(other.state[parameter]["exp_avg"], entry["exp_avg"])


@pytest.mark.parametrize("state", LAYOUTS)
def test_loaded_state_is_a_copy(model, mask, state):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, state=state)
    step(optimizer, model, [random_gradients(model)])
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = aimfair.MaskedAdamW(copy.deepcopy(model).named_parameters(), mask, state=state)
    other.load_state_dict(saved)
    step(other, model, [])
    for entry in other.state.values():
        for value in entry.values():
            value.fill_(3.0)
    for number, entry in before["state"].items():
        assert all(same_bits(saved["state"][number][key], value) for key, value in entry.items())


def test_user_hooks_see_plain_state(model, mask):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, state="compact")
    step(optimizer, model, [random_gradients(model)])
    seen = []

    def halve(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("before")
        halved = {
            n: {k: v / 2 if k == "exp_avg" else v for k, v in entry.items()} for n, entry in state["state"].items()
        }
        return {**state, "state": halved}

    other = aimfair.MaskedAdamW(model.named_parameters(), mask)
    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_post_hook(lambda _: seen.append("after"))
    for _ in range(2):
        other.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after"] * 2
    chosen = mask.bool_of("head.weight")
    assert torch.equal(
        other.state[model.head.weight]["exp_avg"][chosen], optimizer.state[model.head.weight]["exp_avg"] / 2
    )


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(optimizer: MaskedOptimizer, state: dict[str, Any], message: str) -> None:
    """The optimizer is as it was."""
    before = {id(p): {k: v.clone() for k, v in entry.items()} for p, entry in optimizer.state.items()}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert {id(p) for p in optimizer.state} == before.keys()
    for parameter, entry in optimizer.state.items():
        assert all(same_bits(value, before[id(parameter)][key]) for key, value in entry.items())


def test_state_of_another_mask_is_refused(model, mask):
    gradients = [random_gradients(model)]
    optimizers = {
        "mask": aimfair.MaskedAdamW(model.named_parameters(), mask, state="compact"),
        "other": aimfair.MaskedAdamW(model.named_parameters(), ~mask, state="compact"),
        "none": aimfair.MaskedAdamW(model.named_parameters()),
    }
    for optimizer in optimizers.values():
        step(optimizer, model, gradients)
    saved = optimizers["mask"].state_dict()
    assert saved["param_groups"][0]["mask_digest"] == mask.digest
    refused(
        optimizers["other"], saved, f"group 0: the state is for mask {mask.digest[:12]}, not for {(~mask).digest[:12]}"
    )
    refused(optimizers["none"], saved, "not for no mask")
    optimizers["mask"].load_state_dict(optimizers["none"].state_dict())  # holds every element
    assert optimizers["mask"].param_groups[0]["mask_digest"] == mask.digest


def test_state_that_does_not_fit_is_refused_by_name(model, mask):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, state="compact")
    step(optimizer, model, [random_gradients(model)])
    name = "body.0.bias"
    number = [n for n, _ in model.named_parameters()].index(name)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][number]["exp_avg"] = torch.zeros(3)
    refused(optimizer, saved, rf"'body\.0\.bias' has 3 values, expected 40 \(dense\) or {mask.nnz_per_tensor[number]}")
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][number]["exp_avg_sq"]
    refused(optimizer, saved, r"'body\.0\.bias' has no exp_avg_sq")
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["params"].pop()
    refused(optimizer, saved, "size of optimizer's group")
    sgd = aimfair.MaskedSGD(model.named_parameters(), mask, momentum=0.9)
    step(sgd, model, [random_gradients(model)])
    refused(optimizer, sgd.state_dict(), "has no exp_avg: it is not of this kind of optimizer")


# -- copies -----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("state", LAYOUTS)
def test_copies_step_as_the_original(model, mask, masked, options, how, state):
    optimizer = masked(model.named_parameters(), mask, state=state, **options)
    gradients = [random_gradients(model) for _ in range(3)]
    step(optimizer, model, gradients[:2])
    pair = (model, optimizer)
    twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    step(optimizer, model, gradients[2:])
    step(copied, twin, gradients[2:])
    assert_same(model, twin)
    copied.add_param_group({"params": [("late", nn.Parameter(torch.ones(3, device=model.scale.device)))], "mask": None})
    assert len(optimizer.param_groups) == 1


def test_repr_shows_the_mask(model, mask):
    assert mask.digest in repr(aimfair.MaskedAdamW(model.named_parameters(), mask))
