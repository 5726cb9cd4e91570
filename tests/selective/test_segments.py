"""Selections in rows, tensors and groups: of a Sensitivity, and of scores of one's own."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import aimfair
from aimfair.selective.units import unit_counts

from .models import Toy, random_gradients, set_gradients, toy

GROUPS = {"conv.weight": "early", "norm.weight": "early", "body.0.weight": "late", "scale": "late", "head.bias": "late"}


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


@pytest.fixture
def probe(model) -> aimfair.Sensitivity:
    probe = aimfair.Sensitivity(model, ("a", "b", "c"))
    for source in ("a", "b", "c"):
        for _ in range(2):
            gradients = {name: grad.round(decimals=1) for name, grad in random_gradients(model).items()}  # with ties
            set_gradients(model, gradients)
            probe.update(source)
    return probe


@pytest.fixture
def scores(probe) -> dict[str, Tensor]:
    """Of elements, in the shapes of the parameters."""
    shapes = {name: parameter.shape for name, parameter in probe._named.items()}
    return {name: flat.view(shapes[name]) for name, flat in probe.unit_scores(granularity="element").items()}


def best(scores: Tensor, k: int, largest: bool = True) -> Tensor:
    """bool, in the shape of the scores: the k best by a stable sort, equal ones by index."""
    order = (scores.flatten() + 0.0).sort(stable=True, descending=largest).indices
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[order[:k]] = True
    return chosen.view(scores.shape)


def by_rows(scores: dict[str, Tensor], share: float, largest: bool = True) -> dict[str, Tensor]:
    expected = {}
    for name, tensor in scores.items():
        rows = tensor.flatten(1) if tensor.ndim >= 2 and tensor.numel() else tensor.view(1, -1)
        k = round(share * rows.shape[1])
        expected[name] = torch.stack([best(row, k, largest) for row in rows]).view(tensor.shape)
    return expected


def by_group(scores: dict[str, Tensor], groups: dict[str, str], ks: dict[str, int]) -> dict[str, Tensor]:
    expected = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in scores.items()}
    for group, k in ks.items():
        members = [name for name in scores if groups.get(name) == group]
        chosen = best(torch.cat([scores[name].flatten() for name in members]), k)
        parts = chosen.split([scores[name].numel() for name in members])
        expected |= {name: part.view(scores[name].shape) for name, part in zip(members, parts, strict=True)}
    return expected


def assert_selects(mask: aimfair.ParameterMask, expected: dict[str, Tensor]) -> None:
    assert mask == aimfair.ParameterMask.from_bool(expected)
    assert mask.nnz == sum(int(selected.sum()) for selected in expected.values()) > 0


# -- Sensitivity ------------------------------------------------------------------------------------------------------


def test_rows(probe, scores):
    assert_selects(probe.select("top_k", within="row", density=0.2), by_rows(scores, 0.2))


def test_tensors(probe, scores):
    mask = probe.select("top_k", within="tensor", density=0.25)
    assert_selects(mask, {name: best(tensor, round(0.25 * tensor.numel())) for name, tensor in scores.items()})
    ks = {"conv.weight": 7, "head.bias": 0, "body.1.weight": 1320}
    mask = probe.select("top_k", within="tensor", k=ks)
    assert_selects(mask, {name: best(tensor, ks.get(name, 0)) for name, tensor in scores.items()})


def test_groups(probe, scores):
    ks = {"late": 50, "early": 3}
    assert_selects(probe.select("top_k", within=GROUPS, k=ks), by_group(scores, GROUPS, ks))
    late = 72 * 40 + 1 + 5
    mask = probe.select("top_k", within=GROUPS, density={"late": 0.1})
    assert_selects(mask, by_group(scores, GROUPS, {"late": round(0.1 * late)}))


def test_one_group_of_everything_is_the_selection_without(probe):
    everything = dict.fromkeys(probe._named, "all")
    for rule in ("top_k", "ratio"):
        assert probe.select(rule, within=everything, density=0.1) == probe.select(rule, density=0.1)


def test_rows_are_selected_in_tensors_and_groups(model, probe):
    """Units of a coarser granularity: the best rows of each tensor, by their mean scores."""
    scores = probe.unit_scores(granularity="row")
    mask = probe.select("top_k", within="tensor", granularity="row", density=0.5).to_bool()
    for name, parameter in model.named_parameters():
        (count,) = unit_counts([tuple(parameter.shape)], "row")
        rows = mask[name].view(count, -1) if count else mask[name].view(0, 1)
        assert torch.equal(rows.all(1), best(scores[name], round(0.5 * count))), name
        assert torch.equal(rows.all(1), rows.any(1)), name
    grouped = probe.select("top_k", within=GROUPS, granularity="tensor", k={"late": 1})
    assert sorted(grouped.nnz_per_tensor)[-1] == grouped.nnz


def test_ratio(probe):
    """Bias over domain scores, in every row."""
    bias, domain = (probe.unit_scores(contrast=contrast, granularity="element") for contrast in ("bias", "domain"))
    name = "body.0.weight"
    ratio = (bias[name] / (domain[name] + 1e-12)).view(40, 72)
    mask = probe.select("ratio", within="row", k={name: 9})
    assert torch.equal(mask.bool_of(name), torch.stack([best(row, 9) for row in ratio]))
    assert mask.nnz == 9 * 40


INTEGERS = (np.int64, np.uint8, torch.tensor)


@pytest.mark.parametrize("kind", INTEGERS)
def test_counts_are_integers_of_any_type(probe, model, scores, kind, tmp_path):
    first = probe.select("top_k", k=7)
    assert probe.select("top_k", k=kind(7)) == aimfair.select_mask(scores, k=kind(7)) == first
    both = probe.select("intersection", bias_k=kind(200), domain_k=kind(190))
    assert both == probe.select("intersection", bias_k=200, domain_k=190)
    assert probe.select("top_k", within="row", k={"conv.weight": kind(2)}) == probe.select(
        "top_k", within="row", k={"conv.weight": 2}
    )
    assert aimfair.ParameterMask.random(model, k=kind(9)) == aimfair.ParameterMask.random(model, k=9)
    weight = {"conv.weight": scores["conv.weight"]}
    assert aimfair.select_mask(weight, n_of_m=(kind(1), kind(3))) == aimfair.select_mask(weight, n_of_m=(1, 3))
    signed = aimfair.Sensitivity(
        model, ("a", "b"), statistics="signed", batches={"a": kind(1), "b": kind(1)}, contrasts={"bias": ("a", "b")}
    )
    signed.save(tmp_path / "signed.safetensors")
    with (
        pytest.raises(RuntimeError, match="after 1 of the 2 backward passes"),
        probe.capture("a", accumulate_steps=kind(2)),
    ):
        sum(parameter.sum() for parameter in model.parameters()).backward()


@pytest.mark.parametrize("wrong", [True, np.True_, torch.tensor(True), np.float64(7), torch.tensor([7, 7]), "7"])
def test_other_values_are_no_counts(probe, model, scores, wrong):
    with pytest.raises(ValueError, match="k="):
        probe.select("top_k", k=wrong)
    with pytest.raises(ValueError, match="k="):
        aimfair.select_mask(scores, k={"conv.weight": wrong}, within="tensor")
    with pytest.raises(ValueError, match="n_of_m="):
        aimfair.select_mask(scores, n_of_m=(wrong, 8))
    with pytest.raises(ValueError, match="accumulate_steps="):
        probe.capture("a", accumulate_steps=wrong)
    with pytest.raises(ValueError, match="signed statistics need batches"):
        aimfair.Sensitivity(model, ("a",), statistics="signed", batches={"a": wrong}, contrasts={})


def test_freeze_removes_from_the_selection(probe):
    mask = probe.select("top_k", within="tensor", density=0.5, freeze=["body"])
    assert mask == probe.select("top_k", within="tensor", density=0.5) - aimfair.ParameterMask.from_names(
        probe._named, lambda name: name.startswith("body")
    )


@pytest.mark.parametrize(("arguments", "message"), [
    ({"within": "column", "k": 1}, "within='column': expected row, tensor"),
    ({"within": "row", "granularity": "row", "k": 1}, "granularity must be element, found 'row'"),
    ({"within": {"conv.wight": "x"}, "k": 1}, "within: not among the parameters: conv.wight"),
    ({"within": "tensor"}, "either density, a share of the units of a segment, or k"),
    ({"within": "tensor", "k": 1, "density": 0.1}, "either density"),
    ({"within": "tensor", "k": 6}, "k=6: expected between 1 and the 1 units of a segment of 'scale'; give a dens"),
    ({"within": "row", "k": {"conv.weight": 28}}, "k=28: expected between 0 and the 27 units of a segment of 'conv"),
    ({"within": "row", "k": 0}, "k=0"),
    ({"within": "tensor", "k": {"conv.weight": -1}}, "k=-1: expected between 0 and the 216 units"),
    ({"within": "tensor", "k": {"conv.weight": 2.0}}, "k=2.0"),
    ({"within": "tensor", "k": {"conv": 2}}, "k: no segment is called conv"),
    ({"within": GROUPS, "k": {"middle": 2}}, "k: no segment is called middle"),
    ({"within": "tensor", "density": 1.5}, "density=1.5"),
    ({"within": "tensor", "density": 0}, "density=0: expected a share"),
    ({"within": "tensor", "density": math.nan}, "density=nan"),
    ({"within": "tensor", "density": {"conv.weight": -0.1}}, "density=-0.1 of 'conv.weight'"),
    ({"within": "row", "density": 1e-4}, "density=0.0001 of every segment selects nothing"),
    ({"within": {}, "k": 1}, "within={}: expected a mapping from parameters to groups, with at least one"),
    ({"within": {"conv.weight": 3}, "k": {2: 1}}, "k: no segment is called 2; they are 3"),
    ({"density": "0.5"}, "density='0.5': expected a share"),
    ({"within": "tensor", "k": 1, "rule": "random"}, "rule 'random' does not take within; top_k and ratio do"),
    ({"k": {"conv.weight": 1}}, "mappings only for segments: give within"),
    ({"density": {"conv.weight": 1.0}, "rule": "random"}, "mappings only for segments: give within"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, message, probe):
    with pytest.raises(ValueError, match=re.escape(message)):
        probe.select(**{"rule": "top_k"} | arguments)


@pytest.mark.parametrize(("scores", "arguments", "message"), [
    ([torch.ones(2)], {"k": 1}, "scores are a list, expected a mapping from names to tensors"),
    ({"w": None}, {"k": 1}, "the scores of 'w' are a NoneType, expected a dense tensor"),
    ({"w": torch.ones(2, device="meta")}, {"k": 1}, "the scores of 'w' are a Tensor on meta, expected a dense tensor"),
    ({"w": torch.ones(2, 2).to_sparse()}, {"k": 1}, "the scores of 'w' are a Tensor, expected a dense tensor"),
    ({"w": torch.ones(2)}, {"threshold": torch.tensor(0.5)}, "expected a number; of a tensor give threshold.item()"),
    ({"w": torch.ones(2)}, {"threshold": "0.5"}, "threshold='0.5': expected a number"),
])  # fmt: skip
def test_what_are_no_scores_is_refused(scores, arguments, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        aimfair.select_mask(scores, **arguments)


# -- scores of one's own ----------------------------------------------------------------------------------------------


def test_own_scores_of_all(scores):
    flat = best(torch.cat([tensor.flatten() for tensor in scores.values()]), 100)
    parts = flat.split([tensor.numel() for tensor in scores.values()])
    expected = {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
    assert_selects(aimfair.select_mask(scores, k=100), expected)
    total = sum(tensor.numel() for tensor in scores.values())
    assert aimfair.select_mask(scores, density=100 / total) == aimfair.select_mask(scores, k=100)
    rest = aimfair.select_mask({name: -tensor for name, tensor in scores.items()}, k=100, largest=False)
    assert rest == aimfair.select_mask(scores, k=100)


@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
def test_own_scores_of_segments(scores, largest):
    assert_selects(
        aimfair.select_mask(scores, density=0.3, within="row", largest=largest), by_rows(scores, 0.3, largest)
    )
    assert_selects(
        aimfair.select_mask(scores, density=0.3, within="tensor", largest=largest),
        {name: best(tensor, round(0.3 * tensor.numel()), largest) for name, tensor in scores.items()},
    )
    if largest:
        mask = aimfair.select_mask(scores, k={"late": 5, "early": 6}, within=GROUPS)
        assert_selects(mask, by_group(scores, GROUPS, {"late": 5, "early": 6}))


def test_thresholds(scores):
    for threshold in (0.3, float(scores["conv.weight"].flatten()[5])):
        mask = aimfair.select_mask(scores, threshold=threshold)
        assert_selects(mask, {name: tensor.double() >= threshold for name, tensor in scores.items()})
        mask = aimfair.select_mask(scores, threshold=threshold, largest=False)
        assert_selects(mask, {name: tensor.double() <= threshold for name, tensor in scores.items()})
    assert aimfair.select_mask(scores, threshold=math.inf).nnz == 0


def test_two_of_four(scores):
    weights = {name: scores[name] for name in ("body.0.weight", "body.1.weight")}
    mask = aimfair.select_mask(weights, n_of_m=(2, 4))
    expected = {
        name: torch.stack([best(four, 2) for four in tensor.view(-1, 4)]).view(tensor.shape)
        for name, tensor in weights.items()
    }
    assert_selects(mask, expected)
    assert all(set(mask.bool_of(name).view(-1, 4).sum(1).tolist()) == {2} for name in weights)
    with pytest.raises(ValueError, match=re.escape("not a multiple of 4 in head.weight (5, 33); leave these out")):
        aimfair.select_mask(weights | {"head.weight": scores["head.weight"]}, n_of_m=(2, 4))


def test_units_of_own_scores(scores):
    mask = aimfair.select_mask(scores, k=4, granularity="row")
    assert mask.nnz == sum(int(selected.sum()) for selected in mask.to_bool().values())
    assert aimfair.select_mask({"conv.weight": scores["conv.weight"]}, k=2, granularity="row").nnz == 2 * 27


def test_a_mask_over_all_parameters(model, scores):
    """Given in another order than the parameters', which decides between equal scores."""
    equal = {name: torch.ones_like(scores[name]) for name in ("head.weight", "conv.weight")}
    mask = aimfair.select_mask(equal, k=3, parameters=model)
    assert mask.names == tuple(name for name, _ in model.named_parameters())
    assert mask.nnz == int(mask.bool_of("conv.weight").view(-1)[:3].sum()) == 3
    mask.check(model)


