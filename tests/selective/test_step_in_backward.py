"""Steps inside the backward pass: the bits of a step after it, and no gradients held meanwhile."""

import copy
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

import aimfair
from aimfair.selective import step_in_backward
from aimfair.selective.masked_optimizer import MaskedOptimizer

from .models import Toy, assert_unselected_unchanged, backward, batch, same_bits, toy, weights

KINDS: list[tuple[type[MaskedOptimizer], dict[str, Any]]] = [
    (aimfair.MaskedAdamW, {"lr": 0.05, "weight_decay": 0.1}),
    (aimfair.MaskedAdamW, {"lr": 0.05, "amsgrad": True}),
    (aimfair.MaskedSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
]
STATES: list[dict[str, Any]] = [
    {"state": state, "moment_bits": bits} for state in ("dense", "compact") for bits in (32, 16, 8)
]
CASES = [
    (kind, options | state)
    for (kind, options), state in itertools.product(KINDS, STATES)
    if not (options.get("amsgrad") and state["moment_bits"] == 8)
]
every_case = pytest.mark.parametrize(("kind", "options"), CASES)


@pytest.fixture(autouse=True)
def together(monkeypatch) -> None:
    """Some parameters are stepped alone, some together, some at the end."""
    monkeypatch.setattr(step_in_backward, "TOGETHER", 1000)


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


def mask_of(model: nn.Module) -> aimfair.ParameterMask:
    """Nothing of one tensor, everything of another, some of the others."""
    bools = aimfair.ParameterMask.random(model, 0.4).to_bool()
    bools["body.0.bias"][:] = False
    bools["head.bias"][:] = True
    return aimfair.ParameterMask.from_bool(bools)


def pair(model: nn.Module, mask: aimfair.ParameterMask | None, kind: type[MaskedOptimizer], options: dict[str, Any]):
    """The model and a copy with an optimizer each."""
    twin = copy.deepcopy(model)
    return twin, *(kind(each.named_parameters(), mask, **options) for each in (model, twin))


def assert_same(model: nn.Module, twin: nn.Module, released: MaskedOptimizer, plain: MaskedOptimizer) -> None:
    for (name, value), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert same_bits(value.detach(), expected.detach()), name
        assert released.state.get(value, {}).keys() == plain.state.get(expected, {}).keys(), name
        for key, state in released.state.get(value, {}).items():
            assert same_bits(state, plain.state[expected][key]), (name, key)


def assert_no_gradients(model: nn.Module) -> None:
    assert all(parameter.grad is None for parameter in model.parameters())


def plain_step(model: nn.Module, optimizer: MaskedOptimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    optimizer.zero_grad()
    for data in batches:
        backward(model, *data)
    optimizer.step()


# -- the same bits ----------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(("masked", "together"), [(True, 1000), (False, 1000), (True, 1), (True, 2**20)])
def test_same_bits_as_a_step_after_the_pass(model, kind, options, masked, together, device, monkeypatch):
    monkeypatch.setattr(step_in_backward, "TOGETHER", together)
    mask = mask_of(model) if masked else None
    twin, released, plain = pair(model, mask, kind, options)
    before = weights(model)
    with released.step_in_backward():
        for _ in range(3):
            data = batch(device)
            backward(model, *data)
            assert_no_gradients(model)
            plain_step(twin, plain, [data])
            assert_same(model, twin, released, plain)
    if mask is not None:
        assert_unselected_unchanged(model, before, mask.to_bool())


@every_case
def test_state_dict_and_resuming(model, kind, options, device):
    """Checkpoints are those of ordinary steps, whichever way training goes on."""
    mask = mask_of(model)
    twin, released, plain = pair(model, mask, kind, options)
    first, second = batch(device), batch(device)
    with released.step_in_backward():
        backward(model, *first)
    plain_step(twin, plain, [first])
    saved, expected = released.state_dict(), plain.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    resumed = kind(model.named_parameters(), mask, **options)
    resumed.load_state_dict(expected)
    with resumed.step_in_backward():
        backward(model, *second)
    plain_step(twin, plain, [second])
    assert_same(model, twin, resumed, plain)


@pytest.mark.parametrize("rounding", [{"master_weights": True}, {"stochastic_rounding": True}])
@pytest.mark.parametrize("state", ["dense", "compact"])
def test_weights_of_16_bits(model, rounding, state, device):
    model = model.bfloat16()
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05, "state": state, **rounding})
    with released.step_in_backward():
        for _ in range(3):
            images, labels = batch(device)
            backward(model, images.bfloat16(), labels)
            plain_step(twin, plain, [(images.bfloat16(), labels)])
    assert_same(model, twin, released, plain)


