"""Optimizer state in host memory: the bits of state on the device, and copies in an order that streams guarantee.

On a CPU a fake engine copies at once, and raises where only luck would have ordered two accesses on a GPU.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective import launch, offload, step_in_backward

from .models import Toy, backward, batch, random_gradients, same_bits, set_gradients, toy

Clock = dict[str, int]
"""Stream -> how many of its operations are known to be over."""


@dataclass
class Access:
    stream: str
    number: int
    write: bool


@dataclass
class CheckedCopies:
    """Vector clocks of the streams, and the accesses to every buffer.

    Attributes:
        broken: the call that forgets what to wait for.
        sizes: of host memory, in bytes.
    """

    where: torch.device
    broken: str = ""
    clocks: dict[str, Clock] = field(default_factory=lambda: {name: {} for name in ("host", "up", "down", "work")})
    accesses: dict[int, list[Access]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def host(self, nbytes: int) -> Tensor:
        self.sizes.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    def device(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, device: Tensor, host: Tensor, after: Sequence[Clock]) -> Clock:
        self.calls.append("upload")
        return self._copy("up", device, host, [] if self.broken == "upload" else after)

    def download(self, host: Tensor, device: Tensor, after: Sequence[Clock]) -> Clock:
        self.calls.append("download")
        return self._copy("down", host, device, [] if self.broken == "download" else after)

    def record(self) -> Clock:
        return dict(self.clocks["work"])

    def wait(self, events: Sequence[Clock]) -> None:
        if self.broken != "wait":
            self._learn("work", events)

    def synchronize(self) -> None:
        if self.broken != "synchronize":
            self._learn("host", [self.clocks["down"]])

    def _copy(self, stream: str, to: Tensor, source: Tensor, after: Sequence[Clock]) -> Clock:
        self.access(stream, after, reads=[source], writes=[to])
        to.copy_(source)
        return dict(self.clocks[stream])

    def _learn(self, stream: str, events: Iterable[Clock]) -> None:
        clock = self.clocks[stream]
        for event in events:
            for other, number in event.items():
                clock[other] = max(clock.get(other, 0), number)

    def access(
        self, stream: str, after: Sequence[Clock] = (), *, reads: Sequence[Tensor], writes: Sequence[Tensor]
    ) -> None:
        """One operation of a stream, which begins after the host has queued it and after ``after``."""
        self._learn(stream, [*after, self.clocks["host"]])
        clock = self.clocks[stream]
        clock[stream] = clock.get(stream, 0) + 1
        for tensors, write in ((reads, False), (writes, True)):
            for address in {tensor.untyped_storage().data_ptr() for tensor in tensors}:
                known = self.accesses.setdefault(address, [])
                for other in known:
                    assert clock.get(other.stream, 0) >= other.number or not (write or other.write), (
                        f"{stream} {'writes' if write else 'reads'} what {other.stream} may not have finished with"
                    )
                known.append(Access(stream, clock[stream], write))


@pytest.fixture
def engines(device, monkeypatch) -> list[CheckedCopies]:
    """Those that the optimizers of a test use, on a CPU."""
    made: list[CheckedCopies] = []
    if device.type == "cpu":

        def make(where: torch.device) -> CheckedCopies:
            made.append(CheckedCopies(where))
            return made[-1]

        def step(self: Any, operator: Any, lists: Any, grads: Any, **options: Any) -> None:
            if self.bucket is not None:
                state = [t for name, tensors in lists.items() if name not in ("params", "steps") for t in tensors]
                made[-1].access("work", reads=[], writes=state)
            ordinary(self, operator, lists, grads, **options)

        ordinary = launch.Launch.step
        monkeypatch.setattr(launch.Launch, "step", step)
        monkeypatch.setattr(offload, "COPIES", make)
        monkeypatch.setattr(offload, "can_copy", lambda _: True)
    monkeypatch.setattr(offload, "BUCKET_BYTES", 1500)
    monkeypatch.setattr(step_in_backward, "TOGETHER", 1000)
    return made


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


CASES: list[tuple[type, dict[str, Any]]] = [
    (aimfair.MaskedAdamW, {"lr": 0.05}),
    (aimfair.MaskedAdamW, {"lr": 0.05, "amsgrad": True, "moment_bits": 16}),
    (aimfair.MaskedAdamW, {"lr": 0.05, "moment_bits": 8}),
    (aimfair.MaskedSGD, {"lr": 0.05, "momentum": 0.9}),
    (aimfair.MaskedSGD, {"lr": 0.05}),
]
every_case = pytest.mark.parametrize(("kind", "options"), CASES)


def pair(model: nn.Module, kind: type, options: dict[str, Any], masked: bool = True) -> Any:
    twin = copy.deepcopy(model)
    mask = aimfair.ParameterMask.random(model, 0.4) if masked else None
    return twin, *(
        kind(each.named_parameters(), mask, state="compact", offload=each is model, **options) for each in (model, twin)
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, Tensor]) -> None:
    set_gradients(model, gradients)
    optimizer.step()


def assert_same(model: nn.Module, twin: nn.Module, offloaded: Any, plain: Any) -> None:
    saved, expected = offloaded.state_dict()["state"], plain.state_dict()["state"]
    assert saved.keys() == expected.keys()
    for (name, value), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert same_bits(value.detach(), other.detach()), name
    for key, entry in saved.items():
        for name, value in entry.items():
            assert value.device.type == "cpu" or name == "step"
            assert same_bits(value.cpu(), expected[key][name].cpu()), (key, name)


@every_case
@pytest.mark.parametrize("masked", [True, False])
def test_same_bits_as_on_the_device(model, kind, options, masked, engines):
    twin, offloaded, plain = pair(model, kind, options, masked)
    for number in range(4):
        gradients = random_gradients(model)
        if number == 2:
            del gradients["norm.weight"], gradients["body.0.weight"]
        step(model, offloaded, gradients)
        step(twin, plain, gradients)
    assert_same(model, twin, offloaded, plain)


@pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="reads the fake engine")
@pytest.mark.parametrize(("bits", "sizes"), [(32, [4096, 4096, 5632]), (16, [4096, 3072]), (8, [3584])])
def test_buckets_have_no_more_than_a_power_of_two(bits, sizes, engines, monkeypatch):
    """Which torch would round up to the next; but for tensors that alone have more. Of 8 bits all are in one."""
    monkeypatch.setattr(offload, "BUCKET_BYTES", 4096)
    model = nn.ParameterList([torch.zeros(count) for count in (200, 200, 200, 200, 700)])
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), state="compact", offload=True, moment_bits=bits)
    step(model, optimizer, random_gradients(model))
    assert engines[0].sizes == sizes


@pytest.mark.parametrize("rounding", [{"master_weights": True}, {"stochastic_rounding": True}])
def test_weights_of_16_bits(model, rounding, engines):
    model = model.bfloat16()
    twin, offloaded, plain = pair(model, aimfair.MaskedAdamW, {"lr": 0.05, **rounding})
    for _ in range(3):
        gradients = random_gradients(model)
        step(model, offloaded, gradients)
        step(twin, plain, gradients)
    assert_same(model, twin, offloaded, plain)


@every_case
@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_in_the_backward_pass(model, kind, options, max_norm, engines, device):
    twin, offloaded, plain = pair(model, kind, options)
    with offloaded.step_in_backward(max_norm=max_norm):
        for _ in range(3):
            data = batch(device)
            backward(model, *data)
            plain.zero_grad()
            backward(twin, *data)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(twin.parameters(), max_norm, foreach=False)
            plain.step()
    assert_same(model, twin, offloaded, plain)


@every_case
def test_loading_and_copies(model, kind, options, engines):
    twin, offloaded, plain = pair(model, kind, options)
    gradients = [random_gradients(model) for _ in range(3)]
    step(model, offloaded, gradients[0])
    step(twin, plain, gradients[0])
    resumed = kind(model.named_parameters(), offloaded.mask, state="compact", offload=True, **options)
    resumed.load_state_dict(plain.state_dict())
    step(model, resumed, gradients[1])
    step(twin, plain, gradients[1])
    plain.load_state_dict(resumed.state_dict())
    other = copy.deepcopy(resumed)
    assert other.offload
    for entry in resumed.state.values():  # something else puts other tensors in their places
        entry.update({name: value.clone() for name, value in entry.items() if name == "exp_avg"})
    step(model, resumed, gradients[2])
    step(twin, plain, gradients[2])
    assert_same(model, twin, resumed, plain)


@pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="the fake engine")
@pytest.mark.parametrize("broken", ["upload", "download", "wait", "synchronize"])
def test_a_forgotten_wait_is_found(model, broken, engines):
    _, optimizer, _ = pair(model, aimfair.MaskedAdamW, {"lr": 0.05})
    step(model, optimizer, random_gradients(model))
    engines[0].broken = broken

    def steps_and_reads() -> None:
        for _ in range(2):
            step(model, optimizer, random_gradients(model))
        state = optimizer.state_dict()["state"]
        engines[0].access("host", reads=[v for e in state.values() for n, v in e.items() if n != "step"], writes=[])

    with pytest.raises(AssertionError, match="may not have finished with"):
        steps_and_reads()


def test_the_next_bucket_is_sent_before_this_one_is_stepped(model, engines, device):
    """From the second step on."""
    if device.type != "cpu":
        pytest.skip("the fake engine")
    _, optimizer, _ = pair(model, aimfair.MaskedAdamW, {"lr": 0.05})
    step(model, optimizer, random_gradients(model))
    engines[0].calls.clear()
    step(model, optimizer, random_gradients(model))
    calls = engines[0].calls
    assert calls[:3] == ["upload", "upload", "download"]
    assert calls == ["upload", *["upload", "download"] * (len(calls) // 2 - 1), "download"]


@pytest.mark.parametrize(("options", "message"), [
    ({"state": "dense"}, 'offload=True needs state="compact"'),
    ({"offload": 1}, "offload=1: expected True or False"),
])  # fmt: skip
def test_refusals(model, options, message, engines):
    error = TypeError if "offload" in options else ValueError
    with pytest.raises(error, match=message):
        aimfair.MaskedAdamW(model.named_parameters(), **{"offload": True, "state": "compact", **options})


def test_what_else_is_refused(model, engines):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), state="compact", offload=True)
    with pytest.raises(ValueError, match="keep_copy is not valid with offload=True"):
        optimizer.record_delta(keep_copy=True)
    with pytest.raises(ValueError, match="offload is an option of the whole optimizer"):
        optimizer.add_param_group({"params": [], "offload": True})


def test_parameters_on_the_cpu_are_refused():
    with pytest.raises(ValueError, match=r"'scale' is on cpu, where its state is anyway"):
        aimfair.MaskedAdamW(toy().named_parameters(), state="compact", offload=True)
