"""Scores of elements: what they are computed from, and how."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

ScoreCriterion = Literal["value", "magnitude", "difference", "relative_difference", "norm_ratio", "cosine"]

_OF_ONE = ("value", "magnitude")


@dataclass(frozen=True)
class Score:
    """A score per element of a list of tensors, computed on the fly in float32 and never stored.

    With ``x = a * scale_a`` and ``y = b * scale_b``:

    ======================= =============================== ================================================
    criterion               score                           a and b
    ======================= =============================== ================================================
    ``value``               a                               the caller's scores, any sign; no b, no scale
    ``magnitude``           |x|                             one accumulator; no b
    ``difference``          |x - y|                         sums of two sources
    ``relative_difference`` |x - y| / (|x| + |y| + eps)     sums of two sources
    ``norm_ratio``          sqrt(y) / sqrt(x + eps)         squares of two sources
    ``cosine``              1 - cos(a, b) of a unit         sums of two sources; single elements have no cosine
                                                            (:func:`aimfair.selective.units.unit_scores`)
    ======================= =============================== ================================================

    Attributes:
        a, b: [T] float32 tensors of the same sizes.
        scale_a, scale_b: usually 1 / number of batches, which turns a sum into a mean.
        divisor: the score is ``score / (divisor + eps)``; its tensors have the sizes of ``a``.
        eps: of the score and of its divisor, whose own is not used.

    Raises:
        ValueError: an unknown criterion, ``b`` missing or not valid for the criterion, lists of different lengths, or a
            divisor of a divisor.
    """

    criterion: ScoreCriterion
    a: list[Tensor]
    b: list[Tensor] | None = None
    scale_a: float = 1.0
    scale_b: float = 1.0
    divisor: "Score | None" = None
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.criterion not in get_args(ScoreCriterion):
            raise ValueError(f"criterion={self.criterion!r}: expected one of {', '.join(get_args(ScoreCriterion))}")
        if self.criterion in _OF_ONE and self.b:
            raise ValueError(f"criterion {self.criterion!r} reads one list: b is not valid for it")
        if self.criterion not in _OF_ONE and self.b is None:
            raise ValueError(f"criterion {self.criterion!r} compares two lists: b is missing")
        others = {"b": self.b, "divisor.a": self.divisor.a if self.divisor else None}
        for name, tensors in others.items():
            if tensors is not None and len(tensors) != len(self.a) and not (name == "b" and self.criterion in _OF_ONE):
                raise ValueError(f"{name} has {len(tensors)} tensors, expected {len(self.a)} as in a")
        if self.divisor is not None and self.divisor.divisor is not None:
            raise ValueError("the divisor of a score cannot have a divisor")

    @property
    def device(self) -> torch.device:
        return self.a[0].device

    @property
    def numels(self) -> list[int]:
        return [tensor.numel() for tensor in self.a]

    @property
    def parts(self) -> "list[Score]":
        """The score and, if there is one, its divisor, each as a score of its own."""
        whole = replace(self, divisor=None)
        return [whole, replace(self.divisor, eps=self.eps)] if self.divisor else [whole]

    @property
    def has_cosine(self) -> bool:
        return any(part.criterion == "cosine" for part in self.parts)

    def map(self, change: Callable[[int, Tensor], Tensor]) -> "Score":
        """The score with ``change(t, tensor)`` for entry t of every list."""
        a, b = ([change(t, x) for t, x in enumerate(tensors)] for tensors in (self.a, self.b or []))
        divisor = self.divisor.map(change) if self.divisor else None
        return replace(self, a=a, b=None if self.b is None else b, divisor=divisor)

    def entry(self, t: int) -> "Score":
        """The scores of tensor t alone."""
        return self.entries([t])

    def entries(self, members: list[int]) -> "Score":
        """The scores of some of the tensors."""
        a, b = ([tensors[t] for t in members] if tensors else None for tensors in (self.a, self.b))
        return replace(self, a=a or [], b=b, divisor=self.divisor.entries(members) if self.divisor else None)