def test_param_groups_with_their_own_masks(model, device):
    twin = copy.deepcopy(model)
    optimizers = []
    for each in (model, twin):
        named = list(each.named_parameters())
        groups = [{"params": named[::2], "lr": 0.1}, {"params": named[1::2], "mask": None, "weight_decay": 0.5}]
        optimizers.append(aimfair.MaskedAdamW(groups, mask_of(model) if each is model else optimizers[0].mask))
    with optimizers[0].step_in_backward():
        for _ in range(2):
            data = batch(device)
            backward(model, *data)
            plain_step(twin, optimizers[1], [data])
    assert_same(model, twin, *optimizers)


def test_tied_weights_step_once(device):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(self.inner(x).relu())

    model = Tied().to(device)
    twin, released, plain = pair(model, aimfair.ParameterMask.random(model, 0.5), aimfair.MaskedAdamW, {"lr": 0.1})
    data = torch.randn(4, 12, device=device)
    with released.step_in_backward():
        for _ in range(2):
            model(data).square().sum().backward()
            plain.zero_grad()
            twin(data).square().sum().backward()
            plain.step()
    assert_same(model, twin, released, plain)


# -- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["dense", "compact"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_accumulation(model, state, masked, max_norm, device):
    mask = mask_of(model) if masked else None
    twin, released, plain = pair(model, mask, aimfair.MaskedAdamW, {"lr": 0.05, "state": state})
    with released.step_in_backward(max_norm=max_norm) as steps:
        for _ in range(2):
            batches = [batch(device) for _ in range(3)]
            before = weights(model)
            with steps.accumulate():
                for data in batches[:-1]:
                    backward(model, *data)
            assert all(same_bits(value, before[name]) for name, value in weights(model).items())
            if masked and max_norm is None:
                assert_no_gradients(model)
            backward(model, *batches[-1])
            assert_no_gradients(model)
            plain.zero_grad()
            for data in batches:
                backward(twin, *data)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
            plain.step()
    assert_same(model, twin, released, plain)


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_parameters_that_the_last_pass_does_not_reach(max_norm, device):
    model = nn.ModuleDict({name: nn.Linear(30, 30) for name in ("a", "b")}).to(device)
    mask = aimfair.ParameterMask.random(model, 0.3)
    twin, released, plain = pair(model, mask, aimfair.MaskedAdamW, {"lr": 0.1, "state": "compact"})
    data = torch.randn(4, 30, device=device)

    def passes(model: nn.ModuleDict) -> Any:
        yield (model["a"](data) + model["b"](data)).square().sum().backward
        yield model["b"](data).square().sum().backward

    with released.step_in_backward(max_norm=max_norm) as steps:
        first, last = passes(model)
        with steps.accumulate():
            first()
        last()
    assert_no_gradients(model)
    for each in passes(twin):
        each()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
    plain.step()
    assert_same(model, twin, released, plain)


def test_zero_grad_drops_what_is_accumulated(model, device):
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05})
    model.eval(), twin.eval()
    data = batch(device)
    with released.step_in_backward() as steps:
        with steps.accumulate():
            backward(model, *batch(device))
        released.zero_grad()
        backward(model, *data)
    plain_step(twin, plain, [data])
    assert_same(model, twin, released, plain)


def test_ending_in_the_middle_of_a_batch_is_refused(model, device):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    dropped = r"ended after accumulate\(\).*the gradients of \d+ parameters were dropped"
    with pytest.raises(RuntimeError, match=dropped), optimizer.step_in_backward() as steps, steps.accumulate():
        backward(model, *batch(device))


# -- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), CASES[::3])
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_clips_as_torch(model, kind, options, max_norm, device):
    twin, released, plain = pair(model, mask_of(model), kind, options)
    with released.step_in_backward(max_norm=max_norm) as steps:
        for _ in range(3):
            data = batch(device)
            backward(model, *data)
            assert_no_gradients(model)
            plain.zero_grad()
            backward(twin, *data)
            norm = nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
            plain.step()
            assert same_bits(steps.norm, norm)
            assert_same(model, twin, released, plain)


