"""Ranking units by a score, and the rules that turn rankings and names into masks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from aimfair.selective.choices import SIZES, Granularity, Rule, Within
from aimfair.selective.distributed import Whole
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import Shape, listing, named_errors
from aimfair.selective.score import Score
from aimfair.selective.segments import Segments, segments_of
from aimfair.selective.summary import block_name
from aimfair.selective.units import expand_units, number_of_units, unit_counts


class Ranking:
    """All units of a parameter list ordered by a score: the mean score of their elements, or their cosine.

    ``top(k)`` and ``bottom(k)`` are exact and nested, ties go to the lowest index.

    Args:
        shapes: of the whole parameters.
        holding: how this process holds them, and so the accumulators.
        score: of the elements held here; with a cosine, a divisor divides the scores of units.
    """

    def __init__(
        self, names: tuple[str, ...], shapes: tuple[Shape, ...], granularity: Granularity, holding: Whole, score: Score
    ):
        self.names, self.shapes, self.granularity = names, shapes, granularity
        self._holding, self._score = holding, score
        self._counts = unit_counts(shapes, granularity)
        if granularity == "element" and score.has_cosine:
            raise ValueError("criterion 'cosine' compares vectors: granularity must be row or tensor, found 'element'")
        # Elements are scored inside the selection and their scores never stored.
        self._scores = None if granularity == "element" else self._held_scores()

    @property
    def units(self) -> int:
        return sum(self._counts)

    def unit_scores(self) -> list[Tensor]:
        """float32 scores of the units, one tensor per parameter."""
        return self._holding.all_scores(self._held_scores(), self.granularity)

    def _held_scores(self) -> list[Tensor]:
        with named_errors(self.names):
            return self._holding.unit_scores(self._score, self.granularity)

    def top(self, k: int) -> ParameterMask:
        return self.best(k)

    def bottom(self, k: int) -> ParameterMask:
        return self.best(k, largest=False)

    def best(self, k: int, *, largest: bool = True) -> ParameterMask:
        return self._selected(lambda score: self._holding.top_k(score, k, self.granularity, largest=largest))

    def best_in(self, segments: Segments, *, largest: bool = True) -> ParameterMask:
        """The best of every segment by itself."""
        return self._selected(lambda score: self._holding.top_in(score, segments, self.granularity, largest=largest))

    def at_least(self, threshold: float, *, largest: bool = True) -> ParameterMask:
        """The units that score at least ``threshold``, or at most unless ``largest``."""
        return self._selected(lambda score: self._holding.at_least(score, threshold, self.granularity, largest=largest))

    def _selected(self, select: Callable[[Score], tuple[Tensor, Tensor]]) -> ParameterMask:
        score = self._score if self._scores is None else Score("value", self._scores)
        with named_errors(self.names):
            bits, rank = select(score)
        bits, rank = expand_units(bits, rank, self.shapes, self.granularity)
        return ParameterMask(self.names, self.shapes, bits, rank)


def require_arguments(rule: str, **given: object) -> None:
    """ValueError for an unknown rule, or sizes and names that are not valid for it."""
    if rule not in SIZES:
        raise ValueError(f"rule={rule!r}: expected one of {', '.join(SIZES)}")
    known = set().union(*SIZES[rule])
    extra = [name for name, value in given.items() if value is not None and name not in known]
    if extra:
        takes = ", ".join(sorted(known)) or "none of them"
        raise ValueError(f"rule {rule!r} does not take {', '.join(extra)}; it takes {takes}")


def by_scores(
    rule: Rule,
    ranked: Callable[[Score], Ranking],
    bias: Score,
    domain: Score | None,
    sizes: Mapping[str, Any],
    within: Within | None = None,
) -> ParameterMask:
    """The mask of a rule that ranks units by bias and domain scores.

    Args:
        ranked: ranks all units by a score.
        domain: not for ``top_k``.
        sizes: ``density``, ``k``, ``bias_density``, ``bias_k``, ``domain_density``, ``domain_k``; None if not given.
        within: for ``top_k`` and ``ratio``, the segments that ``density`` and ``k`` are of.
    """
    if rule in ("top_k", "ratio"):
        ranking = ranked(replace(bias, divisor=domain))
        if within is not None:
            density, k = sizes["density"], sizes["k"]
            return ranking.best_in(segments_of(ranking.names, ranking.shapes, ranking.granularity, within, density, k))
        return ranking.top(number_of_units(sizes["density"], sizes["k"], ranking.units))
    assert domain is not None
    by_bias, by_domain = ranked(bias), ranked(domain)
    if {name for name, size in sizes.items() if size is not None} not in SIZES[rule]:
        pair = ", or one of bias_density and bias_k with one of domain_density and domain_k"
        raise ValueError(f"rule {rule!r} needs density alone{pair if rule == 'intersection' else ''}")
    if sizes["density"] is not None:
        return budget(by_bias, by_domain, sizes["density"])
    most = number_of_units(sizes["bias_density"], sizes["bias_k"], by_bias.units, "bias_")
    least = number_of_units(sizes["domain_density"], sizes["domain_k"], by_domain.units, "domain_")
    return intersection(by_bias, by_domain, most, least)


class NothingInCommonError(ValueError):
    """The two sets of an intersection have no unit in common."""


def intersection(bias: Ranking, domain: Ranking, most: int, least: int) -> ParameterMask:
    """The ``most`` units that react most to the bias that are also among the ``least`` that react least to the domain
    gap (AIM-Fair, arXiv 2503.05665).

    Raises:
        NothingInCommonError: no unit is in both sets.
    """
    mask = bias.top(most) & domain.bottom(least)
    if mask.nnz == 0:
        raise NothingInCommonError(
            f"the top {most} units by bias and the bottom {least} by domain of {bias.units} have none in common;"
            " raise bias_density (bias_k) or domain_density (domain_k), or give density alone"
        )
    return mask


def budget(bias: Ranking, domain: Ranking, density: float) -> ParameterMask:
    """The intersection of top k and bottom k, k the smallest that leaves ``round(density * elements)`` elements.

    Both sets grow with k, so the intersection does too and k is found by bisection. It may leave a few more elements:
    a step of k can add two units, and units can be large.
    """
    numel = sum(math.prod(shape) for shape in bias.shapes)
    target = number_of_units(density, None, numel)
    smallest, k = None, bias.units
    low = 1
    while low < k:
        middle = (low + k) // 2
        mask = bias.top(middle) & domain.bottom(middle)
        if mask.nnz >= target:
            smallest, k = mask, middle
        else:
            low = middle + 1
    return bias.top(k) if smallest is None else smallest


def head_names(names: Sequence[str], head: str | Sequence[str] | None = None) -> list[str]:
    """The parameters at the path or paths ``head``, by default of the last module that owns parameters.

    The last is the one registered last, which may not be the one that computes the output: give ``head`` where the
    classifier comes earlier, or where there are two.

    Raises:
        ValueError: no parameter belongs to ``head``.
    """
    if head is not None:
        return names_under(names, [head] if isinstance(head, str) else head)
    owner = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == owner]


def names_under(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The parameters of the modules at these paths, in the order of ``names``; a parameter's own name is a path, too.

    Raises:
        ValueError: a path without parameters, with a suggestion and the blocks there are.
    """
    within = {module: [name for name in names if f"{name}.".startswith(f"{module}.")] for module in modules}
    for module, found in within.items():
        if not found:
            paths = {name.rsplit(".", levels)[0] for name in names for levels in range(name.count(".") + 1)}
            close = get_close_matches(module, sorted(paths), n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            blocks = listing(dict.fromkeys(map(block_name, names)), limit=30)
            raise ValueError(f"no parameter belongs to the module {module!r}{meant} The blocks are {blocks}")
    wanted = {name for found in within.values() for name in found}
    return [name for name in names if name in wanted]
