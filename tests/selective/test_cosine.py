"""The criterion ``cosine`` against float64, and what it says where there is no direction."""

import math

import pytest
import torch
from torch import Tensor, nn

import aimfair

from .models import Toy, random_gradients, set_gradients
from .test_rules import BIAS, COUNTS, DOMAIN, History, assert_mask, both, chosen, fed, history, mean, model, units_of

__all__ = ["history", "model"]

GRANULARITIES = pytest.mark.parametrize("granularity", ["row", "tensor"])


@pytest.fixture
def probe(model: Toy, history: History) -> aimfair.Sensitivity:
    return fed(aimfair.Sensitivity(model, COUNTS, statistics="sum"), model, history)


def rows(values: Tensor, granularity: str) -> Tensor:
    """[units, n] of one tensor."""
    if not values.numel():
        return values.reshape(0, 1)
    return values.reshape(1 if granularity == "tensor" else len(values) if values.dim() >= 2 else values.numel(), -1)


def reference(history: History, contrast: tuple[str, str], granularity: str) -> dict[str, Tensor]:
    """Name -> float64 1 - cos of each unit."""
    a, b = (mean(history, source) for source in contrast)
    scores = {}
    for name in a:
        u, v = (rows(side[name].double(), granularity) for side in (a, b))
        scores[name] = 1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    return scores


def of_elements(units: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of units as those of their elements, as the reference selection takes them."""
    return {
        name: score.float().repeat_interleave(like[name].numel() // max(score.numel(), 1)).view(like[name].shape)
        for name, score in units.items()
    }


@GRANULARITIES
@pytest.mark.parametrize("contrast", ["bias", "domain"])
def test_unit_scores(probe, history, granularity, contrast):
    scores = probe.unit_scores("cosine", contrast=contrast, granularity=granularity)
    expected = reference(history, {"bias": BIAS, "domain": DOMAIN}[contrast], granularity)
    for name, score in scores.items():
        assert score.dtype == torch.float32
        torch.testing.assert_close(score.double(), expected[name].to(score.device), rtol=1e-5, atol=1e-6)


@GRANULARITIES
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_small_angles_and_scales(granularity, scale):
    """1 - cos of a right-angled triangle with a short side: exact where the plain formula rounds to nothing."""
    layer = nn.Linear(64, 3, bias=False)
    direction, other = torch.zeros(3, 64), torch.zeros(3, 64)
    direction[:, ::2], other[:, 1::2] = scale, scale
    probe = aimfair.Sensitivity(layer, ("a", "b"))
    for source, tilt in (("a", 0.0), ("b", 1e-4)):
        layer.weight.grad = direction + tilt * other
        probe.update(source)
    scores = probe.unit_scores("cosine", granularity=granularity)["weight"]
    exact = 2 * math.sin(math.atan(1e-4) / 2) ** 2
    assert scores.tolist() == pytest.approx([exact] * len(scores), rel=1e-3)


def test_units_without_a_direction():
    layer = nn.Linear(4, 4, bias=False)
    probe = aimfair.Sensitivity(layer, ("a", "b"))
    a = torch.tensor([[0.0] * 4, [0.0] * 4, [1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    b = torch.tensor([[0.0] * 4, [1.0, 0.0, 0.0, 0.0], [0.0] * 4, [-2.0, -4.0, -6.0, -8.0]])
    for source, grad in (("a", a), ("b", b)):
        layer.weight.grad = grad
        probe.update(source)
    scores = probe.unit_scores("cosine", granularity="row")["weight"]
    assert scores.tolist() == pytest.approx([0.0, 1.0, 1.0, 2.0])
    assert scores.max() <= 2


@GRANULARITIES
def test_rules(probe, model, granularity):
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    units = units_of(model, granularity)

    k = units // 3
    mask = probe.select("top_k", criterion="cosine", granularity=granularity, k=k)
    scores = probe.unit_scores("cosine", granularity=granularity)
    assert_mask(mask, chosen(of_elements(scores, zeros), k, granularity))

    sizes = {"bias_density": 0.7, "domain_density": 0.8}
    mask = probe.select("intersection", criterion="cosine", granularity=granularity, **sizes)
    by_domain = probe.unit_scores("cosine", contrast="domain", granularity=granularity)
    top = chosen(of_elements(scores, zeros), round(0.7 * units), granularity)
    bottom = chosen(of_elements(by_domain, zeros), round(0.8 * units), granularity, largest=False)
    assert_mask(mask, both(top, bottom))

    for criteria in ({}, {"domain_criterion": "difference"}):
        mask = probe.select("ratio", criterion="cosine", granularity=granularity, k=k, eps=1e-3, **criteria)
        below = probe.unit_scores(
            criteria.get("domain_criterion", "cosine"), contrast="domain", granularity=granularity
        )
        ratio = {name: scores[name] / (below[name] + 1e-3) for name in scores}
        assert_mask(mask, chosen(of_elements(ratio, zeros), k, granularity))
    mixed = probe.select(
        "intersection", criterion="magnitude", source="fair", domain_criterion="cosine", granularity=granularity,
        bias_density=1.0, domain_k=k,
    )  # fmt: skip
    assert_mask(mixed, chosen(of_elements(by_domain, zeros), k, granularity, largest=False))


def test_one_thread_or_two(probe):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(probe.unit_scores("cosine"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_is_refused(probe, model, history):
    with pytest.raises(ValueError, match="granularity must be row or tensor, found 'element'"):
        probe.select("top_k", criterion="cosine", k=5)
    with pytest.raises(ValueError, match="granularity must be row or tensor"):
        probe.select("ratio", domain_criterion="cosine", k=5)
    signed = fed(
        aimfair.Sensitivity(model, COUNTS, statistics="signed", batches={s: len(b) for s, b in history.items()}),
        model,
        history,
    )
    with pytest.raises(ValueError, match=r"criterion 'cosine' needs the sums"):
        signed.select("top_k", criterion="cosine", granularity="row", k=5)
    set_gradients(model, random_gradients(model))
    probe._statistics._views["sum/fair"][probe._statistics.names.index("head.bias")][2] = torch.inf
    for granularity in ("row", "tensor"):
        with pytest.raises(RuntimeError, match=r"a\[12\].*NaN.*\(parameter 'head\.bias'\)"):
            probe.select("top_k", criterion="cosine", granularity=granularity, k=2)
