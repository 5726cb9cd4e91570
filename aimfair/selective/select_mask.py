"""Masks from scores of one's own."""

from collections.abc import Mapping
from typing import SupportsIndex

import torch
from torch import Tensor

from aimfair.selective.choices import Granularity, Number, Within
from aimfair.selective.distributed import Whole, is_dtensor
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import Parameters, listing, named_parameters, require_one_device, shapes_of
from aimfair.selective.score import Score
from aimfair.selective.segments import Density, for_all, groups_of_m, segments_of
from aimfair.selective.selection import Ranking
from aimfair.selective.units import number_of_units


@torch.no_grad()
def select_mask(
    scores: Mapping[str, Tensor],
    *,
    k: Number = None,
    density: Density = None,
    threshold: float | None = None,
    n_of_m: tuple[SupportsIndex, SupportsIndex] | None = None,
    within: Within | None = None,
    granularity: Granularity = "element",
    largest: bool = True,
    parameters: Parameters | None = None,
) -> ParameterMask:
    """The mask of the best scores: of all, or within each row, tensor or group of tensors.

    ::

        scores = {name: (p * p.grad).abs() for name, p in model.named_parameters()}
        aimfair.select_mask(scores, density=0.01)                    # of all elements together
        aimfair.select_mask(scores, k=1, within="row")               # of each row
        aimfair.select_mask(scores, density=0.1, within="tensor")    # of each tensor
        aimfair.select_mask(scores, k={"early": 100, "late": 900}, within=groups)
        aimfair.select_mask({"fc.weight": scores["fc.weight"]}, n_of_m=(2, 4), parameters=model)

    Exact and deterministic, the same on CPU and GPU: equal scores go to the lowest index, -0.0 equals 0.0, infinities
    are scores like others. One call, with no copy of the scores.

    Exactly one of ``k``, ``density``, ``threshold`` and ``n_of_m`` says how much is selected.

    Args:
        scores: name -> scores in the shape of the parameter; float32, or bfloat16 and float16, which are converted.
        k: number of units, of every segment if ``within`` is given, which must have as many. Or a mapping, with
            ``within``: name of a tensor or group -> number, and nothing in those that it lacks.
        density: share of the units in (0, 1], rounded to ``round(density * units)``; likewise.
        threshold: the scores that are at least this, or at most unless ``largest``.
        n_of_m: (n, m): n of each m consecutive elements of the last dimension, as in 2:4 sparsity.
        within: ``row``, ``tensor``, or name -> group; see :data:`aimfair.selective.choices.Within`.
        granularity: the unit that is ranked, by the mean score of its elements, and selected.
        largest: the highest scores; else the lowest.
        parameters: the full list that the mask is over, by default that of ``scores``; nothing is selected in
            parameters that ``scores`` lacks.

    Raises:
        TypeError: no mapping, no dense tensor, a dtype that is not rounded to float32 exactly, or a DTensor.
        ValueError: arguments that exclude each other, a size out of range, nothing selected by a size, several devices,
            a name or shape that ``parameters`` does not have.
        RuntimeError: a score is NaN; the message names its tensor.
    """
    sizes = {"k": k, "density": density, "threshold": threshold, "n_of_m": n_of_m}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of k, density, threshold and n_of_m, found {' and '.join(given) or 'none'}")
    if within is not None and given[0] not in ("k", "density"):
        raise ValueError(f"{given[0]} is not a size of segments: within is for k and density")
    if threshold is not None and not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold={threshold!r}: expected a number; of a tensor give threshold.item()")
    if n_of_m is not None and granularity != "element":
        raise ValueError(f"n_of_m selects elements: granularity must be element, found {granularity!r}")
    scores = _in_order(scores, parameters)
    ranking = _ranking(scores, granularity)
    if threshold is not None:
        mask = ranking.at_least(threshold, largest=largest)
    elif n_of_m is not None:
        mask = ranking.best_in(groups_of_m(ranking.names, ranking.shapes, n_of_m), largest=largest)
    elif within is not None:
        segments = segments_of(ranking.names, ranking.shapes, granularity, within, density, k)
        mask = ranking.best_in(segments, largest=largest)
    else:
        mask = ranking.best(number_of_units(*for_all(density, k), ranking.units), largest=largest)
    return mask if parameters is None else ParameterMask.from_bool(mask.to_bool(), parameters)


def _in_order(scores: Mapping[str, Tensor], parameters: Parameters | None) -> Mapping[str, Tensor]:
    """The scores in the order of the parameters, which decides between equal ones."""
    if not isinstance(scores, Mapping):
        raise TypeError(f"scores are a {type(scores).__name__}, expected a mapping from names to tensors")
    if not scores:
        raise ValueError("scores are empty: a mask needs at least one parameter")
    if parameters is None:
        return scores
    named = named_parameters(parameters)
    if unknown := scores.keys() - named.keys():
        raise ValueError(f"not among the parameters: {listing(sorted(unknown))}")
    return {name: scores[name] for name in named if name in scores}


def _ranking(scores: Mapping[str, Tensor], granularity: Granularity) -> Ranking:
    for name, values in scores.items():
        if not isinstance(values, Tensor) or values.layout != torch.strided or values.is_meta:
            kind = type(values).__name__
            kind = f"{kind} on meta" if kind == "Tensor" and values.is_meta else kind
            raise TypeError(f"the scores of {name!r} are a {kind}, expected a dense tensor with values")
        if is_dtensor(values):
            raise TypeError(f"the scores of {name!r} are a DTensor; give the whole tensor, as from full_tensor()")
        if values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"the scores of {name!r} are {values.dtype}, expected float32, bfloat16 or float16; convert them, which"
                " rounds"
            )
    require_one_device(scores)
    flat = [tensor.detach().float().contiguous() for tensor in scores.values()]
    shapes = shapes_of(flat)
    return Ranking(tuple(scores), shapes, granularity, Whole(shapes), Score("value", flat))
