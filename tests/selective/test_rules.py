"""Every rule, criterion and granularity of Sensitivity.select against a straightforward computation."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective.statistics import GradientStatistics
from aimfair.selective.units import unit_counts

from .models import Toy, random_gradients, set_gradients, toy

COUNTS = {"real": 3, "biased": 2, "fair": 4}
DOMAIN, BIAS = ("real", "biased"), ("biased", "fair")
EPS = 1e-12
GRANULARITIES = ["element", "row", "tensor"]
CRITERIA = ["difference", "relative_difference", "norm_ratio"]

Scores = dict[str, Tensor]
History = dict[str, list[Scores]]

granularities = pytest.mark.parametrize("granularity", GRANULARITIES)
criteria = pytest.mark.parametrize("criterion", CRITERIA)


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


@pytest.fixture
def history(model) -> History:
    """Gradients per source and batch; tensors differ in scale, and sources in what they emphasise."""
    result: History = {source: [] for source in COUNTS}
    for source, count in COUNTS.items():
        emphasis = {name: torch.rand_like(p) * 10 ** float(torch.randn(())) for name, p in model.named_parameters()}
        for _ in range(count):
            noise = random_gradients(model)
            result[source].append({name: emphasis[name] * (1 + noise[name]) for name in emphasis})
    return result


@pytest.fixture
def probe(model, history) -> aimfair.Sensitivity:
    return fed(aimfair.Sensitivity(model, COUNTS), model, history)


def fed(probe: aimfair.Sensitivity, model: nn.Module, history: History) -> aimfair.Sensitivity:
    for source, batches in history.items():
        for gradients in batches:
            set_gradients(model, gradients)
            probe.update(source)
    return probe


# -- the straightforward computation ----------------------------------------------------------------------------------


def mean(history: History, source: str, power: int = 1) -> Scores:
    """Mean g or g^2 per element in fp32, batches added in order."""
    reciprocal = torch.tensor(1 / len(history[source]), dtype=torch.float32)
    means = {}
    for name, first in history[source][0].items():
        total = torch.zeros_like(first)
        for gradients in history[source]:
            total = total + (gradients[name] if power == 1 else gradients[name] * gradients[name])
        means[name] = total * reciprocal.to(total.device)
    return means


def element_scores(history: History, criterion: str, contrast: tuple[str, str], eps: float = EPS) -> Scores:
    power = 2 if criterion == "norm_ratio" else 1
    a, b = (mean(history, source, power) for source in contrast)
    formulas: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "difference": lambda x, y: (x - y).abs(),
        "relative_difference": lambda x, y: (x - y).abs() / ((x.abs() + y.abs()) + eps),
        "norm_ratio": lambda x, y: y.sqrt() / (x + eps).sqrt(),
    }
    return {name: formulas[criterion](a[name], b[name]) for name in a}


def unit_means(scores: Scores, granularity: str) -> Scores:
    """Mean score of each unit, in the shape (units, 1)."""
    units = {}
    for name, score in scores.items():
        rows = score.shape[0] if granularity == "row" and score.dim() >= 2 else score.numel()
        count = min(1, score.numel()) if granularity == "tensor" else rows
        units[name] = score.double().reshape(count, -1).mean(1).float() if score.numel() else score.flatten()
    return units


def chosen(scores: Scores, k: int, granularity: str, largest: bool = True) -> Scores:
    """Bool tensors of the k best units, by a stable sort."""
    units = unit_means(scores, granularity)
    flat = torch.cat([score.cpu() for score in units.values()])
    taken = torch.zeros(flat.numel(), dtype=torch.bool)
    taken[flat.sort(stable=True, descending=largest).indices[:k]] = True
    result = {}
    for (name, score), part in zip(scores.items(), taken.split([u.numel() for u in units.values()]), strict=True):
        repeats = score.numel() // part.numel() if part.numel() else 0
        result[name] = part.repeat_interleave(repeats).view(score.shape).to(score.device)
    return result


def units_of(model: nn.Module, granularity: str) -> int:
    return sum(unit_counts([tuple(p.shape) for p in model.parameters()], granularity))


def assert_mask(mask: aimfair.ParameterMask, expected: Scores) -> None:
    for name, selected in mask.to_bool().items():
        assert torch.equal(selected, expected[name]), name
    assert 0 < mask.nnz <= mask.numel


def both(x: Scores, y: Scores) -> Scores:
    return {name: x[name] & y[name] for name in x}


# -- units ------------------------------------------------------------------------------------------------------------


def test_units():
    shapes = [(), (7,), (4, 3), (8, 3, 3, 3), (0,), (0, 4), (3, 0), (1, 9)]
    assert unit_counts(shapes, "element") == [1, 7, 12, 216, 0, 0, 0, 9]
    assert unit_counts(shapes, "row") == [1, 7, 4, 8, 0, 0, 0, 1]
    assert unit_counts(shapes, "tensor") == [1, 1, 1, 1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="'rows', expected one of element, row, tensor"):
        unit_counts(shapes, "rows")


# -- rules ------------------------------------------------------------------------------------------------------------


@granularities
@criteria
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_top_k(probe, model, history, granularity, criterion, density):
    mask = probe.select("top_k", criterion=criterion, granularity=granularity, density=density)
    k = round(density * units_of(model, granularity))
    assert_mask(mask, chosen(element_scores(history, criterion, BIAS), k, granularity))
    assert mask == probe.select("top_k", criterion=criterion, granularity=granularity, k=k)


@granularities
@pytest.mark.parametrize("source", COUNTS)
def test_criteria_of_one_source(probe, model, history, granularity, source):
    k = units_of(model, granularity) // 3
    fisher = probe.select("top_k", criterion="fisher", source=source, granularity=granularity, k=k)
    assert_mask(fisher, chosen(mean(history, source, 2), k, granularity))
    magnitude = probe.select("top_k", criterion="magnitude", source=source, granularity=granularity, k=k)
    scores = {name: value.abs() for name, value in mean(history, source).items()}
    assert_mask(magnitude, chosen(scores, k, granularity))


@granularities
@criteria
def test_intersection(probe, model, history, granularity, criterion):
    units = units_of(model, granularity)
    mask = probe.select(
        "intersection", criterion=criterion, granularity=granularity, bias_density=0.6, domain_density=0.7
    )
    top = chosen(element_scores(history, criterion, BIAS), round(0.6 * units), granularity)
    bottom = chosen(element_scores(history, criterion, DOMAIN), round(0.7 * units), granularity, largest=False)
    assert_mask(mask, both(top, bottom))


@granularities
def test_intersection_with_counts_and_two_criteria(probe, model, history, granularity):
    units = units_of(model, granularity)
    mask = probe.select(
        "intersection", criterion="norm_ratio", domain_criterion="difference", granularity=granularity,
        bias_k=units // 2, domain_k=units - 1,
    )  # fmt: skip
    top = chosen(element_scores(history, "norm_ratio", BIAS), units // 2, granularity)
    bottom = chosen(element_scores(history, "difference", DOMAIN), units - 1, granularity, largest=False)
    assert_mask(mask, both(top, bottom))
    by_fisher = probe.select(
        "intersection", criterion="fisher", source="fair", granularity=granularity, bias_density=0.5, domain_density=0.9
    )
    top = chosen(mean(history, "fair", 2), round(0.5 * units), granularity)
    bottom = chosen(element_scores(history, "difference", DOMAIN), round(0.9 * units), granularity, largest=False)
    assert_mask(by_fisher, both(top, bottom))


def test_densities_and_counts(probe):
    assert probe.select("intersection", bias_density=1.0, domain_density=1.0).density == 1.0
    assert probe.select("intersection", bias_density=1, domain_density=1).density == 1.0
    assert probe.select("intersection", bias_k=1, domain_density=1.0).nnz == 1
    assert probe.select("top_k", density=1).density == 1.0


@granularities
@criteria
def test_ratio(probe, model, history, granularity, criterion):
    eps = 1e-6
    mask = probe.select("ratio", criterion=criterion, granularity=granularity, density=0.25, eps=eps)
    bias, domain = (element_scores(history, criterion, contrast, eps) for contrast in (BIAS, DOMAIN))
    scores = {name: bias[name] / (domain[name] + eps) for name in bias}
    assert_mask(mask, chosen(scores, round(0.25 * units_of(model, granularity)), granularity))


@granularities
@pytest.mark.parametrize("density", [0.02, 0.2, 0.9, 1.0])
def test_budget(probe, history, granularity, density):
    mask = probe.select("budget", granularity=granularity, density=density)
    bias, domain = (element_scores(history, "difference", contrast) for contrast in (BIAS, DOMAIN))
    bias_units, domain_units = (torch.cat(list(unit_means(s, granularity).values())).cpu() for s in (bias, domain))
    # A unit is in both sets once k passes the worse of its two places.
    places = torch.maximum(
        bias_units.sort(stable=True, descending=True).indices.argsort(),
        domain_units.sort(stable=True).indices.argsort(),
    )
    sizes = torch.cat([
        torch.full((units.numel(),), score.numel() // max(units.numel(), 1))
        for score, units in zip(bias.values(), unit_means(bias, granularity).values(), strict=True)
    ])  # fmt: skip
    held = torch.zeros(len(places), dtype=torch.int64).index_add_(0, places, sizes).cumsum(0)
    k = int((held < round(density * mask.numel)).sum()) + 1
    assert_mask(mask, both(chosen(bias, k, granularity), chosen(domain, k, granularity, largest=False)))
    assert mask == probe.select("intersection", granularity=granularity, density=density)


@granularities
def test_budget_of_one_unit(model, granularity):
    """One unit leads both lists, so k = 1 is enough: the element with the bias and no domain gap."""
    probe = aimfair.Sensitivity(model, ("a", "b", "c"))
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for source, scalar in (("a", 1.0), ("b", 1.0), ("c", 50.0)):
        tilt = {"a": 1.0, "b": 2.0, "c": 3.0}[source]
        set_gradients(
            model,
            {name: value * tilt for name, value in gradients.items()} | {"scale": torch.full_like(model.scale, scalar)},
        )
        probe.update(source)
    mask = probe.select("budget", granularity=granularity, density=1 / sum(p.numel() for p in model.parameters()))
    assert mask == aimfair.ParameterMask.from_names(model, ["scale"])


@granularities
def test_random(probe, model, granularity):
    mask = probe.select("random", granularity=granularity, density=0.4, seed=5)
    assert mask == aimfair.ParameterMask.random(model, 0.4, seed=5, granularity=granularity)
    assert mask != probe.select("random", granularity=granularity, density=0.4, seed=6)


def test_all_and_head_only(probe, model):
    assert probe.select("all") == aimfair.ParameterMask.full(model)
    assert probe.select("head_only") == aimfair.ParameterMask.from_names(model, ["head.weight", "head.bias"])
    body = aimfair.ParameterMask.from_names(model, lambda name: name.startswith("body."))
    assert probe.select("head_only", head="body") == body
    assert probe.select("head_only", head="body.1").nnz == 40 * 33 + 33
    assert probe.select("head_only", head="scale").nnz == 1
    with pytest.raises(ValueError, match="no parameter belongs to the module 'bod'"):
        probe.select("head_only", head="bod")


def test_blocks(probe, model):
    mask = probe.select("blocks", blocks=["body.1", "conv"])
    assert mask == aimfair.ParameterMask.from_names(model, lambda name: name.startswith(("body.1.", "conv.")))
    assert probe.select("blocks", blocks=["body"]) == probe.select("head_only", head="body")
    assert probe.select("blocks", blocks=["scale", "norm.bias", "scale"]).nnz == 1 + 8


@pytest.mark.parametrize(
    "selection",
    [
        {"rule": "all"},
        {"rule": "top_k", "density": 0.3},
        {"rule": "intersection", "bias_density": 0.8, "domain_density": 0.8, "granularity": "row"},
        {"rule": "random", "density": 0.3, "granularity": "tensor"},
        {"rule": "blocks", "blocks": ["body", "conv"]},
    ],
)
def test_freeze_takes_modules_out_of_any_rule(probe, model, selection):
    whole, mask = probe.select(**selection), probe.select(**selection, freeze=["body.0", "head.bias"])
    kept = {name: selected.clone() for name, selected in whole.to_bool().items()}
    for name in ("body.0.weight", "body.0.bias", "head.bias"):
        kept[name].zero_()
    assert_mask(mask, kept)
    assert mask != whole


def test_paths_without_parameters_and_nothing_left(probe):
    blocks = r"The blocks are scale, empty, unused, conv, norm, body\.0, body\.1, head$"
    with pytest.raises(ValueError, match=rf"'bodi'; did you mean 'body'\? {blocks}"):
        probe.select("blocks", blocks=["head", "bodi"])
    with pytest.raises(ValueError, match=rf"no parameter belongs to the module 'qqq'\. {blocks}"):
        probe.select("all", freeze=["qqq"])
    with pytest.raises(ValueError, match=r"no parameter .* 'conv\.weigh'; did you mean 'conv\.weight'"):
        probe.select("blocks", blocks=["conv.weigh"])
    with pytest.raises(ValueError, match="'head_only' selects nothing outside of freeze=norm, head"):
        probe.select("head_only", freeze=["norm", "head"])
    with pytest.raises(ValueError, match="'blocks' needs blocks"):
        probe.select("blocks")
    with pytest.raises(TypeError, match="freeze='head': expected several paths"):
        probe.select("all", freeze="head")
    with pytest.raises(ValueError, match="'top_k' does not take blocks"):
        probe.select("top_k", k=1, blocks=["head"])


# -- the paper --------------------------------------------------------------------------------------------------------


def test_tensor_rule_of_the_paper(device):
    """55 of 62 whole tensors by mean abs difference of mean gradients, as AIM-Fair does it for ResNet-18."""
    model = nn.ParameterDict({
        f"p{i:02}": nn.Parameter(torch.randn((i % 5 + 1, 4, 3) if i % 3 else (7 * i + 1,))) for i in range(62)
    }).to(device)  # fmt: skip
    history: History = {source: [] for source in COUNTS}
    for source, count in COUNTS.items():
        for _ in range(count):
            history[source].append(
                {name: torch.rand_like(p) * torch.rand(()).item() for name, p in model.named_parameters()}
            )
    probe = fed(aimfair.Sensitivity(model, COUNTS), model, history)
    mask = probe.select("intersection", granularity="tensor", bias_k=55, domain_k=55)

    def difference(name: str, contrast: tuple[str, str]) -> float:
        a, b = (torch.stack([g[name].double() for g in history[source]]).mean(0) for source in contrast)
        return float((a - b).abs().mean())

    names = [name for name, _ in model.named_parameters()]
    most_bias = sorted(names, key=lambda name: -difference(name, BIAS))[:55]
    least_domain = sorted(names, key=lambda name: difference(name, DOMAIN))[:55]
    wanted = set(most_bias) & set(least_domain)
    assert 48 <= len(wanted) < 55
    assert mask == aimfair.ParameterMask.from_names(model, wanted)
    scores = probe.unit_scores("difference", contrast="domain")
    for name in names:
        assert scores[name].item() == pytest.approx(difference(name, DOMAIN), rel=1e-5)


# -- ties, other statistics, other sources ----------------------------------------------------------------------------


@granularities
def test_ties_go_to_the_lowest_index(model, granularity):
    probe = aimfair.Sensitivity(model, ("a", "b"))
    for source, value in (("a", 1.0), ("b", 3.0)):
        set_gradients(model, {name: torch.full_like(p, value) for name, p in model.named_parameters()})
        probe.update(source)
    k = units_of(model, granularity) // 2
    equal = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    mask = probe.select("top_k", granularity=granularity, k=k)
    assert_mask(mask, chosen(equal, k, granularity))
    assert mask == probe.select("top_k", granularity=granularity, k=k)


@granularities
def test_signed_statistics_select_as_the_full_ones(probe, model, history, granularity):
    counts = {source: len(batches) for source, batches in history.items()}
    signed = fed(aimfair.Sensitivity(model, COUNTS, statistics="signed", batches=counts), model, history)
    for rule, sizes in (
        ("top_k", {"density": 0.3}),
        ("intersection", {"bias_density": 0.5, "domain_density": 0.5}),
        ("ratio", {"k": 9}),
    ):
        masks = [s.select(rule, granularity=granularity, **sizes) for s in (signed, probe)]
        # Differences of sums and sums of differences round differently: near ties may fall either way.
        assert (masks[0] ^ masks[1]).nnz <= 0.01 * masks[1].nnz


def test_two_sources_one_source_and_own_contrasts(model, history):
    pair = fed(aimfair.Sensitivity(model, BIAS), model, {source: history[source] for source in BIAS})
    expected = chosen(element_scores(history, "difference", BIAS), 100, "element")
    assert_mask(pair.select("top_k", k=100), expected)
    with pytest.raises(ValueError, match="needs the contrast 'domain', there is bias"):
        pair.select("intersection", bias_density=0.5, domain_density=0.5)

    single = fed(aimfair.Sensitivity(model, ("fair",)), model, {"fair": history["fair"]})
    assert_mask(single.select("top_k", criterion="fisher", k=100), chosen(mean(history, "fair", 2), 100, "element"))
    with pytest.raises(ValueError, match="needs the contrast 'bias', there is none"):
        single.select("top_k", k=100)

    own = {"bias": ("real", "fair"), "domain": ("fair", "biased")}
    other = fed(aimfair.Sensitivity(model, COUNTS, contrasts=own), model, history)
    assert_mask(
        other.select("top_k", k=100), chosen(element_scores(history, "difference", ("real", "fair")), 100, "element")
    )


@granularities
def test_unit_scores(probe, history, granularity):
    scores = probe.unit_scores("relative_difference", contrast="domain", granularity=granularity)
    expected = unit_means(element_scores(history, "relative_difference", DOMAIN), granularity)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name].to(score), rtol=1.2e-7, atol=0)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    ({"rule": "best"}, "rule='best': expected one of top_k"),
    ({"rule": "top_k"}, "either density.* or k"),
    ({"rule": "top_k", "density": 0.1, "k": 5}, "either density.* or k"),
    ({"rule": "top_k", "bias_density": 0.1, "k": 5}, "'top_k' does not take bias_density; it takes density, k"),
    ({"rule": "all", "density": 0.1}, "'all' does not take density"),
    ({"rule": "top_k", "density": 1e-9}, "of 4690 units selects nothing"),
    ({"rule": "top_k", "density": 1.1}, r"density=1.1: expected a share in \(0, 1\]"),
    ({"rule": "top_k", "density": math.nan}, "density=nan"),
    ({"rule": "top_k", "k": 0}, "k=0: expected between 1 and the 4690"),
    ({"rule": "top_k", "k": 4691}, "k=4691: expected between 1 and the 4690"),
    ({"rule": "top_k", "k": 5, "granularity": "column"}, "'column', expected one of element, row, tensor"),
    ({"rule": "top_k", "k": 5, "criterion": "loss"}, "criterion='loss': expected one of difference"),
    ({"rule": "top_k", "k": 5, "criterion": "fisher"}, "needs source=, one of real, biased, fair"),
    ({"rule": "top_k", "k": 5, "source": "fair"}, "compares two sources"),
    ({"rule": "top_k", "k": 0.5}, "k=0.5: expected between 1 and the 4690"),
    ({"rule": "top_k", "density": 2}, r"density=2: expected a share in \(0, 1\]; for a number of units give k"),
    ({"rule": "intersection"}, "needs density alone, or one of bias_density and bias_k with one of domain_density"),
    ({"rule": "intersection", "bias_density": 0.5}, "needs density alone, or one of bias_density and bias_k"),
    ({"rule": "intersection", "bias_k": 5, "bias_density": 0.5, "domain_k": 5}, "one of bias_density and bias_k"),
    ({"rule": "intersection", "bias_density": 0.5, "domain_density": True}, "domain_density=True"),
    ({"rule": "intersection", "bias_k": 0, "domain_density": 0.5}, "bias_k=0: expected between 1"),
    ({"rule": "intersection", "bias_density": 0.5, "domain_density": 0.5, "density": 0.5}, "density alone"),
    ({"rule": "intersection", "bias_k": 9, "domain_k": 9, "domain_criterion": "fisher"}, "domain_criterion='fisher'"),
    ({"rule": "budget"}, "density alone"),
    ({"rule": "budget", "density": 1e-9}, "selects nothing"),
])  # fmt: skip
def test_arguments_that_make_no_mask(probe, arguments, message):
    with pytest.raises(ValueError, match=message):
        probe.select(**arguments)


def test_a_selection_reads_the_norms_of_a_source_once(probe, monkeypatch):
    """Each time waits for the device, and for the other processes."""
    read, original = [], GradientStatistics.square_norms
    monkeypatch.setattr(
        GradientStatistics, "square_norms", lambda self, source: read.append(source) or original(self, source)
    )
    probe.select("top_k", density=0.1)
    probe.select("top_k", criterion="fisher", source="fair", density=0.1)
    assert read == ["biased", "fair", "fair"]


def test_disjoint_intersection_is_an_error(model):
    """Bias and domain rank everything the same way, so the top of one has nothing of the bottom of the other."""
    probe = aimfair.Sensitivity(model, ("a", "b", "c"))
    gradients = random_gradients(model)
    for source, sign in (("a", 1), ("b", -1), ("c", 1)):
        set_gradients(model, {name: sign * gradient for name, gradient in gradients.items()})
        probe.update(source)
    with pytest.raises(
        ValueError, match="top 469 units by bias and the bottom 469 by domain of 4690 have none in common"
    ):
        probe.select("intersection", bias_density=0.1, domain_density=0.1)


def test_sources_without_batches_or_gradients_are_refused(model):
    probe = aimfair.Sensitivity(model, ("a", "b"))
    set_gradients(model, random_gradients(model))
    probe.update("a", zero_grads=True)
    with pytest.raises(ValueError, match="'b' has no batches yet"):
        probe.select("top_k", density=0.1)
    probe.update("b")  # zeros
    with pytest.raises(ValueError, match="every gradient of source 'b' was zero"):
        probe.select("top_k", density=0.1)
    assert probe.select("random", density=0.1).nnz > 0


def test_statistics_that_were_not_kept(model, history):
    sums = fed(aimfair.Sensitivity(model, COUNTS, statistics="sum"), model, history)
    squares = fed(aimfair.Sensitivity(model, COUNTS, statistics="square"), model, history)
    assert sums.select("intersection", bias_density=0.5, domain_density=0.5).nnz > 0
    assert squares.select("top_k", criterion="norm_ratio", density=0.1).nnz > 0
    with pytest.raises(ValueError, match=r"'norm_ratio' needs the squares .*statistics='sum'.*\"all\" or \"square\""):
        sums.select("top_k", criterion="norm_ratio", density=0.1)
    with pytest.raises(ValueError, match="'fisher' needs the squares"):
        sums.select("top_k", criterion="fisher", source="fair", density=0.1)
    with pytest.raises(ValueError, match="'difference' needs the sums"):
        squares.select("top_k", density=0.1)


def test_operator_errors_name_the_parameter(model, history):
    """Statistics too large for fp32 give NaN scores: inf - inf."""
    probe = fed(aimfair.Sensitivity(model, BIAS), model, {source: history[source] for source in BIAS})
    for source in BIAS:
        probe._statistics._views[f"sum/{source}"][probe._statistics.names.index("head.bias")][2] = torch.inf
    for granularity in GRANULARITIES:
        with pytest.raises(RuntimeError, match=r"a\[12\].*NaN.*\(parameter 'head\.bias'\)"):
            probe.select("top_k", granularity=granularity, k=2)
