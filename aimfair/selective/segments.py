"""Segments: rows, tensors or groups of tensors, in each of which units are selected by themselves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from aimfair.selective.choices import Granularity, Number, Within, as_int
from aimfair.selective.parameters import Shape, listing
from aimfair.selective.units import unit_counts

Density = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Segments:
    """Segments and their sizes as :func:`aimfair.selective.ops.select_segments_` takes them, for T tensors.

    Attributes:
        runs: segments that each tensor is cut into.
        ks: units selected of each of them.
        groups: of tensors that are one segment together; None: no tensor shares one.
        lengths: units in a run.
    """

    runs: list[int]
    ks: list[int]
    groups: list[int] | None
    lengths: list[int]

    @property
    def members(self) -> list[list[int]]:
        """The tensors of each group, in the order of their first ones."""
        together: dict[int, list[int]] = {}
        for t in range(len(self.runs)):
            together.setdefault(self.groups[t] if self.groups else t, []).append(t)
        return list(together.values())


def segments_of(
    names: Sequence[str],
    shapes: Sequence[Shape],
    granularity: Granularity,
    within: Within,
    density: Density,
    k: Number,
) -> Segments:
    """The segments of a parameter list, with the units that exactly one of ``density`` and ``k`` asks for.

    Args:
        within: see :data:`aimfair.selective.choices.Within`.
        density: share in (0, 1] of the units of a segment, rounded to ``round(density * units)``, which may be 0.
        k: number of units, from 1 to those of a segment.
            Both may be mappings from the name of a tensor, or of a group, to its share or number, which may be 0.

    Raises:
        ValueError: naming the argument: both sizes or neither, a size out of range, nothing selected, an unknown name.
    """
    counts = unit_counts(shapes, granularity)
    if isinstance(within, Mapping):
        if unknown := within.keys() - set(names):
            raise ValueError(f"within: not among the parameters: {listing(sorted(unknown))}")
        if not within:
            raise ValueError("within={}: expected a mapping from parameters to groups, with at least one")
        labels = [within.get(name) for name in names]
        runs = [min(count, 1) for count in counts]
        totals: dict[str, int] = {}
        for label, count in zip(labels, counts, strict=True):
            if label is not None:
                totals[label] = totals.get(label, 0) + count
        sizes = _sizes(totals, density, k)
        order = {label: g for g, label in enumerate(totals)}
        # A tensor of no group is one of its own, in which nothing is selected.
        groups = [len(order) + t if label is None else order[label] for t, label in enumerate(labels)]
        ks = [0 if label is None else sizes[label] for label in labels]
    else:
        if within not in ("row", "tensor"):
            raise ValueError(f"within={within!r}: expected row, tensor, or a mapping from parameters to groups")
        if within == "row" and granularity != "element":
            raise ValueError(
                f"within='row' selects elements of rows: granularity must be element, found {granularity!r}"
            )
        rows = within == "row"
        runs = [
            shape[0] if rows and len(shape) >= 2 and count else min(count, 1)
            for shape, count in zip(shapes, counts, strict=True)
        ]
        lengths = {name: count // max(run, 1) for name, count, run in zip(names, counts, runs, strict=True)}
        sizes = _sizes(lengths, density, k)
        groups, ks = None, [sizes[name] for name in names]
    if not any(ks):
        given = f"density={density}" if k is None else f"k={k}"
        raise ValueError(f"{given} of every segment selects nothing; give more, at least 1 of one segment")
    lengths_of_runs = [count // max(run, 1) for count, run in zip(counts, runs, strict=True)]
    return Segments(runs, ks, groups, lengths_of_runs)


def groups_of_m(names: Sequence[str], shapes: Sequence[Shape], n_of_m: tuple[SupportsIndex, SupportsIndex]) -> Segments:
    """``n`` of each ``m`` consecutive elements of the last dimension.

    Raises:
        ValueError: not 1 <= n <= m, or naming a tensor whose last dimension is not a multiple of m.
    """
    pair = tuple(map(as_int, n_of_m)) if isinstance(n_of_m, tuple) else ()
    if len(pair) != 2 or not all(type(x) is int for x in pair):
        raise ValueError(f"n_of_m={n_of_m!r}: expected a pair of integers, such as (2, 4)")
    n, m = pair
    if not 1 <= n <= m:
        raise ValueError(f"n_of_m={n_of_m}: expected 1 <= n <= m")
    uneven = [
        f"{name} {shape}"
        for name, shape in zip(names, shapes, strict=True)
        if math.prod(shape) and (shape or (1,))[-1] % m
    ]
    if uneven:
        raise ValueError(
            f"n_of_m={n_of_m}: the last dimension is not a multiple of {m} in {listing(uneven)}; leave these out"
        )
    runs = [math.prod(shape) // m for shape in shapes]
    return Segments(runs, [n if run else 0 for run in runs], None, [m if run else 0 for run in runs])


def for_all(density: Density, k: Number) -> tuple[float | None, SupportsIndex | None]:
    """The sizes of a selection of all units together; ValueError if one is a mapping."""
    if isinstance(density, Mapping) or isinstance(k, Mapping):
        raise ValueError("density and k are mappings only for segments: give within, too")
    return density, k


def _sizes(units: Mapping[str, int], density: Density, k: Number) -> dict[str, int]:
    """Segment -> the number of its units that are selected."""
    if (density is None) == (k is None):
        raise ValueError("give either density, a share of the units of a segment, or k, a number of them")
    argument, given = ("k", k) if density is None else ("density", density)
    if isinstance(given, Mapping):
        if unknown := given.keys() - units.keys():
            unknown_names = listing(sorted(map(str, unknown)))
            raise ValueError(
                f"{argument}: no segment is called {unknown_names}; they are {listing(list(map(str, units)))}"
            )
        return {name: _size(argument, given[name], of, name, 0) if name in given else 0 for name, of in units.items()}
    least = 1 if argument == "k" else 0
    if argument == "density" and given == 0:
        raise ValueError("density=0: expected a share in (0, 1]")
    return {name: _size(argument, given, of, name, least) if of else 0 for name, of in units.items()}


def _size(argument: str, value: float | SupportsIndex | None, units: int, name: str, least: int) -> int:
    if argument == "k":
        k = as_int(value)
        if type(k) is not int or not least <= k <= units:
            raise ValueError(
                f"k={k!r}: expected between {least} and the {units} units of a segment of {name!r}; give a"
                " density, or a mapping with a k of its own for each name"
            )
        return k
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"density={value!r} of {name!r}: expected a share in (0, 1]; for a number of units give k")
    return round(value * units)
