"""Vocabulary of selections, without torch, so that settings can be read without it."""

import operator
from collections.abc import Mapping
from typing import Any, Literal, SupportsIndex

Rule = Literal["top_k", "intersection", "ratio", "budget", "random", "all", "head_only", "blocks"]
Criterion = Literal["difference", "relative_difference", "norm_ratio", "cosine", "fisher", "magnitude"]
Granularity = Literal["element", "row", "tensor"]
"""``row``: one index along dimension 0 of a tensor with two or more dimensions (an output channel or feature); an
element of a tensor with fewer. ``tensor``: a named tensor as a whole."""

Within = Literal["row", "tensor"] | Mapping[str, str]
"""Segments in which a selection is made by itself. ``row``: one index along dimension 0 of a tensor with two or more
dimensions (a neuron), or the whole of a tensor with fewer. ``tensor``: a named tensor. Name -> group: the tensors of a
group together, and nothing in tensors that have none."""

Number = SupportsIndex | Mapping[str, SupportsIndex] | None
"""A number of units, of all or of every segment; or segment -> number: nothing is selected in those that it lacks.
Integers of any type with ``__index__`` but bools: Python's, numpy's, and tensors of one element."""

SIZES: dict[Rule, list[set[str]]] = {
    "top_k": [{"density"}, {"k"}],
    "intersection": [
        {"bias_density", "domain_density"},
        {"bias_k", "domain_k"},
        {"bias_density", "domain_k"},
        {"bias_k", "domain_density"},
        {"density"},
    ],
    "ratio": [{"density"}, {"k"}],
    "budget": [{"density"}],
    "random": [{"density"}, {"k"}],
    "all": [set()],
    "head_only": [set(), {"head"}],
    "blocks": [{"blocks"}],
}
"""Sets of arguments, each of which says how much a rule selects: densities are shares in (0, 1], k numbers of units."""


def as_int(value: Any) -> Any:
    """An int in place of what stands for one, as :data:`Number` says, also in a mapping; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: as_int(one) for name, one in value.items()}
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value