def test_other_dtypes_and_layouts(device):
    values = torch.randn(40, 30, device=device)
    expected = aimfair.select_mask({"w": values.bfloat16().float()}, k=3, within="row")
    assert aimfair.select_mask({"w": values.bfloat16()}, k=3, within="row") == expected
    assert aimfair.select_mask({"w": values.bfloat16().t().contiguous().t()}, k=3, within="row") == expected
    assert aimfair.select_mask({"w": values.bfloat16().requires_grad_()}, k=3, within="row") == expected


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "give one of k, density, threshold and n_of_m, found none"),
    ({"k": 1, "threshold": 0.1}, "found k and threshold"),
    ({"n_of_m": (2, 4), "within": "row"}, "n_of_m is not a size of segments"),
    ({"n_of_m": (2, 4), "granularity": "row"}, "granularity must be element"),
    ({"n_of_m": (3, 2)}, "n_of_m=(3, 2): expected 1 <= n <= m"),
    ({"n_of_m": (0, 2)}, "expected 1 <= n <= m"),
    ({"n_of_m": "2:4"}, "expected a pair of integers"),
    ({"k": 13}, "k=13"),
    ({"k": {"w": 1}}, "give within"),
    ({"threshold": math.nan}, "threshold is NaN"),
    ({"k": 1, "parameters": {"v": torch.ones(3, 4, requires_grad=True)}}, "not among the parameters: w"),
    ({"k": 1, "parameters": {"w": torch.ones(12, requires_grad=True)}}, "'w' has shape (3, 4), expected (12,)"),
])  # fmt: skip
def test_own_scores_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        aimfair.select_mask({"w": torch.randn(3, 4)}, **arguments)


def test_own_scores_of_other_types():
    for scores in (torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(TypeError, match=rf"'w' are {scores.dtype}, expected float32, bfloat16 or float16"):
            aimfair.select_mask({"w": scores}, k=1)
    with pytest.raises(ValueError, match="scores are empty"):
        aimfair.select_mask({}, k=1)


def test_nan_names_the_parameter():
    scores = {"first": torch.ones(3), "second": torch.tensor([1.0, torch.nan])}
    for size in ({"k": 1}, {"k": 1, "within": "tensor"}, {"threshold": 0.0}):
        with pytest.raises(RuntimeError, match=r"NaN \(parameter 'second'\)"):
            aimfair.select_mask(scores, **size)
