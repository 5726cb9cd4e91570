"""Scores as the keyword arguments of the operators that compute them (the table in ``ops.select_``)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Recipe = dict[str, Any]
"""``criterion``, the lists ``a`` to ``d``, scales and ``eps``."""

_LISTS = ("a", "b", "c", "d")


def by_value(scores: list[Tensor]) -> Recipe:
    """Scores that are there already."""
    return {"criterion": "value", "a": scores}


def mapped(recipe: Recipe, change: Callable[[int, Tensor], Tensor]) -> Recipe:
    """The recipe with ``change(t, tensor)`` in place of entry t of every list."""
    lists = {name: recipe[name] for name in _LISTS if recipe.get(name)}
    return {**recipe, **{name: [change(t, x) for t, x in enumerate(tensors)] for name, tensors in lists.items()}}


def entry(recipe: Recipe, t: int) -> Recipe:
    """The scores of tensor t alone."""
    return {**recipe, **{name: recipe[name][t : t + 1] for name in _LISTS if recipe.get(name)}}


def parts(recipe: Recipe) -> list[Recipe]:
    """The score and, if there is one, its divisor, each as a score of its own."""
    places = [("criterion", "a", "b", "scale_a", "scale_b")]
    if recipe.get("divisor_criterion"):
        places.append(("divisor_criterion", "c", "d", "scale_c", "scale_d"))
    return [
        {**{to: recipe[key] for to, key in zip(places[0], keys, strict=True)}, "eps": recipe["eps"]} for keys in places
    ]
