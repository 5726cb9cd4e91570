"""Masks: which elements of a model may change, one bit per element."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self, SupportsIndex

import torch
from torch import Tensor

from aimfair.selective import ops, storage
from aimfair.selective.choices import Granularity
from aimfair.selective.layout import BLOCK, WORDS_PER_BLOCK, empty_mask, first_blocks
from aimfair.selective.parameters import Parameters, Shape, listing, named_parameters, require_one_device, shapes_of
from aimfair.selective.summary import MaskSummary, summarize
from aimfair.selective.units import number_of_units, select_units, unit_counts

KIND, VERSION = "aimfair.mask", 1
"""Kind and version in a mask file."""


@dataclass(frozen=True, eq=False, repr=False)
class ParameterMask:
    """A selection of single elements over a fixed, named, ordered list of parameters. Immutable.

    A mask created from a model is over the parameters that require a gradient at that time, each once (a tied parameter
    under its first name), in the order of ``model.named_parameters()``. ``parameters`` is always a module, a dict
    name -> parameter, or (name, parameter) pairs.

    Attributes:
        names: T names.
        shapes: T shapes.
        bits: int32 [B * 32], as in :mod:`aimfair.selective.ops`: every tensor begins a new block of 1024 elements.
        rank: int64 [B + 1], set bits before each block.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    bits: Tensor
    rank: Tensor

    # -- creating --------------------------------------------------------------------------------------

    @classmethod
    def from_bool(cls, selected: Mapping[str, Tensor], parameters: Parameters | None = None) -> Self:
        """A mask from bool tensors.

        Args:
            selected: name -> bool tensor in the shape of the parameter.
            parameters: the full ordered list, by default that of ``selected``; nothing is selected in parameters that
                ``selected`` lacks.

        Raises:
            TypeError: a tensor is not bool. ValueError: an unknown name, or a shape that is not the parameter's.
        """
        if parameters is not None:
            named = named_parameters(parameters)
            if unknown := selected.keys() - named.keys():
                raise ValueError(f"not among the parameters: {listing(sorted(unknown))}")
            for name, bools in selected.items():
                if bools.shape != named[name].shape:
                    raise ValueError(f"{name!r} has shape {tuple(bools.shape)}, expected {tuple(named[name].shape)}")
            nothing = torch.zeros((), dtype=torch.bool)
            selected = {
                name: selected[name] if name in selected else nothing.to(parameter.device).expand_as(parameter)
                for name, parameter in named.items()
            }
        if not selected:
            raise ValueError("a mask needs at least one parameter")
        for name, bools in selected.items():
            if bools.dtype != torch.bool:
                raise TypeError(f"{name!r} is {bools.dtype}, expected torch.bool")
        require_one_device(selected)
        shapes = shapes_of(selected.values())
        bits, rank = empty_mask(_numels(shapes), next(iter(selected.values())).device)
        ops.pack_bits_(bits, rank, [bools.contiguous() for bools in selected.values()])
        return cls(tuple(selected), shapes, bits, rank)

    @classmethod
    def from_bits(cls, names: Sequence[str], shapes: Sequence[Shape], bits: Tensor) -> Self:
        """A mask from words laid out as :attr:`bits`; the rank directory is computed."""
        rank = torch.empty(bits.numel() // WORDS_PER_BLOCK + 1, dtype=torch.int64, device=bits.device)
        ops.rank_(rank, bits)
        return cls(tuple(names), tuple(shapes), bits, rank)

    @classmethod
    def full(cls, parameters: Parameters) -> Self:
        """Every element."""
        return cls.from_names(parameters, lambda _: True)

    @classmethod
    def empty(cls, parameters: Parameters) -> Self:
        """No element."""
        return cls.from_names(parameters, ())

    @classmethod
    def from_names(cls, parameters: Parameters, names: Callable[[str], bool] | Iterable[str]) -> Self:
        """Whole tensors: those with these names, or whose name the function accepts.

        Raises:
            ValueError: a name that no parameter has.
        """
        named = named_parameters(parameters)
        wanted = {name for name in named if names(name)} if callable(names) else set(names)
        if unknown := wanted - named.keys():
            raise ValueError(f"not among the parameters: {listing(sorted(unknown))}")
        shapes = shapes_of(named.values())
        numels = _numels(shapes)
        bits = _every_bit(numels)
        firsts = first_blocks(numels)
        for name, (first, end) in zip(named, pairwise(firsts), strict=True):
            if name not in wanted:
                bits[first * WORDS_PER_BLOCK : end * WORDS_PER_BLOCK] = 0
        return cls.from_bits(tuple(named), shapes, bits.to(next(iter(named.values())).device))

    @classmethod
    def random(
        cls,
        parameters: Parameters,
        density: float | None = None,
        *,
        k: SupportsIndex | None = None,
        seed: int = 0,
        granularity: Granularity = "element",
    ) -> Self:
        """Exactly ``round(density * units)``, or ``k``, units drawn uniformly; the same on every device for a seed."""
        named = named_parameters(parameters)
        shapes = shapes_of(named.values())
        counts = unit_counts(shapes, granularity)
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(count, generator=generator) for count in counts]
        bits, rank = select_units(scores, number_of_units(density, k, sum(counts)), shapes, granularity)
        return cls(tuple(named), shapes, bits, rank).to(next(iter(named.values())).device)

    # -- reading ---------------------------------------------------------------------------------------

    def to_bool(self) -> dict[str, Tensor]:
        """Name -> bool tensor in the shape of the parameter."""
        bools = {
            name: torch.empty(shape, dtype=torch.bool, device=self.device)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }
        ops.unpack_bits_(list(bools.values()), self.bits)
        return bools

    def bool_of(self, name: str) -> Tensor:
        """The bool tensor of one parameter; KeyError if there is none of that name."""
        t = self.index[name]
        selected = torch.empty(self.shapes[t], dtype=torch.bool, device=self.device)
        words = slice(*(block * WORDS_PER_BLOCK for block in self.first_blocks[t : t + 2]))
        ops.unpack_bits_([selected], self.bits[words])
        return selected

    @property
    def device(self) -> torch.device:
        return self.bits.device

    @cached_property
    def index(self) -> dict[str, int]:
        """Name -> position in the list."""
        return {name: t for t, name in enumerate(self.names)}

    @cached_property
    def numels(self) -> list[int]:
        """Elements of each tensor."""
        return _numels(self.shapes)

    @cached_property
    def first_blocks(self) -> list[int]:
        """Index of the first block of each tensor, and at the end the number of blocks."""
        return first_blocks(self.numels)

    @cached_property
    def nnz_per_tensor(self) -> list[int]:
        """Selected elements of each tensor."""
        before = self.rank[torch.tensor(self.first_blocks, device=self.device)].tolist()
        return [after - start for start, after in pairwise(before)]

    @property
    def nnz(self) -> int:
        """Selected elements."""
        return sum(self.nnz_per_tensor)

    @property
    def numel(self) -> int:
        """Elements."""
        return sum(self.numels)

    @property
    def density(self) -> float:
        """Selected share of the elements."""
        return self.nnz / self.numel if self.numel else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits, in hexadecimal; the same on every machine."""
        words = self.bits.cpu().numpy()
        digest = hashlib.sha256(json.dumps([self.names, self.shapes], separators=(",", ":")).encode())
        digest.update((words if sys.byteorder == "little" else words.byteswap()).data)
        return digest.hexdigest()

    def summary(self, depth: int | None = None) -> MaskSummary:
        """Selected shares per tensor, and per block: the first ``depth`` levels of the module path, by default up to
        its first numbered level. ``print(mask.summary())`` shows the table of blocks."""
        return summarize(self.names, self.numels, self.nnz_per_tensor, depth)

    def __repr__(self) -> str:
        return (
            f"ParameterMask({len(self.names)} tensors, {self.nnz:,} of {self.numel:,} elements selected,"
            f" density {self.density:.4%}, {self.device})"
        )

    # -- set algebra -----------------------------------------------------------------------------------

    def __and__(self, other: "ParameterMask") -> Self:
        return self._with(self.bits & self._bits_of(other))

    def __or__(self, other: "ParameterMask") -> Self:
        return self._with(self.bits | self._bits_of(other))

    def __xor__(self, other: "ParameterMask") -> Self:
        return self._with(self.bits ^ self._bits_of(other))

    def __sub__(self, other: "ParameterMask") -> Self:
        return self._with(self.bits & ~self._bits_of(other))

    def __invert__(self) -> Self:
        return self._with(self.bits ^ _every_bit(self.numels).to(self.device))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParameterMask):
            return NotImplemented
        same_list = (self.names, self.shapes) == (other.names, other.shapes)
        return same_list and torch.equal(self.bits, other.bits.to(self.device))

    def _with(self, bits: Tensor) -> Self:
        return type(self).from_bits(self.names, self.shapes, bits)

    def _bits_of(self, other: "ParameterMask") -> Tensor:
        if (self.names, self.shapes) != (other.names, other.shapes):
            ours, theirs = (set(zip(mask.names, mask.shapes, strict=True)) for mask in (self, other))
            raise ValueError(f"masks over different parameters: {listing(sorted(ours ^ theirs)) or 'another order'}")
        return other.bits.to(self.device)

    # -- a model ---------------------------------------------------------------------------------------

    def check(self, parameters: Parameters) -> None:
        """Raises for another architecture.

        Raises:
            ValueError: listing names that the model lacks, trainable ones that the mask lacks, and differing shapes.
        """
        named = named_parameters(parameters, trainable=False)
        missing = [name for name in self.names if name not in named]
        unexpected = [name for name, p in named.items() if p.requires_grad and name not in self.index]
        mismatched = [
            f"{name} {tuple(named[name].shape)} instead of {shape}"
            for name, shape in zip(self.names, self.shapes, strict=True)
            if name in named and named[name].shape != shape
        ]
        found = {"missing": missing, "not in the mask": unexpected, "of another shape": mismatched}
        if any(found.values()):
            raise ValueError(
                "the mask is for another model: "
                + "; ".join(f"{what}: {listing(which)}" for what, which in found.items() if which)
            )

    def freeze_unselected(self, parameters: Parameters) -> list[str]:
        """Turns off gradients of parameters without a selected element, so that backward skips them.

        Returns:
            Their names. Other parameters are unchanged.
        """
        self.check(parameters)
        named = named_parameters(parameters, trainable=False)
        frozen = [name for name, nnz in zip(self.names, self.nnz_per_tensor, strict=True) if nnz == 0]
        for name in frozen:
            named[name].requires_grad_(False)
            named[name].grad = None
        return frozen

    def to(self, device: torch.device | str) -> Self:
        """The mask on a device; itself if it is already there."""
        if torch.device(device) == self.device:
            return self
        return type(self)(self.names, self.shapes, self.bits.to(device), self.rank.to(device))

    # -- disk ------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file atomically; on OSError an older file is kept."""
        storage.save(path, KIND, VERSION, {"bits": self.bits}, names=self.names, shapes=self.shapes, digest=self.digest)

    @classmethod
    def load(cls, path: str | os.PathLike[str], parameters: Parameters | None = None) -> Self:
        """Reads a mask, onto the device of ``parameters`` if given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: one line naming the file: not a mask, damaged, or for another model than ``parameters``.
        """
        tensors, metadata = storage.load(path, KIND, VERSION)
        try:
            mask = cls._verified(tensors, metadata)
            if parameters is None:
                return mask
            named = named_parameters(parameters, trainable=False)
            mask.check(named)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return mask.to(next(iter(named.values())).device)

    @classmethod
    def _verified(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        if tensors.keys() != {"bits"} or metadata.keys() != {"names", "shapes", "digest"}:
            raise ValueError(f"unexpected contents: {listing([*tensors, *metadata])}")
        bits, names, shapes = tensors["bits"].clone(), metadata["names"], metadata["shapes"]
        if not (_is_list_of(str, names) and _is_list_of(list, shapes) and all(_is_list_of(int, s) for s in shapes)):
            raise ValueError("names and shapes are malformed")
        if len(names) != len(shapes) or len(set(names)) != len(names) or any(n < 0 for s in shapes for n in s):
            raise ValueError("names and shapes are not a parameter list")
        shapes = tuple(map(tuple, shapes))
        words = first_blocks(_numels(shapes))[-1] * WORDS_PER_BLOCK
        if bits.dtype != torch.int32 or bits.shape != (words,):
            raise ValueError(f"bits are {bits.dtype} {tuple(bits.shape)}, expected torch.int32 ({words},)")
        if (bits & ~_every_bit(_numels(shapes))).any():
            raise ValueError("bits are set past the end of a tensor")
        mask = cls.from_bits(names, shapes, bits)
        if mask.digest != metadata["digest"]:
            raise ValueError(f"the digest is {mask.digest[:12]}, expected {str(metadata['digest'])[:12]}: damaged")
        return mask


def _numels(shapes: Iterable[Shape]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _every_bit(numels: Sequence[int]) -> Tensor:
    """int32 words, on the CPU, of the mask that selects everything: bits past the end of a tensor are 0."""
    firsts = first_blocks(numels)
    bits = torch.full((firsts[-1] * WORDS_PER_BLOCK,), -1, dtype=torch.int32)
    for (first, end), numel in zip(pairwise(firsts), numels, strict=True):
        if numel % BLOCK:
            last = first * WORDS_PER_BLOCK + numel // 32
            bits[last : end * WORDS_PER_BLOCK] = 0
            bits[last] = (1 << numel % 32) - 1
    return bits
