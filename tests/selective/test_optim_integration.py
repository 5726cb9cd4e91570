"""The optimizers inside torch's machinery: schedulers, closures, clipping, loss scaling, compilation, new groups."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import aimfair

from .models import (
    Toy,
    assert_unselected_unchanged,
    backward,
    batch,
    random_gradients,
    same_bits,
    set_gradients,
    toy,
    weights,
)

LAYOUTS = ["dense", "compact"]
layouts = pytest.mark.parametrize("state", LAYOUTS)


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


@pytest.fixture
def mask(model) -> aimfair.ParameterMask:
    return aimfair.ParameterMask.random(model, 0.4)


def assert_selected_close(model: nn.Module, other: nn.Module, mask: aimfair.ParameterMask) -> None:
    for (name, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        chosen = mask.bool_of(name)
        torch.testing.assert_close(value[chosen], expected[chosen], rtol=5e-6, atol=5e-6)


# -- schedules, closures, clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [
    lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=6),
    lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 2), lr_scheduler.CosineAnnealingLR(o, 4)], [2]
    ),
], ids=["lambda", "one_cycle", "sequential"])  # fmt: skip
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(model, mask, device, schedule, tensor_lr):
    """The same learning rates (and momenta, in one cycle) as torch's optimizer gets."""
    twin = copy.deepcopy(model)
    lr = torch.tensor(0.1, device=device) if tensor_lr else 0.1
    optimizer = aimfair.MaskedAdamW(model.parameters(), mask, lr=lr)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.1)
    schedules = [schedule(optimizer), schedule(reference)]
    for _ in range(5):
        gradients = random_gradients(model)
        set_gradients(model, gradients)
        set_gradients(twin, gradients)
        optimizer.step()
        reference.step()
        for each in schedules:
            each.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(reference.param_groups[0]["lr"], rel=1e-6)
    assert_selected_close(model, twin, mask)


def test_reduce_on_plateau(model, mask):
    optimizer = aimfair.MaskedSGD(model.parameters(), mask, lr=0.1)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.025


@layouts
def test_closure(model, mask, device, state):
    optimizer = aimfair.MaskedSGD(model.named_parameters(), mask, lr=0.05, momentum=0.9, state=state)
    model.eval()
    data, before = batch(device, 32), weights(model)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        return backward(model, *data)

    losses = [float(optimizer.step(closure)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert_unselected_unchanged(model, before, mask.to_bool())


def test_clipping_and_zero_grad(model, mask, device):
    twin = copy.deepcopy(model)
    optimizer = aimfair.MaskedSGD(model.parameters(), mask, lr=1.0)
    reference = torch.optim.SGD(twin.parameters(), lr=1.0)
    data = batch(device)
    for each, opt in ((model, optimizer), (twin, reference)):
        backward(each, *data, scale=100.0)
        norm = nn.utils.clip_grad_norm_(each.parameters(), 0.1)
        assert norm > 1
        opt.step()
        opt.zero_grad(set_to_none=each is model)
    assert_selected_close(model, twin, mask)
    assert all(p.grad is None for p in model.parameters())
    assert not any(p.grad.any() for p in twin.parameters() if p.grad is not None)


def test_step_hooks(model, mask):
    calls = []
    optimizer = aimfair.MaskedAdamW(model.parameters(), mask)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    set_gradients(model, random_gradients(model))
    optimizer.step()
    assert calls == ["before", "after"]


# -- loss scaling -----------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "unscaled_first"])
@pytest.mark.parametrize("masked", [aimfair.MaskedAdamW, aimfair.MaskedSGD])
def test_grad_scaler_steps_as_without(model, mask, device, masked, state, dtype, clip):
    """A power of two scales exactly: in bfloat16 scaled and unscaled training give the same bits."""
    twin, before = copy.deepcopy(model), weights(model)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    scaled = masked(model.named_parameters(), mask, lr=0.05, state=state)
    plain = masked(twin.named_parameters(), mask, lr=0.05, state=state)
    for _ in range(3):
        images, labels = batch(device)
        for each in (model, twin):
            with torch.autocast(device.type, dtype=dtype):
                loss = nn.functional.cross_entropy(each(images), labels)
            (scaler.scale(loss) if each is model else loss).backward()
        if clip:
            scaler.unscale_(scaled)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        scaler.step(scaled)
        scaler.update()
        plain.step()
        scaled.zero_grad()
        plain.zero_grad()
    for value, expected in zip(model.parameters(), twin.parameters(), strict=True):
        if dtype == torch.bfloat16:
            assert same_bits(value.detach(), expected.detach())
        else:  # gradients of activations that underflow in float16 without a scale
            torch.testing.assert_close(value, expected, rtol=0, atol=0.05)
    assert_unselected_unchanged(model, before, mask.to_bool())


@layouts
@pytest.mark.parametrize("masked", [aimfair.MaskedAdamW, aimfair.MaskedSGD])
def test_overflow_skips_the_step_and_lowers_the_scale(model, mask, device, masked, state):
    optimizer = masked(model.named_parameters(), mask, lr=0.05, state=state)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**4)
    data = batch(device)

    def scaled_step(poison: bool) -> None:
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(data[0]), data[1])).backward()
        if poison:
            model.conv.bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()

    scaled_step(poison=False)
    before = weights(model)
    state_before = {p: {k: v.clone() for k, v in entry.items()} for p, entry in optimizer.state.items()}
    scaled_step(poison=True)
    assert scaler.get_scale() == 2.0**3
    for name, value in weights(model).items():
        assert same_bits(value, before[name])
    for parameter, entry in optimizer.state.items():
        assert all(same_bits(value, state_before[parameter][key]) for key, value in entry.items())
    scaled_step(poison=False)
    assert_unselected_unchanged(model, before, mask.to_bool())


