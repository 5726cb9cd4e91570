"""Sensitivity of a model to sources of images."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.training.feed import Normalize
from aimfair.training.sensitivity import SOURCES, batches_of_each_source, measure_sensitivity
from aimfair.training.settings import SensitivitySettings
from tests.training.samples import MODEL, SIZE, ActAfter, Net, SmallMemory, images, state_bits

SETTINGS = SensitivitySettings(batch_size=8)
SETS = dict(zip(SOURCES, (images(30, 1), images(26, 2), images(40, 3)), strict=True))


def means(probe):
    return {source: probe.mean(source) for source in SOURCES}


def test_it_averages_the_gradients_of_batch_mean_losses():
    """With batches that hold the whole source the order has no influence, and the mean is plain autograd's."""
    sets = {source: images(12, seed) for seed, source in enumerate(SOURCES)}
    model = Net().eval()
    probe = measure_sensitivity(model, sets, SensitivitySettings(batch_size=12), MODEL, seed=100)
    for source, source_images in sets.items():
        x = Normalize(MODEL, torch.device("cpu"))(source_images.images)
        F.cross_entropy(model(x), torch.from_numpy(source_images.target)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(probe.mean(source)[name], parameter.grad, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(probe.mean_square(source)[name], parameter.grad**2, rtol=1e-4, atol=1e-8)
        model.zero_grad()


def test_every_source_gives_as_many_whole_batches_as_the_smallest():
    assert batches_of_each_source(SETS, SETTINGS) == 3
    assert batches_of_each_source(SETS, SensitivitySettings(batch_size=8, batches=2)) == 2
    assert measure_sensitivity(Net(), SETS, SETTINGS, MODEL, seed=1).batches == dict.fromkeys(SOURCES, 3)


def test_equal_sources_react_equally():
    """Nothing but the images tells one source from another: without a difference there is no score."""
    whole = images(8, 1)
    probe = measure_sensitivity(Net(), dict.fromkeys(SOURCES, whole), SETTINGS, MODEL, seed=1)
    for source in SOURCES[1:]:
        for name, mean in probe.mean(source).items():
            torch.testing.assert_close(mean, probe.mean(SOURCES[0])[name], rtol=1e-4, atol=1e-6)


def test_the_result_is_a_function_of_the_seed():
    settings = SensitivitySettings(batch_size=8, batches=1, train_mode=True)
    first, again, other = (means(measure_sensitivity(Net(), SETS, settings, MODEL, seed=seed)) for seed in (1, 1, 2))
    for source in SOURCES:
        for name, mean in first[source].items():
            assert torch.equal(mean, again[source][name])
    assert any(not torch.equal(first[source]["head.weight"], other[source]["head.weight"]) for source in SOURCES)


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_model_is_left_as_it_was(train_mode):
    model = Net()
    before, random = state_bits(model), torch.get_rng_state()
    settings = SensitivitySettings(batch_size=8, train_mode=train_mode)
    measure_sensitivity(model, SETS, settings, MODEL, seed=1)
    assert state_bits(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_train_mode_takes_other_gradients():
    eval_mode, train_mode = (
        measure_sensitivity(Net(), SETS, SensitivitySettings(batch_size=8, train_mode=mode), MODEL, seed=1).mean(
            SOURCES[0]
        )
        for mode in (False, True)
    )
    assert not torch.allclose(eval_mode["convolution.weight"], train_mode["convolution.weight"], rtol=0.1)


def test_small_memory_gives_the_same():
    model = Net()
    small = measure_sensitivity(SmallMemory(model, 3), SETS, SETTINGS, MODEL, seed=1)
    large = measure_sensitivity(model, SETS, SETTINGS, MODEL, seed=1)
    for name, mean in large.mean(SOURCES[2]).items():
        torch.testing.assert_close(small.mean(SOURCES[2])[f"model.{name}"], mean, rtol=1e-4, atol=1e-6)


class OutOfMemoryInBackward(torch.autograd.Function):
    """Memory that runs out in the middle of a backward pass, when a part of its gradients is complete."""

    calls = 0

    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        OutOfMemoryInBackward.calls += 1
        if len(gradient) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return gradient


class Deep(Net):
    """Memory runs out after the head's gradients; batches of up to three images go through. A buffer that counts
    forward passes changes the result, so that attempts that failed would show."""

    def __init__(self, *, small_memory: bool, first: int = 0):
        super().__init__(batchnorm=True)
        self.small_memory, self.first = small_memory, first
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        x = torch.relu(self.norm(self.convolution(x))) * (1 + self.passes.item() / 10)
        if self.small_memory and OutOfMemoryInBackward.calls >= self.first:
            x = OutOfMemoryInBackward.apply(x)
        else:
            OutOfMemoryInBackward.calls += 1
        return self.head(self.dropout(x.flatten(1)))


@pytest.mark.parametrize("first", [0, 4])  # in the first batch; in the second source
@pytest.mark.parametrize("statistics", ["all", "sum", "signed"])
def test_a_backward_pass_that_fails_half_way_leaves_no_trace(statistics, first, monkeypatch):
    """Gradients are counted while it goes on; the statistics are those of parts that were small from the start."""
    monkeypatch.setattr("aimfair.selective.capture.TOGETHER", 1)  # count each gradient at once
    settings = SensitivitySettings(batch_size=8, statistics=statistics, train_mode=True)
    OutOfMemoryInBackward.calls = 0
    task = ActAfter(10**9, lambda: None)
    small = measure_sensitivity(Deep(small_memory=True, first=first), SETS, settings, MODEL, seed=1, task=task)
    assert task.done == 9  # nothing is reported twice
    assert small.batches == dict.fromkeys(SOURCES, 3)
    sizes_from_the_start = SmallMemory(Deep(small_memory=False), 3)
    expected = measure_sensitivity(sizes_from_the_start, SETS, settings, MODEL, seed=1)
    for name, tensor in expected._statistics.tensors().items():
        assert torch.equal(small._statistics.tensors()[name], tensor), name


def test_signed_statistics_select_what_all_of_them_do():
    probes = {
        kept: measure_sensitivity(Net(), SETS, SETTINGS.model_copy(update={"statistics": kept}), MODEL, seed=1)
        for kept in ("all", "sum", "signed")
    }
    for rule in ({"bias_density": 0.5, "domain_density": 0.6}, {"density": 0.1}):
        masks = [probe.select("intersection", **rule).to_bool() for probe in probes.values()]
        for mask in masks[1:]:
            agreeing = sum(int((mask[name] == masks[0][name]).sum()) for name in mask)
            assert agreeing >= 0.999 * sum(selected.numel() for selected in mask.values())


@pytest.mark.parametrize(("statistics", "floats"), [("all", 6), ("sum", 3), ("signed", 2)])
def test_what_is_kept_of_every_weight(statistics, floats):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 64), nn.Linear(64, 2))
    settings = SensitivitySettings(batch_size=8, statistics=statistics)
    probe = measure_sensitivity(model, SETS, settings, MODEL, seed=1)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in probe._statistics.tensors().values())
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 4 * floats * weights <= kept <= 4 * floats * weights + 5000


