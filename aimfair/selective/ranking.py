"""Scores of elements and units, and the order they put them in."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from aimfair.selective import cosine, ops
from aimfair.selective.choices import Granularity
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import Shape, named_errors
from aimfair.selective.recipe import by_value
from aimfair.selective.sharding import Whole
from aimfair.selective.units import expand_units, unit_counts


@dataclass(frozen=True)
class Score:
    """A score per element, computed on the fly from one or two accumulators (the table in ``ops.select_``), or
    ``cosine``, of units alone (:mod:`aimfair.selective.cosine`).

    Attributes:
        a, b: one float32 accumulator per parameter; no ``b`` for scores of one accumulator.
        scale_a, scale_b: 1 / number of batches, or whatever turns the accumulator into a mean.
    """

    criterion: ops.Criterion | Literal["cosine"]
    a: list[Tensor]
    b: list[Tensor] | None = None
    scale_a: float = 1.0
    scale_b: float = 1.0

    def numerator(self) -> dict[str, Any]:
        return {
            "criterion": self.criterion,
            "a": self.a,
            "b": self.b,
            "scale_a": self.scale_a,
            "scale_b": self.scale_b,
        }

    def divisor(self) -> dict[str, Any]:
        return {
            "divisor_criterion": self.criterion,
            "c": self.a,
            "d": self.b,
            "scale_c": self.scale_a,
            "scale_d": self.scale_b,
        }


class Ranking:
    """All units of a parameter list ordered by a score: the mean score of their elements, or their cosine.

    ``top(k)`` and ``bottom(k)`` are exact and nested, ties go to the lowest index.

    Args:
        shapes: of the whole parameters.
        holding: how this process holds them, and so the accumulators.
        divisor: rank by ``score / (divisor + eps)`` of each element instead; with a cosine, of each unit.
        eps: see ``ops.select_``.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        shapes: tuple[Shape, ...],
        granularity: Granularity,
        holding: Whole,
        score: Score,
        divisor: Score | None = None,
        *,
        eps: float = 1e-12,
    ):
        self.names, self.shapes, self.granularity, self._holding = names, shapes, granularity, holding
        self._counts = unit_counts(shapes, granularity)
        self._recipe = {**score.numerator(), **(divisor.divisor() if divisor else {}), "eps": eps}
        if granularity == "element" and cosine.is_of(self._recipe):
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
            return self._holding.unit_scores(self._recipe, self.granularity)

    def top(self, k: int) -> ParameterMask:
        return self._select(k, largest=True)

    def bottom(self, k: int) -> ParameterMask:
        return self._select(k, largest=False)

    def _select(self, k: int, largest: bool) -> ParameterMask:
        recipe = self._recipe if self._scores is None else by_value(self._scores)
        with named_errors(self.names):
            bits, rank = self._holding.top_k(recipe, k, self.granularity, largest=largest)
        bits, rank = expand_units(bits, rank, self.shapes, self.granularity)
        return ParameterMask(self.names, self.shapes, bits, rank)
