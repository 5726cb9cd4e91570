"""Deltas: the difference between two models with the same tensors, exact to the bit.

A model that was tuned under a mask is its base and a small patch: the changed elements. A delta applies to files of any
size, a piece of a tensor at a time, or to a model in memory, in place.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from aimfair.selective import delta_file
from aimfair.selective.checkpoint import Bits, Checkpoint, InMemory, Source, Spec, as_integers, opened
from aimfair.selective.delta_file import Change, Entry, Positions, table_digest
from aimfair.selective.difference import (
    Hashed,
    OnConflict,
    Patched,
    differences,
    digest,
    merged,
    positions_of,
    require_same,
)
from aimfair.selective.parameters import listing
from aimfair.selective.summary import MaskSummary, summarize

_AT_ONCE = 1 << 13
"""Elements that are compared and then written while their cache lines are in the second-level cache."""

Model = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor] | Source
"""A safetensors file or folder, a module, a dict name -> tensor, or another source of tensors."""


@dataclass(frozen=True)
class Verification:
    """How the tensors of a model compare with those of a delta's base and result, by SHA-256.

    Attributes:
        applied: tensors that the delta changes and that are the result's.
        pending: tensors that the delta changes and that are the base's.
        differing: tensors that are neither, or of another dtype or shape.
        missing, extra: tensors that only the delta knows, or only the model has.
    """

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    differing: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def is_result(self) -> bool:
        """Every element is that of the result; nothing else changed."""
        return not (self.pending or self.differing or self.missing or self.extra)

    @property
    def is_base(self) -> bool:
        """Every element is that of the base."""
        return not (self.applied or self.differing or self.missing or self.extra)

    def __str__(self) -> str:
        if self.is_result:
            return f"the result: {len(self.applied)} tensors changed, all others are the base's"
        if self.is_base:
            return "the base: the delta is not applied"
        found = {
            "neither the base's nor the result's": self.differing, "missing": self.missing,
            "not in the delta": self.extra, "the result's": self.applied, "still the base's": self.pending,
        }  # fmt: skip
        return "; ".join(f"{what}: {listing(names)}" for what, names in found.items() if names)


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    """The elements in which a result differs from its base. Immutable.

    Attributes:
        entries: name -> what is known of the tensor, for every tensor of the model; of the tuned ones alone in a delta
            of an optimizer, which has no digests.
        reversible: whether it holds the old values too.
    """

    entries: Mapping[str, Entry]
    reversible: bool

    # -- making ----------------------------------------------------------------------------------------

    @classmethod
    def between(cls, base: Model, result: Model, *, reversible: bool = True) -> Self:
        """The delta that makes ``result`` of ``base``, in memory.

        Args:
            reversible: keep the old values too, which :meth:`revert` needs.

        Raises:
            ValueError: naming the tensors that only one side has, or that have another dtype or shape.
            FileNotFoundError: there is no such file.
        """
        return cls(dict(differences(opened(base), opened(result), reversible=reversible)), reversible)

    @classmethod
    def make(cls, base: Model, result: Model, to: str | os.PathLike[str], *, reversible: bool = True) -> Self:
        """As :meth:`between`, into a file: only one tensor's changes are in memory at a time.

        Raises:
            ValueError: ``to`` is a file of one of the models, or as for :meth:`between`.
        """
        models, target = (opened(base), opened(result)), Path(to)
        for model in models:
            if isinstance(model, Checkpoint) and target.exists() and any(map(target.samefile, model.files)):
                raise ValueError(f"{to}: holds weights of {model}, which the delta is made of; name another file")
        delta_file.write(to, differences(*models, reversible=reversible), reversible)
        return cls.load(to)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The delta in a file, memory-mapped.

        Raises:
            FileNotFoundError: there is no such file. ValueError: naming the file: not a delta, or damaged.
        """
        return cls(*delta_file.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file atomically; on OSError an older file is kept."""
        delta_file.write(path, self.entries.items(), self.reversible)

    @classmethod
    def merge(cls, deltas: Sequence["Delta"], base: Model, *, on_conflict: OnConflict = "error") -> Self:
        """One delta with the changes of several on one base.

        An element that several deltas change must get the same bits from each, unless ``on_conflict`` says which of
        them decides. The merged delta is reversible.

        Args:
            base: from which the digests of the merged result are computed.

        Raises:
            ValueError: the deltas are on other bases, or in conflict, which names the tensors.
        """
        if on_conflict not in ("error", "first", "last"):
            raise ValueError(f'on_conflict={on_conflict!r}: expected "error", "first" or "last"')
        if not deltas:
            raise ValueError("no deltas to merge")
        bases = [delta.base for delta in deltas]
        for number, other in enumerate(bases, 1):
            if other is None:
                raise ValueError(f"delta {number} has no digests of whole tensors: make it of two models to merge it")
            if other != bases[0]:
                raise ValueError(f"delta {number} is on base {other[:12]}, the first on {str(bases[0])[:12]}")
        source = opened(base)
        require_same(source, deltas[0].specs, f"{source}", "the deltas")
        changes: dict[str, Change] = {}
        conflicts = []
        for name in deltas[0].entries:
            if found := [change for delta in deltas if (change := delta.entries[name].change)]:
                changes[name], count = merged(name, found, on_conflict)
                conflicts += [f"{name} ({count:,} elements)"] if count else []
        if conflicts and on_conflict == "error":
            raise ValueError(f"the deltas disagree on {listing(conflicts)}; choose the first or the last")
        result = cls(dict(differences(source, Patched(source, changes), reversible=True)), True)
        if wrong := [name for name, entry in result.entries.items() if entry.before != deltas[0].entries[name].before]:
            raise ValueError(f"{source}: not the base of the deltas: {listing(wrong)} differ")
        return result

    def reversed(self) -> Self:
        """The delta from the result to the base.

        Raises:
            ValueError: this one is not reversible.
        """
        if not self.reversible:
            raise ValueError("the delta holds no old values: it was made with --one-way, or reversible=False")
        return type(self)({name: entry.reversed() for name, entry in self.entries.items()}, True)

    # -- reading ---------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> str | None:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors of the base; None if unknown."""
        return table_digest(self.entries, after=False)

    @cached_property
    def result(self) -> str | None:
        """As :attr:`base`, of the result."""
        return table_digest(self.entries, after=True)

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Name -> dtype and shape."""
        return {name: entry.spec for name, entry in self.entries.items()}

    @cached_property
    def changes(self) -> dict[str, Change]:
        """Name -> its changed elements, of the tensors that differ."""
        return {name: entry.change for name, entry in self.entries.items() if entry.change is not None}

    @property
    def nnz(self) -> int:
        """Changed elements."""
        return sum(change.nnz for change in self.changes.values())

    @property
    def numel(self) -> int:
        """Elements of all tensors."""
        return sum(entry.spec.numel for entry in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of positions and values."""
        return sum(change.nbytes for change in self.changes.values())

    def summary(self, depth: int | None = None) -> MaskSummary:
        """Changed shares; prints as a table of blocks, each of the first ``depth`` levels of the names."""
        nnz = [entry.change.nnz if entry.change else 0 for entry in self.entries.values()]
        return summarize(list(self.entries), [entry.spec.numel for entry in self.entries.values()], nnz, depth)

    def __repr__(self) -> str:
        return f"Delta({self.nnz:,} of {self.numel:,} elements in {len(self.changes)} tensors)"

    # -- files -----------------------------------------------------------------------------------------

    def apply(self, source: Model, to: str | os.PathLike[str]) -> None:
        """Writes the result that this delta makes of the files of its base, a piece of a tensor at a time.

        Args:
            source: a safetensors file, or a folder, whose shards and header are kept; its .json, .txt and .model
                files are copied.
            to: a file, or a new folder. It appears at the end, complete.

        Raises:
            ValueError: ``source`` is not the base, which names the tensors that differ; or the delta is damaged.
            OSError: ``to`` cannot be written.
        """
        self._convert(source, to, "base")

    def revert(self, source: Model, to: str | os.PathLike[str]) -> None:
        """Writes the base again, from the files of the result; otherwise as :meth:`apply`.

        Raises:
            ValueError: the delta is not reversible, or ``source`` is not its result.
        """
        self.reversed()._convert(source, to, "result")

    def _convert(self, source: Model, to: str | os.PathLike[str], role: str) -> None:
        files = opened(source)
        if not isinstance(files, Checkpoint):
            raise TypeError("expected the path of a file or folder; a model in memory takes apply_ and revert_")
        if self.base is None:
            raise ValueError("the delta has no digests of whole tensors: apply_ it to a model in memory")
        require_same(files, self.specs, f"{files}", "the delta")
        before = Hashed(files, {name: entry.before for name, entry in self.entries.items()})
        after = Hashed(Patched(before, self.changes), {name: self.entries[name].after for name in self.changes})

        def check() -> None:
            if before.differing:
                raise ValueError(f"{files}: not the {role} of the delta: {listing(before.differing)} differ")
            if after.differing:
                raise ValueError(f"the delta is damaged: its digests of {listing(after.differing)} are others")

        files.write(after, Path(to), check)

    # -- models ----------------------------------------------------------------------------------------

    def apply_(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Makes the result of a model that holds the base, in place.

        A reversible delta first compares every element that it changes with the base's; nothing is written if one
        differs. Elements that it does not change are not looked at: :meth:`verify` does. A tensor that is tied to
        others is changed once, and must be changed in the same way by the delta.

        Raises:
            ValueError, TypeError: naming the tensors that the model lacks, or that do not hold the base's values.
        """
        self._patch(model, "base")

    def revert_(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Makes the base of a model that holds the result, in place; otherwise as :meth:`apply_`."""
        self.reversed()._patch(model, "result")

    @torch.no_grad()
    def _patch(self, model: nn.Module | Mapping[str, Tensor], role: str) -> None:
        held = InMemory(model)
        require_same(held, self.specs, "the model", "the delta", may_have_more=True)
        plan = [(name, positions_of(name, self.changes[name])) for name in self._untied(held)]
        flats = {name: as_integers(held.tensors[name].contiguous()) for name, _ in plan}  # its memory, if contiguous
        written = {name: _exchange(flats[name], where, self.changes[name]) for name, where in plan}
        if wrong := [name for name, where in plan if written[name] < len(where)]:
            for name, where in plan:
                _exchange(flats[name], where[: written[name]], self.changes[name].reversed())
            raise ValueError(f"the model does not hold the {role} of the delta: {listing(wrong)} differ")
        for name, flat in flats.items():
            tensor = held.tensors[name]
            if not tensor.is_contiguous():
                tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))

    def _untied(self, held: InMemory) -> list[str]:
        """Names of the tensors to change, each once.

        Raises:
            ValueError: naming two that are one tensor in the model and that the delta changes in different ways.
        """
        firsts: dict[str, str] = {}
        for name, first in held.first_of.items():
            if name not in self.entries:
                continue
            known = firsts.setdefault(first, name)
            if known != name and not _same(self.entries[known].change, self.entries[name].change):
                raise ValueError(f"{known!r} and {name!r} are one tensor in the model and differ in the delta")
        return [name for name in firsts.values() if self.entries[name].change is not None]

    def verify(self, model: Model) -> Verification:
        """Compares every tensor of a model, by SHA-256, with those of the base and the result.

        Raises:
            ValueError: the delta has no digests.
        """
        if self.base is None or self.result is None:
            raise ValueError("the delta has no digests of whole tensors: make it of two models to verify one")
        source = opened(model)
        ties = source.first_of if isinstance(source, InMemory) else {}
        extra = [name for name in source.specs if name not in self.entries and ties.get(name, name) == name]
        missing = [name for name in self.entries if name not in source.specs]
        applied: list[str] = []
        pending: list[str] = []
        differing: list[str] = []
        for name, entry in self.entries.items():
            if name not in source.specs:
                continue
            found = digest(source, name) if source.specs[name] == entry.spec else None
            if found not in (entry.before, entry.after):
                differing.append(name)
            elif entry.before != entry.after:
                (applied if found == entry.after else pending).append(name)
        return Verification(*map(tuple, (applied, pending, differing, missing, extra)))


def _exchange(flat: Tensor, where: Positions, change: Change) -> int:
    """Writes the new values of a change, if the old ones are there, until one is not.

    Args:
        flat: integers of the elements' width.
        where: the first positions of the change, all or some.

    Returns:
        The number of elements written.
    """
    step = _AT_ONCE if flat.device.type == "cpu" else max(len(where), 1)
    for begin in range(0, len(where), step):
        part = slice(begin, min(begin + step, len(where)))
        places = torch.from_numpy(where[part]).to(flat.device)
        if change.old is not None and not torch.equal(flat.index_select(0, places), _integers(change.old[part], flat)):
            return begin
        flat.scatter_(0, places, _integers(change.new[part], flat))
    return len(where)


def _integers(bits: Bits, like: Tensor) -> Tensor:
    """A copy of bits as integers of the kind and on the device of ``like``."""
    kind = f"i{bits.itemsize}" if bits.itemsize > 1 else "u1"
    return torch.from_numpy(np.array(bits).view(kind)).to(like.device)


def _same(one: Change | None, other: Change | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one.positions(), other.positions()) and np.array_equal(one.new, other.new))
