"""Sensitivity.capture: the statistics of update(), taken inside backward, with gradients freed on the way."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import aimfair
from aimfair.selective import capture, streams

from .models import Toy, backward, batch, same_bits, toy

SOURCES = ("a", "b")


@pytest.fixture
def model(device) -> Toy:
    return toy(device).eval()  # running statistics would make a batch depend on those before it


def assert_same_statistics(x: aimfair.Sensitivity, y: aimfair.Sensitivity) -> None:
    assert x.batches == y.batches
    actual, expected = x._statistics.tensors(), y._statistics.tensors()
    for key in expected:
        if key == "square_norms":
            torch.testing.assert_close(actual[key], expected[key], rtol=1e-12, atol=0)
        else:
            assert torch.equal(actual[key], expected[key]), key


def gradients(model: nn.Module) -> Iterator[Tensor | None]:
    return (parameter.grad for parameter in model.parameters())


@pytest.mark.parametrize("together", [1, 1000, capture.TOGETHER])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("statistics", ["all", "signed"])
def test_equals_update(model, device, statistics, steps, together, monkeypatch):
    monkeypatch.setattr(capture, "TOGETHER", together)
    declared = {"a": 2, "b": 1} if statistics == "signed" else None
    captured, updated = (aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=declared) for _ in range(2))
    data = {
        source: [[batch(device) for _ in range(steps)] for _ in range(count)] for source, count in (("a", 2), ("b", 1))
    }
    for source, batches in data.items():
        for micro_batches in batches:
            for micro_batch in micro_batches:
                backward(model, *micro_batch)
            updated.update(source)
            model.zero_grad()
    for source, batches in data.items():
        with captured.capture(source, accumulate_steps=steps):
            for number, micro_batches in enumerate(batches):
                assert captured.batches[source] == number
                for micro_batch in micro_batches:
                    backward(model, *micro_batch)
    assert_same_statistics(captured, updated)
    assert not any(grad is not None for grad in gradients(model))


def test_gradients_are_freed_during_backward(model, device, monkeypatch):
    """When the first layer gets its gradient, the last layer's is gone."""
    monkeypatch.setattr(capture, "TOGETHER", 5 * 33 + 5)  # as much as the last layer has
    seen = []
    probe = aimfair.Sensitivity(model, ("a",))
    with probe.capture("a"):
        model.conv.weight.register_hook(lambda _: seen.append(model.head.weight.grad))
        backward(model, *batch(device))
        assert seen == [None]
        assert not any(grad is not None for grad in gradients(model))
    assert probe.mean("a")["head.weight"].any()


def test_gradients_present_on_entry_do_not_count(model, device):
    first, second = batch(device), batch(device)
    expected, probe = aimfair.Sensitivity(model, ("a",)), aimfair.Sensitivity(model, ("a",))
    backward(model, *second)
    expected.update("a")
    model.zero_grad()
    backward(model, *first)
    with probe.capture("a"):
        backward(model, *second)
    assert_same_statistics(probe, expected)


def test_hooks_are_gone_afterwards(model, device):
    probe = aimfair.Sensitivity(model, ("a",))
    with probe.capture("a"):
        backward(model, *batch(device))
    with pytest.raises(ZeroDivisionError), probe.capture("a"):
        raise ZeroDivisionError
    before = probe.mean("a")
    backward(model, *batch(device))
    assert model.head.weight.grad is not None
    assert probe.batches == {"a": 1}
    assert all(torch.equal(value, before[name]) for name, value in probe.mean("a").items())


@pytest.mark.parametrize("together", [1, capture.TOGETHER])
def test_parameters_that_miss_some_backward_passes(device, together, monkeypatch):
    """Branches: each of three micro-batches of a batch reaches other parameters, the last one only the trunk."""
    monkeypatch.setattr(capture, "TOGETHER", together)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("trunk", "left", "right")}).to(device)
    data = torch.randn(4, 3, 2, 4, device=device)

    def loss(x: Tensor, branch: int) -> Tensor:
        trunk = model["trunk"](x)
        return (trunk if branch == 2 else model[("left", "right")[branch]](trunk)).square().sum()

    captured, updated = aimfair.Sensitivity(model, ("a",)), aimfair.Sensitivity(model, ("a",))
    for micro_batches in data:
        for branch, x in enumerate(micro_batches):
            loss(x, branch).backward()
        updated.update("a")
        model.zero_grad()
    with captured.capture("a", accumulate_steps=3):
        for micro_batches in data:
            for branch, x in enumerate(micro_batches):
                loss(x, branch).backward()
    assert captured.batches == {"a": 4}
    assert_same_statistics(captured, updated)
    assert captured.mean("a")["left.weight"].any()