@pytest.mark.parametrize(
    ("max_norm", "error"), [("1", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
)
def test_refuses_a_norm(model, max_norm, error):
    optimizer = aimfair.MaskedAdamW(model.named_parameters())
    with pytest.raises(error, match="max_norm="), optimizer.step_in_backward(max_norm=max_norm):
        pass


# -- inside torch's machinery -----------------------------------------------------------------------------------------


def test_schedulers_and_step_hooks_see_one_step_per_pass(model, device, recwarn):
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.1})
    schedules = [lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in (released, plain)]
    calls: list[str] = []
    released.register_step_pre_hook(lambda *_: calls.append("before"))
    released.register_step_post_hook(lambda *_: calls.append("after"))
    with released.step_in_backward():
        for _ in range(3):
            data = batch(device)
            backward(model, *data)
            plain_step(twin, plain, [data])
            for schedule in schedules:
                schedule.step()
    assert_same(model, twin, released, plain)
    assert calls == ["before", "after"] * 3
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_closure(model, device):
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedSGD, {"lr": 0.05, "momentum": 0.9})
    calls: list[str] = []
    released.register_step_post_hook(lambda *_: calls.append("after"))
    with released.step_in_backward():
        for _ in range(3):
            data = batch(device)
            losses = []
            for each, optimizer in ((model, released), (twin, plain)):

                def closure(each=each, optimizer=optimizer, data=data) -> Tensor:
                    optimizer.zero_grad()
                    return backward(each, *data)

                losses.append(optimizer.step(closure))
            assert same_bits(*losses)
    assert_same(model, twin, released, plain)
    assert calls == ["after"] * 3


@pytest.mark.parametrize("keep_copy", [False, True])
def test_recorded_deltas(model, keep_copy, device):
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05, "state": "compact"})
    recorder, follower = released.record_delta(keep_copy=keep_copy), copy.deepcopy(model)
    with released.step_in_backward():
        for _ in range(2):
            data = batch(device)
            backward(model, *data)
            plain_step(twin, plain, [data])
            recorder.delta().apply_(follower)
            assert all(same_bits(value, weights(model)[name]) for name, value in weights(follower).items())
    assert_same(model, twin, released, plain)


def test_gradients_are_freed_in_the_pass(device, monkeypatch):
    """No two layers' gradients are there at once."""
    monkeypatch.setattr(step_in_backward, "TOGETHER", 1)
    model = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(8))).to(device)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), aimfair.ParameterMask.random(model, 0.1))
    held = []
    for layer in model:
        layer.register_full_backward_hook(lambda *_: held.append(sum(p.grad is not None for p in model.parameters())))
    with optimizer.step_in_backward():
        model(torch.randn(3, 20, device=device, requires_grad=True)).sum().backward()
    assert max(held) <= 1


# -- what a pass tells ------------------------------------------------------------------------------------------------


def test_the_largest_value_of_each_gradient(model, device):
    """Of the last step, and of all passes that were accumulated for it."""
    twin, released, _ = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05})
    with released.step_in_backward(watch=True) as steps:
        for parts in (1, 2, 1):
            batches, expected = [batch(device) for _ in range(parts)], {}
            twin.load_state_dict(model.state_dict())
            for data in batches:
                twin.zero_grad()
                backward(twin, *data)
                for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
                    if other.grad is not None and other.numel():
                        expected[parameter] = max(expected.get(parameter, 0.0), other.grad.abs().max().item())
            with steps.accumulate():
                for data in batches[:-1]:
                    backward(model, *data)
            backward(model, *batches[-1])
            assert {parameter: largest.item() for parameter, largest in steps.largest.items()} == expected


@pytest.mark.parametrize("parts", [1, 2])
def test_values_that_are_not_finite_are_seen(model, parts, device):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    handle = model.head.weight.register_hook(
        lambda grad: grad.index_fill(0, torch.tensor([0], device=device), torch.nan)
    )
    with optimizer.step_in_backward(watch=True) as steps:
        for number in range(parts):
            with steps.accumulate() if number < parts - 1 else nullcontext():
                backward(model, *batch(device))
            handle.remove()
        assert [p is model.head.weight for p, largest in steps.largest.items() if not largest.isfinite()] == [True]


def test_passes_whose_gradients_are_discarded(model, device):
    before = weights(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model), lr=0.05)
    with optimizer.step_in_backward() as steps:
        for _ in range(2):
            with steps.discard():
                backward(model, *batch(device))
            assert_no_gradients(model)
        assert all(same_bits(value, before[name]) for name, value in weights(model).items())
        assert not any(optimizer.state.values())
        with steps.accumulate():
            backward(model, *batch(device))
        with pytest.raises(RuntimeError, match=r"discard\(\): gradients are accumulated"), steps.discard():
            pass
        optimizer.zero_grad()
        backward(model, *batch(device))
    assert not all(same_bits(value, before[name]) for name, value in weights(model).items())