def test_scaler_without_any_gradient(model, mask, device):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask)
    optimizer.grad_scale, optimizer.found_inf = None, 0  # what GradScaler sets then
    before = weights(model)
    set_gradients(model, random_gradients(model))
    optimizer.step()
    assert_unselected_unchanged(model, before, mask.to_bool())


# -- compiled models --------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(float(backward(model, *data)))
        optimizer.step()
    return losses


@layouts
def test_compiled_model(model, mask, device, state):
    """The graph reads the weights that the kernel wrote."""
    twin, data = copy.deepcopy(model), batch(device, 16)
    compiled = torch.compile(model, backend="aot_eager")
    losses = train(compiled, aimfair.MaskedAdamW(compiled.named_parameters(), mask, lr=0.01, state=state), data, 6)
    expected = train(twin, aimfair.MaskedAdamW(twin.named_parameters(), mask, lr=0.01, state=state), data, 6)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at the loss
def test_compiled_training_step(model, mask, device):
    """The whole step under torch.compile: the optimizer's part runs outside the graph."""
    twin, (images, labels) = copy.deepcopy(model), batch(device, 16)
    optimizers = [aimfair.MaskedAdamW(each.named_parameters(), mask, lr=0.01) for each in (model, twin)]

    def training_step(each: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(each(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    compiled = torch.compile(training_step, backend="aot_eager")
    for _ in range(3):
        loss = compiled(model, optimizers[0])
        torch.testing.assert_close(loss, training_step(twin, optimizers[1]), rtol=1e-4, atol=1e-5)
    assert_selected_close(model, twin, mask)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_inductor(model, mask, device):
    data = batch(device, 16)
    compiled = torch.compile(model)
    losses = train(compiled, aimfair.MaskedAdamW(compiled.named_parameters(), mask, lr=0.01), data, 6)
    assert losses[-1] < losses[0]


# -- new groups -------------------------------------------------------------------------------------------------------


def test_named_group_added_later_is_under_the_mask(model, mask):
    twin = copy.deepcopy(model)
    named = list(model.named_parameters())
    optimizer = aimfair.MaskedAdamW(named[:4], mask, lr=0.1)
    whole = aimfair.MaskedAdamW(twin.named_parameters(), mask, lr=0.1)
    before = weights(model)
    for number in range(3):
        if number == 1:
            optimizer.add_param_group({"params": named[4:]})
            assert optimizer.param_groups[1]["lr"] == 0.1
            for parameter in list(whole.state):  # as if it had met the later ones only now
                if any(parameter is p for p in list(twin.parameters())[4:]):
                    del whole.state[parameter]
        gradients = random_gradients(model)
        set_gradients(model, gradients)
        set_gradients(twin, gradients if number else {name: gradients[name] for name, _ in named[:4]})
        optimizer.step()
        whole.step()
    assert_unselected_unchanged(model, before, mask.to_bool())
    for value, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert same_bits(value.detach(), expected.detach())


def test_group_with_its_own_mask(model, mask, device):
    """None tunes every element; another mask governs what it names. Neither touches the first group's."""
    dense, sparse = nn.Linear(4, 4).to(device), nn.Linear(40, 40).to(device)
    own = aimfair.ParameterMask.random(sparse, 0.1)
    optimizer = aimfair.MaskedAdamW(model.parameters(), mask, lr=0.1, state="compact")
    optimizer.add_param_group({"params": dense.parameters(), "mask": None})
    optimizer.add_param_group({"params": sparse.parameters(), "mask": own, "lr": 0.2})
    before = {module: weights(module) for module in (model, dense, sparse)}
    for module in before:
        set_gradients(module, random_gradients(module))
    optimizer.step()
    assert_unselected_unchanged(model, before[model], mask.to_bool())
    assert_unselected_unchanged(sparse, before[sparse], own.to_bool())
    assert not (dense.weight == before[dense]["weight"]).any()
    assert [group["mask_digest"] for group in optimizer.param_groups] == [mask.digest, None, own.digest]
    assert optimizer.state[sparse.weight]["exp_avg"].numel() == int(own.bool_of("weight").sum())

    resumed = aimfair.MaskedAdamW([
        {"params": model.parameters()},
        {"params": dense.parameters(), "mask": None},
        {"params": sparse.parameters(), "mask": own},
    ], mask)  # fmt: skip
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[2]["lr"] == 0.2
    chosen = own.bool_of("weight")
    assert torch.equal(resumed.state[sparse.weight]["exp_avg"][chosen], optimizer.state[sparse.weight]["exp_avg"])


def test_every_group_with_its_own_mask(model, mask):
    groups = [{"params": [(name, p)], "mask": mask if p.dim() > 1 else None} for name, p in model.named_parameters()]
    before = weights(model)
    optimizer = aimfair.MaskedSGD(groups, ~mask, lr=0.1)
    set_gradients(model, random_gradients(model))
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = parameter.detach() != before[name]
        assert torch.equal(moved, mask.bool_of(name) if parameter.dim() > 1 else torch.ones_like(moved)), name


def test_group_that_the_mask_cannot_know_is_refused(model, mask, device):
    new = nn.Linear(4, 4).to(device)
    optimizer = aimfair.MaskedAdamW(model.parameters(), mask)
    named = aimfair.MaskedAdamW(model.named_parameters(), mask)
    for each, params, message in (
        (optimizer, list(new.parameters()), 'needs named parameters, or a "mask" of its own'),
        (named, list(new.named_parameters()), "not in the mask: weight, bias"),
    ):
        with pytest.raises(ValueError, match=message):
            each.add_param_group({"params": params})
        assert len(each.param_groups) == 1
        set_gradients(model, random_gradients(model))
        each.step()


def test_group_added_to_an_optimizer_without_mask(model, device):
    new = nn.Linear(4, 4).to(device)
    optimizer = aimfair.MaskedSGD(model.parameters(), lr=0.1)
    optimizer.add_param_group({"params": new.parameters()})
    before = weights(new)
    set_gradients(new, random_gradients(new))
    optimizer.step()
    assert not (new.weight == before["weight"]).any()


# -- the whole way ----------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
def test_sensitivity_to_mask_to_training(model, device, state, granularity):
    """Select by Fisher information, freeze the rest, train: the loss falls and the rest keeps its bits."""
    data = batch(device, 32)
    probe = aimfair.Sensitivity(model, ("task",))
    with probe.capture("task"):
        for images, labels in zip(data[0].split(8), data[1].split(8), strict=True):
            backward(model, images, labels)
    mask = probe.select("top_k", criterion="fisher", granularity=granularity, density=0.4)
    before = weights(model)
    frozen = mask.freeze_unselected(model)
    losses = train(model, aimfair.MaskedAdamW(model.named_parameters(), mask, lr=0.02, state=state), data, 15)
    assert losses[-1] < 0.7 * losses[0]
    assert_unselected_unchanged(model, before, mask.to_bool())
    assert (granularity == "element") or frozen
