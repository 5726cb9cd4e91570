"""Comparing, patching and hashing sources of tensors, a piece at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from aimfair.selective.checkpoint import Bits, InMemory, Source, Spec
from aimfair.selective.delta_file import Change, Entry, Positions
from aimfair.selective.parameters import listing

OnConflict = Literal["error", "first", "last"]
"""Which of several deltas decides an element that they set to different values."""


def differences(base: Source, result: Source, *, reversible: bool) -> Iterator[tuple[str, Entry]]:
    """What changes from ``base`` to ``result``, for every tensor in the order of ``base``.

    Raises:
        ValueError: naming the tensors that only one side has, or that have another dtype or shape.
    """
    require_same(result, base.specs, "the result", "the base")
    for name, spec in base.specs.items():
        before = hashlib.sha256()
        after = None  # until the first difference
        where, new, old = [], [], []
        begin = 0
        for one, other in zip(base.pieces(name), result.pieces(name), strict=True):
            differing = np.flatnonzero(one != other)
            if len(differing):
                after = after or before.copy()
                where.append(differing + begin)
                new.append(other[differing])
                old.append(one[differing])
            before.update(one.data)
            if after is not None:
                after.update(other.data)
            begin += len(one)
        if after is None:
            yield name, Entry(spec, before.hexdigest(), before.hexdigest(), None)
        else:
            olds = np.concatenate(old) if reversible else None
            change = Change.at(spec.numel, np.concatenate(where), np.concatenate(new), olds)
            yield name, Entry(spec, before.hexdigest(), after.hexdigest(), change)


def require_same(
    source: Source, specs: Mapping[str, Spec], ours: str, theirs: str, *, may_have_more: bool = False
) -> None:
    """Raises unless ``source`` has exactly these tensors; a module may hold some a second time, tied.

    Args:
        ours, theirs: what messages call ``source`` and the owner of ``specs``.
        may_have_more: allow any other tensors.

    Raises:
        ValueError: listing what is missing, what is there besides, and what has another dtype or shape.
    """
    ties = source.first_of if isinstance(source, InMemory) else {}
    missing = [name for name in specs if name not in source.specs]
    extra = [name for name in source.specs if name not in specs and ties.get(name, name) == name]
    other = [
        f"{name} {source.specs[name]} instead of {spec}"
        for name, spec in specs.items()
        if name in source.specs and source.specs[name] != spec
    ]
    found = {f"only in {theirs}": missing, f"only in {ours}": [] if may_have_more else extra, f"in {ours}": other}
    if any(found.values()):
        raise ValueError("; ".join(f"{what}: {listing(names)}" for what, names in found.items() if names))


class Patched:
    """A source with some of its elements changed."""

    def __init__(self, source: Source, changes: Mapping[str, Change]):
        self.source, self.changes, self.specs = source, changes, source.specs

    def __str__(self) -> str:
        return f"{self.source}, patched"

    def pieces(self, name: str) -> Iterator[Bits]:
        if name not in self.changes:
            yield from self.source.pieces(name)
            return
        change, where = self.changes[name], positions_of(name, self.changes[name])
        begin = 0
        for piece in self.source.pieces(name):
            first, end = np.searchsorted(where, (begin, begin + len(piece)))
            patched = piece.copy()  # it may be the memory of a model
            patched[where[first:end] - begin] = change.new[first:end]
            yield patched
            begin += len(piece)


class Hashed:
    """A source whose tensors are compared with their SHA-256 as they are read; ``differing`` has the others' names."""

    def __init__(self, source: Source, expected: Mapping[str, str | None]):
        self.source, self.expected, self.specs = source, expected, source.specs
        self.differing: list[str] = []

    def __str__(self) -> str:
        return str(self.source)

    def pieces(self, name: str) -> Iterator[Bits]:
        if name not in self.expected:
            yield from self.source.pieces(name)
            return
        digest = hashlib.sha256()
        for piece in self.source.pieces(name):
            digest.update(piece.data)
            yield piece
        if digest.hexdigest() != self.expected[name]:
            self.differing.append(name)


def digest(source: Source, name: str) -> str:
    """SHA-256 of the bytes of a tensor."""
    found = hashlib.sha256()
    for piece in source.pieces(name):
        found.update(piece.data)
    return found.hexdigest()


def positions_of(name: str, change: Change) -> Positions:
    """As :meth:`Change.positions`, with errors that name the tensor."""
    try:
        return change.positions()
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def merged(name: str, changes: Sequence[Change], on_conflict: OnConflict) -> tuple[Change, int]:
    """The changes of one tensor together, without old values, and the number of elements in conflict.

    Args:
        on_conflict: of an element that they set to different bits, the first or the last counts.
    """
    where = np.concatenate([positions_of(name, change) for change in changes])
    new = np.concatenate([change.new for change in changes])
    order = np.argsort(where, kind="stable")  # equal positions stay in the order of the deltas
    where, new = where[order], new[order]
    firsts = np.flatnonzero(np.concatenate(([True], where[1:] != where[:-1])))
    counts = np.diff(firsts, append=len(where))
    conflicts = int(np.logical_or.reduceat(new != np.repeat(new[firsts], counts), firsts).sum())
    chosen = firsts + counts - 1 if on_conflict == "last" else firsts
    return Change.at(changes[0].numel, where[firsts], new[chosen], None), conflicts