def test_batches_count_although_no_parameter_is_in_all_of_them(device):
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("left", "right")}).to(device)
    probe = aimfair.Sensitivity(model, ("a",))
    with probe.capture("a"):
        for name in ("left", "right", "left"):
            model[name](torch.randn(2, 4, device=device)).sum().backward()
    assert probe.batches == {"a": 3}


def test_a_parameter_used_twice_counts_once(device):
    layer = nn.Linear(4, 4).to(device)
    captured, updated = aimfair.Sensitivity(layer, ("a",)), aimfair.Sensitivity(layer, ("a",))
    x = torch.randn(2, 4, device=device)
    layer(layer(x)).sum().backward()
    updated.update("a")
    with captured.capture("a"):
        layer(layer(x)).sum().backward()
    assert_same_statistics(captured, updated)


def test_partial_batch_is_refused_and_leaves_nothing(model, device):
    probe = aimfair.Sensitivity(model, ("a",))
    expected = aimfair.Sensitivity(model, ("a",))
    data = [batch(device) for _ in range(5)]

    def five_of_six() -> None:
        with probe.capture("a", accumulate_steps=3):
            for micro_batch in data:
                backward(model, *micro_batch)

    message = r"capture\('a'\) ended after 2 of the 3 backward passes.*'scale' and \d+ others were dropped"
    with pytest.raises(RuntimeError, match=message):
        five_of_six()
    assert not any(grad is not None for grad in gradients(model))
    for micro_batch in data[:3]:
        backward(model, *micro_batch)
    expected.update("a")
    assert_same_statistics(probe, expected)
    with pytest.raises(ValueError, match="accumulate_steps=0"):
        probe.capture("a", accumulate_steps=0)


def test_gradients_removed_in_the_middle_are_missed(model, device):
    probe = aimfair.Sensitivity(model, ("a",))

    def clears_between_micro_batches() -> None:
        with probe.capture("a", accumulate_steps=2):
            backward(model, *batch(device))
            model.head.zero_grad()
            (model.conv.weight.sum() * model.norm.weight.sum()).backward()

    with pytest.raises(RuntimeError, match=r"gradient of 'head\.weight' was removed in the middle of a batch"):
        clears_between_micro_batches()


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(_, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_, grad: Tensor) -> Tensor:
        raise MemoryError("out of memory")


def failing_backward(model: Toy, device: torch.device) -> None:
    """Reaches the head, then fails."""
    x = _Fails.apply(torch.randn(2, 33, device=device, requires_grad=True))
    model.head(x).sum().backward()


def test_failure_inside_a_counting_backward_spoils_the_source(model, device):
    probe = aimfair.Sensitivity(model, SOURCES)
    with pytest.raises(MemoryError), probe.capture("a"):
        failing_backward(model, device)
    for use in (probe.update, probe.capture, probe.mean):
        with pytest.raises(RuntimeError, match=r"'a' holds part of a batch; reset\(\)"):
            use("a")
    with pytest.raises(RuntimeError, match="part of a batch"):
        probe.save("never-written")
    probe.reset("a")
    with probe.capture("a"):
        backward(model, *batch(device))
    assert probe.batches == {"a": 1, "b": 0}


def test_failure_elsewhere_does_not(model, device):
    """In the first of two micro-batches, or between batches: nothing was counted, nothing is lost."""
    probe = aimfair.Sensitivity(model, ("a",))

    def fails_in_the_second_batch() -> None:
        with probe.capture("a", accumulate_steps=2):
            backward(model, *batch(device))
            backward(model, *batch(device))
            failing_backward(model, device)

    def fails_after_a_batch() -> None:
        with probe.capture("a"):
            backward(model, *batch(device))
            raise KeyboardInterrupt

    with pytest.raises(MemoryError):
        fails_in_the_second_batch()
    with pytest.raises(KeyboardInterrupt):
        fails_after_a_batch()
    assert probe.batches == {"a": 2}
    assert probe.mean("a")["head.weight"].any()
    assert not any(grad is not None for grad in gradients(model))


def test_going_on_after_a_failed_backward_is_refused(model, device):
    probe = aimfair.Sensitivity(model, ("a",))

    def goes_on() -> None:
        with probe.capture("a"):
            with pytest.raises(MemoryError):
                failing_backward(model, device)
            backward(model, *batch(device))

    with pytest.raises(RuntimeError, match="backward pass before this one failed"):
        goes_on()
    with pytest.raises(RuntimeError, match="part of a batch"):
        probe.mean("a")


def test_nonfinite_gradients_stop_the_backward_by_name(model, device):
    probe = aimfair.Sensitivity(model, ("a",))
    images, labels = batch(device)
    images[0] = torch.nan
    if device.type == "cpu":
        with pytest.raises(FloatingPointError, match=r"'a': scale \(1\), conv\.weight \(216\)"), probe.capture("a"):
            backward(model, images, labels)
    else:
        with probe.capture("a"):
            backward(model, images, labels)
        with pytest.raises(FloatingPointError, match=r"head\.weight"):
            probe.select("top_k", criterion="fisher", density=0.5)