def test_a_graph_that_is_captured_is_refused(model, device, monkeypatch):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    before = weights(model)
    with optimizer.step_in_backward():
        with monkeypatch.context() as patch:
            patch.setattr(step_in_backward.streams, "is_capturing", lambda _: True)
            with pytest.raises(RuntimeError, match="step_in_backward: not in a CUDA graph; capture backward and step"):
                backward(model, *batch(device))
        assert all(same_bits(value, before[name]) for name, value in weights(model).items())
        optimizer.zero_grad()
        backward(model, *batch(device))


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="Gloo")
@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_averaged_gradients(process_group, max_norm):
    """Of DistributedDataParallel, in many buckets: one is stepped while the next is averaged."""
    model = toy()
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05, "state": "compact"})
    ddp, other = (
        DistributedDataParallel(m, bucket_cap_mb=1e-3, gradient_as_bucket_view=m is model, find_unused_parameters=True)
        for m in (model, twin)
    )
    with released.step_in_backward(max_norm=max_norm, ddp=ddp) as steps:
        for number in range(4):
            batches = [batch() for _ in range(1 + number % 2)]
            for each in (ddp, other):
                with each.no_sync():
                    for data in batches[:-1]:
                        backward(each, *data)
                backward(each, *batches[-1])
            assert_no_gradients(model)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
            plain.step()
            plain.zero_grad()
            assert_same(model, twin, released, plain)
        with pytest.raises(RuntimeError, match=r"use its no_sync\(\)"), steps.accumulate():
            pass
    backward(ddp, *batch())  # averages as before
    released.step()


@pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="Gloo")
def test_gradients_that_are_averaged_later_are_refused(process_group):
    model = toy()
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    with pytest.raises(ValueError, match="gradient_as_bucket_view=True"), optimizer.step_in_backward(ddp=ddp):
        pass
    with pytest.raises(TypeError, match="ddp is of type Toy"), optimizer.step_in_backward(ddp=model):
        pass
    with pytest.raises(RuntimeError, match=r"was written after its step.*as ddp="), optimizer.step_in_backward():
        backward(ddp, *batch())


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_step_beside_the_passes_is_refused(model, device):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    with optimizer.step_in_backward():
        backward(model, *batch(device))
        with pytest.raises(RuntimeError, match=r"step\(\) inside step_in_backward.*leave the call out"):
            optimizer.step()
        scaler = torch.amp.GradScaler(device.type)
        scaler.scale(torch.ones((), device=device))
        with pytest.raises(RuntimeError, match="use no GradScaler"):
            scaler.step(optimizer)
        with pytest.raises(RuntimeError, match="inside one already"), optimizer.step_in_backward():
            pass
    backward(model, *batch(device))
    optimizer.step()


def test_a_pass_after_a_failed_one_is_refused(model, device):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask_of(model))
    images, labels = batch(device)

    def fail(*_: Any) -> None:
        raise ValueError("failed")

    handle = model.conv.weight.register_hook(fail)
    with optimizer.step_in_backward():
        with pytest.raises(ValueError, match="failed"):
            backward(model, images, labels)
        handle.remove()
        with pytest.raises(RuntimeError, match=r"which has stepped [1-9]\d* parameters: it failed"):
            backward(model, images, labels)
    with optimizer.step_in_backward():
        backward(model, images, labels)


def test_a_failed_pass_that_has_stepped_nothing_can_be_dropped(model, device):
    twin, released, plain = pair(model, mask_of(model), aimfair.MaskedAdamW, {"lr": 0.05})
    model.eval(), twin.eval()
    data = batch(device)

    def fail(*_: Any) -> None:
        raise ValueError("failed")

    with released.step_in_backward(max_norm=1e6):
        handle = model.conv.weight.register_hook(fail)
        with pytest.raises(ValueError, match="failed"):
            backward(model, *data)
        handle.remove()
        with pytest.raises(RuntimeError, match=r"which has stepped 0 parameters: it failed \(call zero_grad\(\)\)"):
            backward(model, *data)
        released.zero_grad()
        backward(model, *data)
    plain.zero_grad()
    backward(twin, *data)
    nn.utils.clip_grad_norm_(twin.parameters(), 1e6, foreach=False)
    plain.step()
    assert_same(model, twin, released, plain)


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_groups_and_gradients_that_come_from_elsewhere(max_norm, device):
    """A group added inside, and gradients that were there before: stepped once, and freed."""
    model = nn.ModuleDict({name: nn.Linear(30, 30) for name in ("a", "b", "c")}).to(device)
    twin = copy.deepcopy(model)
    data = torch.randn(4, 30, device=device)
    released, plain = (
        aimfair.MaskedAdamW([*each["a"].named_parameters(prefix="a"), *each["c"].named_parameters(prefix="c")], lr=0.1)
        for each in (model, twin)
    )
    for each in (model, twin):
        each["c"](data).square().sum().backward()
    with released.step_in_backward(max_norm=max_norm):
        for number in range(3):
            for each, optimizer in ((model, released), (twin, plain)):
                if number == 1:
                    optimizer.add_param_group({"params": each["b"].named_parameters(prefix="b")})
                each["b"](each["a"](data)).square().sum().backward()
            if number == 0:
                twin["b"].zero_grad()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
            plain.step()
            plain.zero_grad()
            if number == 0:
                model["b"].zero_grad()
            assert_same(model, twin, released, plain)
            assert_no_gradients(model)
