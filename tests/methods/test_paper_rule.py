"""The recipe ``paper`` against AIM-Fair as arXiv 2503.05665 describes it, computed in a few lines of plain PyTorch.

Of each source the mean over batches of the gradient of the batch-mean loss, in training mode; per named tensor the mean
absolute difference; the k tensors of least domain difference and the k of greatest bias difference; their intersection.
"""

import pytest
import torch
from torch.nn import functional as F

from aimfair.base.seeds import generator
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.execution import logits
from aimfair.training.feed import Normalize
from aimfair.training.models import build_model
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import ModelSettings, SensitivitySettings
from tests.training.samples import images

RESNET18 = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
"""ResNet-18 with an eighth of its channels."""
MODEL = ModelSettings(config=RESNET18, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def model():
    model = build_model(MODEL, 2, 100)
    assert len(list(model.parameters())) == 62
    return model


def chosen_by_the_paper(gradients, names, k):
    """The names of the intersection.

    Args:
        gradients: source -> name -> mean gradient.
    """

    def score(a, b):  # in float32, as torch gives it
        return (a.double() - b.double()).abs().mean().float().item()

    real, biased, fair = (gradients[source] for source in SOURCES)
    domain = [(score(real[name], biased[name]), order) for order, name in enumerate(names)]
    bias = [(-score(biased[name], fair[name]), order) for order, name in enumerate(names)]
    least_domain, most_bias = ({order for _, order in sorted(scores)[:k]} for scores in (domain, bias))
    return {names[order] for order in least_domain & most_bias}


def selected(probe, k):
    method = Tune(rule="intersection", granularity="tensor", bias_k=k, domain_k=k)
    return select_mask(probe, "paper", method, 100)


@pytest.mark.parametrize("k", [55, 40])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_tensors_from_the_same_gradients(model, k, seed):
    random = torch.Generator().manual_seed(seed)
    probe, names = Sensitivity(model, SOURCES), [name for name, _ in model.named_parameters()]
    gradients = {
        source: {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
        for source in SOURCES
    }
    scales = {name: 10 ** float(torch.randn((), generator=random)) for name in names}
    for source in SOURCES:
        for _ in range(3):
            for name, p in model.named_parameters():
                p.grad = scales[name] * torch.rand((), generator=random) * torch.randn(p.shape, generator=random)
                gradients[source][name] += p.grad.double() / 3
            probe.update(source)
    wanted = chosen_by_the_paper(gradients, names, k)
    assert 2 * k - 62 <= len(wanted) < 62
    assert selected(probe, k) == ParameterMask.from_names(model, wanted)


@pytest.mark.parametrize("k", [55, 40])
def test_ties_go_to_the_first_tensor(model, k):
    """Gradients of few different values, exact in float32."""
    random = torch.Generator().manual_seed(9)
    probe, names = Sensitivity(model, SOURCES), [name for name, _ in model.named_parameters()]
    gradients = {}
    for source in SOURCES:
        for p in model.parameters():
            p.grad = torch.full(p.shape, float(torch.randint(0, 3, (), generator=random)))
        gradients[source] = {name: p.grad.double() for name, p in model.named_parameters()}
        probe.update(source)
    wanted = chosen_by_the_paper(gradients, names, k)
    assert selected(probe, k) == ParameterMask.from_names(model, wanted)


def test_gradients_are_those_of_batch_means_in_training_mode(model):
    sets = {
        source: images(24, seed, bias=bias)
        for seed, (source, bias) in enumerate(zip(SOURCES, (0.9, 0.9, 0.5), strict=True))
    }
    settings = SensitivitySettings(batch_size=8, train_mode=True)
    probe = measure_sensitivity(model, sets, settings, MODEL, seed=100)
    names = [name for name, _ in model.named_parameters()]
    copy = build_model(MODEL, 2, 100).train()
    for source, whole in sets.items():
        copy.zero_grad()
        for indices in generator(100, "sensitivity", source).permutation(24).reshape(3, 8):
            x = Normalize(MODEL, torch.device("cpu"))(whole.images[indices])
            (F.cross_entropy(logits(copy, x), torch.from_numpy(whole.target[indices])) / 3).backward()
        expected = {name: p.grad for name, p in copy.named_parameters()}
        for name, mean in probe.mean(source).items():
            torch.testing.assert_close(mean, expected[name], rtol=1e-4, atol=1e-6)
    # From the very same numbers: two normalisations before one addition have equal gradients but for their rounding.
    gradients = {source: probe.mean(source) for source in SOURCES}
    for k in (55, 40):
        wanted = chosen_by_the_paper(gradients, names, k)
        assert selected(probe, k) == ParameterMask.from_names(model, wanted)

    frozen = measure_sensitivity(model, sets, settings.model_copy(update={"train_mode": False}), MODEL, seed=100)
    name = names[0]
    assert not torch.allclose(frozen.mean("real_biased")[name], probe.mean("real_biased")[name], rtol=1e-2)
