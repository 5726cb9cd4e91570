"""Arguments of the optimizers and of param groups: what is taken as in torch, what is refused, and by which name."""

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import aimfair

from .models import Toy, random_gradients, set_gradients, toy, weights

PLAIN = {aimfair.MaskedAdamW: torch.optim.AdamW, aimfair.MaskedSGD: torch.optim.SGD}

both = pytest.mark.parametrize("masked", PLAIN)


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


TYPES = [
    *(("both", {"lr": lr}, "lr=") for lr in (None, "1e-3", True, 1j, (1e-3, 1e-3))),
    ("both", {"lr": torch.tensor(1)}, r"lr is a torch\.int64 tensor, expected float32 or float64"),
    ("both", {"lr": torch.tensor(1.0).half()}, r"lr is a torch\.float16 tensor"),
    ("both", {"weight_decay": None}, "weight_decay=None: expected a number"),
    ("both", {"weight_decay": torch.tensor(0.1)}, "weight_decay=a tensor: expected a number"),
    *(("both", {name: 1}, f"{name}=1: expected True or False") for name in ("maximize", "stochastic_rounding")),
    ("both", {"master_weights": "no"}, "master_weights='no'"),
    ("both", {"seed": None}, "seed=None: expected an integer"),
    ("both", {"seed": 1.5}, r"seed=1\.5"),
    *(("both", {name: "yes"}, f"{name}='yes'") for name in ("foreach", "fused", "capturable", "differentiable")),
    ("AdamW", {"betas": 0.9}, r"betas=0\.9: expected two numbers"),
    ("AdamW", {"betas": None}, "betas=None"),
    ("AdamW", {"betas": ("0.9", "0.99")}, "betas="),
    ("AdamW", {"betas": torch.tensor([0.9, 0.99])}, "betas=a tensor"),
    ("AdamW", {"betas": (torch.tensor(0.9), torch.tensor(0.99))}, "betas="),
    ("AdamW", {"eps": "1e-8"}, "eps='1e-8'"),
    ("AdamW", {"amsgrad": "False"}, "amsgrad='False'"),
    ("SGD", {"momentum": None}, "momentum=None"),
    ("SGD", {"dampening": "0"}, "dampening='0'"),
    ("SGD", {"nesterov": 1, "momentum": 0.9}, "nesterov=1"),
]

VALUES = [
    *(("both", {"lr": lr}, f"lr={lr}") for lr in (-1.0, float("nan"), float("inf"))),
    ("both", {"lr": torch.tensor([0.1, 0.2])}, r"lr is a tensor of shape \(2,\), expected one element"),
    ("both", {"lr": torch.tensor([])}, r"lr is a tensor of shape \(0,\)"),
    ("both", {"lr": torch.tensor(-0.5)}, r"lr=-0\.5"),
    ("both", {"weight_decay": -0.1}, r"weight_decay=-0\.1 is out of range"),
    ("both", {"weight_decay": float("nan")}, "weight_decay=nan"),
    ("both", {"seed": 1 << 63}, "seed=9223372036854775808"),
    ("both", {"differentiable": True}, "differentiable=True is not supported.*outside autograd"),
    ("both", {"master_weights": True, "stochastic_rounding": True}, "not valid with master_weights"),
    ("AdamW", {"betas": (0.9, 1.0)}, "betas="),
    ("AdamW", {"betas": (-0.1, 0.9)}, "betas="),
    ("AdamW", {"betas": (float("nan"), 0.9)}, "betas="),
    ("AdamW", {"betas": (0.9,)}, r"betas=\(0\.9,\): expected two numbers"),
    ("AdamW", {"betas": (0.9, 0.9, 0.9)}, "betas="),
    ("AdamW", {"eps": -1e-9}, "eps="),
    ("SGD", {"momentum": -0.1}, "momentum="),
    ("SGD", {"dampening": float("inf")}, "dampening=inf"),
    ("SGD", {"nesterov": True}, "nesterov needs momentum"),
    (
        "SGD",
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        r"dampening = 0, found momentum=0\.9, dampening=0\.1",
    ),
]


def refusals(masked: type[torch.optim.Optimizer]) -> list[tuple[type[Exception], dict[str, Any], str]]:
    cases = [(TypeError, *case) for case in TYPES] + [(ValueError, *case) for case in VALUES]
    own = masked.__name__.removeprefix("Masked")
    return [(kind, options, message) for kind, which, options, message in cases if which in ("both", own)]