def test_autocast_and_grad_scaler(model, device):
    captured, updated = aimfair.Sensitivity(model, ("a",)), aimfair.Sensitivity(model, ("a",))
    scaler = torch.amp.GradScaler(device.type, init_scale=512.0)

    def scaled_backward(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()

    data = [batch(device) for _ in range(4)]
    with captured.capture("a", accumulate_steps=2, grad_scale=scaler):  # the scaler makes its scale at the first use
        for micro_batch in data:
            scaled_backward(*micro_batch)
    for number, micro_batch in enumerate(data):
        scaled_backward(*micro_batch)
        if number % 2:
            updated.update("a", grad_scale=scaler)
            model.zero_grad()
    assert_same_statistics(captured, updated)
    assert 0 < captured.mean("a")["head.bias"].abs().max() < 10  # divided by 512


def test_checkpointed_layers(device):
    body, head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(device), nn.Linear(4, 2).to(device)
    model = nn.ModuleList([body, head])
    x = torch.randn(3, 4, device=device)
    captured, updated = aimfair.Sensitivity(model, ("a",)), aimfair.Sensitivity(model, ("a",))
    head(body(x)).sum().backward()
    updated.update("a")
    with captured.capture("a"):
        head(checkpoint(body, x, use_reentrant=False)).sum().backward()
    assert_same_statistics(captured, updated)


def test_compiled_model(model, device):
    compiled = torch.compile(model, backend="aot_eager")
    probe = aimfair.Sensitivity(compiled, ("a",))
    images, labels = batch(device)
    with probe.capture("a"):
        backward(compiled, images, labels)
    backward(model, images, labels)
    torch.testing.assert_close(probe.mean("a")["body.0.weight"], model.body[0].weight.grad)
    assert same_bits(probe.mean("a")["unused"], torch.zeros_like(model.unused))


class FakeStream:
    def __init__(self, name: str, log: list[str]):
        self.name, self._log, self.cuda_stream = name, log, hash(name)

    def wait_stream(self, other: "FakeStream") -> None:
        self._log.append(f"{self.name} waits for {other.name}")


def count_in_log(probe: aimfair.Sensitivity, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    add = probe._statistics.add

    def logged(source, indices, *arguments):
        log.append(f"count {list(indices)}")
        add(source, indices, *arguments)

    monkeypatch.setattr(probe._statistics, "add", logged)


def test_gradients_of_another_stream_are_waited_for_and_their_memory_is_kept(model, device, monkeypatch):
    """backward() from another stream than the forward pass: hooks run on that of the forward pass, the end on the
    caller's."""
    log: list[str] = []
    forward, caller = FakeStream("forward", log), FakeStream("caller", log)
    now = [forward]
    end = capture.GradientCapture._on_backward_end

    def end_on_the_callers_stream(self) -> None:
        now[0] = caller
        end(self)

    monkeypatch.setattr(streams, "current_stream", lambda _: now[0])
    monkeypatch.setattr(capture.GradientCapture, "_on_backward_end", end_on_the_callers_stream)
    probe = aimfair.Sensitivity(model, SOURCES)
    count_in_log(probe, log, monkeypatch)
    with probe.capture("a"):
        backward(model, *batch(device))
    assert log[::2] == ["caller waits for forward", "forward waits for caller"]
    assert log[1].startswith("count [0, 1, ")


def test_hooks_on_two_streams(device, monkeypatch):
    """What is counted together is waited for on each of its streams; on one stream nothing is."""
    log: list[str] = []
    first, second = FakeStream("first", log), FakeStream("second", log)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).to(device)
    running = [first]
    monkeypatch.setattr(capture, "TOGETHER", 18)
    monkeypatch.setattr(streams, "current_stream", lambda _: running[0])
    probe = aimfair.Sensitivity(model, SOURCES)
    count_in_log(probe, log, monkeypatch)
    on_gradient = capture.GradientCapture._on_gradient

    def hook(self, index: int, parameter: Tensor) -> None:
        running[0] = second if index == 0 else first
        on_gradient(self, index, parameter)

    monkeypatch.setattr(capture.GradientCapture, "_on_gradient", hook)
    with probe.capture("a"):
        model(torch.randn(2, 3, device=device)).square().sum().backward()
    assert log == ["second waits for first", "count [0, 1]", "first waits for second"]
    log.clear()
    monkeypatch.setattr(capture.GradientCapture, "_on_gradient", on_gradient)
    running[0] = second
    with probe.capture("b"):
        model[0](torch.randn(2, 3, device=device)).square().sum().backward()
    assert log == ["count [0]"]