def test_gradients_are_freed_as_they_are_counted(monkeypatch):
    """With a batch in one piece no more than one tensor of a deep model holds a gradient at any time."""
    monkeypatch.setattr("aimfair.selective.capture.TOGETHER", 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8), *(nn.Linear(8, 8) for _ in range(6)))
    held = []
    for parameter in model.parameters():
        parameter.register_hook(lambda _: held.append(sum(p.grad is not None for p in model.parameters())))
    measure_sensitivity(model, SETS, SETTINGS.model_copy(update={"statistics": "signed"}), MODEL, seed=1)
    assert len(held) == 14 * 9
    assert max(held) <= 1


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(AimfairError, match=r"source synthetic_fair has 7 images, .*sensitivity\.batch_size is 8"):
        measure_sensitivity(Net(), {**SETS, "synthetic_fair": images(7)}, SETTINGS, MODEL, seed=1)


def test_nan_gradients_are_refused_by_name():
    model = Net()
    model.norm.weight.data[2] = float("nan")
    with pytest.raises(AimfairError, match=r"NaN or infinite gradients in source 'real_biased': .*convolution\.weight"):
        measure_sensitivity(model, SETS, SETTINGS, MODEL, seed=1)


@pytest.mark.parametrize("statistics", ["all", "sum", "signed"])
def test_gradients_whose_squares_exceed_float32_are_refused_by_name(statistics):
    model = Net()
    model.convolution.bias.register_hook(lambda gradient: torch.full_like(gradient, 2e19))
    settings = SETTINGS.model_copy(update={"statistics": statistics})
    with pytest.raises(
        AimfairError, match=r"^sensitivity: \w+/real_biased .* infinite values in convolution\.bias: .*lr"
    ):
        measure_sensitivity(model, SETS, settings, MODEL, seed=1)