@both
def test_options_are_refused_by_name(model, masked):
    """At construction, in a group of the constructor, and in a group added later."""
    layer = nn.Linear(2, 2, device=model.scale.device)
    for kind, options, message in refusals(masked):
        with pytest.raises(kind, match=message):
            masked(model.parameters(), **options)
        if "master_weights" in options:
            continue
        group = {"params": list(layer.parameters()), "mask": None, **options}
        with pytest.raises(kind, match=message):
            masked([group])
        optimizer = masked(model.parameters())
        with pytest.raises(kind, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1


@both
def test_options_of_the_whole_optimizer_are_refused_in_a_group(model, masked):
    for option in ({"state": "compact"}, {"master_weights": True}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is an option of the whole optimizer"):
            masked([{"params": model.parameters(), **option}])
    with pytest.raises(ValueError, match="not valid with master_weights"):
        masked([{"params": model.parameters(), "stochastic_rounding": True}], master_weights=True)
    with pytest.raises(ValueError, match=r"state='sparse'.*compact"):
        masked(model.parameters(), state="sparse")
    with pytest.raises(TypeError, match="expected a param group"):
        masked(model.parameters()).add_param_group([nn.Parameter(torch.ones(2))])


@both
@pytest.mark.parametrize(("mask", "message"), [
    (1e-3, r"mask=0\.001: expected a ParameterMask or None; the mask comes second; give .* by name: lr=0\.001"),
    (torch.tensor(0.5), r"mask=0\.5.*lr=0\.5"),
    ("mask.safetensors", r"mask='mask\.safetensors'.*ParameterMask\.load"),
    (Path("mask.safetensors"), r"mask='mask\.safetensors'.*ParameterMask\.load"),
    ({"weight": torch.ones(2, 3, dtype=torch.bool)}, r"mask is of type dict.*ParameterMask\.from_bool"),
    ([torch.ones(2, 3, dtype=torch.bool)], "mask is of type list"),
    (torch.ones(2, 3, dtype=torch.bool), r"mask is of type Tensor.*ParameterMask\.from_bool"),
    (True, "mask is of type bool"),
])  # fmt: skip
def test_what_is_no_mask_is_refused(model, masked, mask, message):
    with pytest.raises(TypeError, match=message):
        masked(model.parameters(), mask)
    with pytest.raises(TypeError, match=message):
        masked([{"params": list(model.parameters()), "mask": mask}])


@both
def test_a_model_or_a_dict_in_place_of_parameters_is_refused(model, masked):
    with pytest.raises(TypeError, match=r"params is a module \(Toy\): pass model\.named_parameters\(\)"):
        masked(model)
    with pytest.raises(TypeError, match=r"params is a dict: pass .*\.items\(\)"):
        masked(dict(model.named_parameters()))


@both
def test_numbers_of_other_types_step_like_floats(model, masked):
    extra: dict[str, Any] = {"betas": [np.float32(0.5), np.float64(0.75)], "eps": np.float32(0.25)}
    if masked is aimfair.MaskedSGD:
        extra = {"momentum": np.float32(0.5), "dampening": np.float64(0.25)}
    options = {"lr": np.float32(0.125), "weight_decay": Fraction(1, 4), "seed": np.int64(3), **extra}
    floats = {name: float(value) for name, value in options.items() if name not in ("betas", "seed")}
    if "betas" in extra:
        floats["betas"] = (0.5, 0.75)
    twin, gradients = copy.deepcopy(model), random_gradients(model)
    for each, optimizer in (
        (model, masked(model.parameters(), **options)),
        (twin, masked(twin.parameters(), **floats)),
    ):
        set_gradients(each, gradients)
        optimizer.step()
    expected = weights(twin)
    assert all(torch.equal(value, expected[name]) for name, value in weights(model).items())


@both
@pytest.mark.parametrize("option", [
    {"foreach": None}, {"foreach": False}, {"foreach": True}, {"fused": None}, {"fused": False}, {"fused": True},
    {"capturable": False}, {"capturable": True}, {"differentiable": False},
])  # fmt: skip
def test_choices_of_an_implementation_change_nothing(model, masked, option):
    twin, gradients, steps = copy.deepcopy(model), random_gradients(model), []
    for each, options in ((model, {}), (twin, option)):
        optimizer = masked(each.parameters(), lr=0.1, **options)
        set_gradients(each, gradients)
        optimizer.step()
        steps.append(
            (weights(each), {key: value for key, value in optimizer.param_groups[0].items() if key != "params"})
        )
    (expected, plain_group), (actual, group) = steps
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert group == plain_group
    masked([{"params": list(model.parameters()), **option}])


@both
@pytest.mark.parametrize("choice", [{"foreach": True}, {"fused": True}, {"differentiable": True}, {"capturable": True}])
def test_state_of_torch_is_taken_whatever_its_implementation(model, masked, choice):
    if masked is aimfair.MaskedSGD and "capturable" in choice:
        pytest.skip("torch's SGD has no such option")
    saved = PLAIN[masked](model.parameters(), lr=0.25, **choice).state_dict()
    optimizer = masked(model.parameters(), lr=1.0)
    for _ in range(2):  # the first time torch adds an option to the defaults
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    set_gradients(model, random_gradients(model))
    optimizer.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, device=model.scale.device))], "mask": None})
