"""Parameters that several processes hold together: DTensors, as ``torch.distributed.fsdp.fully_shard`` makes them.

Masks are always over the whole parameters; statistics and optimizer state are sharded like the parameters. Dimension 0
of a parameter may be sharded over one dimension of its device mesh (FSDP); the other dimensions must be replicated
(HSDP), and replicas hold the same bits and do not count twice.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from aimfair.selective import collectives, ops
from aimfair.selective.choices import Granularity
from aimfair.selective.collectives import concatenated, require_same, total
from aimfair.selective.layout import WORDS_PER_BLOCK, empty_mask, first_blocks
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import Shape, shapes_of
from aimfair.selective.score import Score
from aimfair.selective.segments import Segments
from aimfair.selective.units import at_least, nan_checks, unit_counts, unit_scores

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    module = sys.modules.get("torch.distributed.tensor")  # if it is not loaded there are none, and loading it is slow
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, as a view."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_grad(name: str, parameter: Tensor, grad: Tensor) -> Tensor:
    """The part of a gradient that belongs to the part of its parameter held here.

    Raises:
        TypeError: the gradient has other placements than the parameter.
    """
    placements = [tensor.placements if is_dtensor(tensor) else () for tensor in (parameter, grad)]
    if placements[0] != placements[1]:
        raise TypeError(
            f"the gradient of {name!r} is placed {tuple(placements[1])}, its parameter {tuple(placements[0])}"
        )
    return local(grad)


@dataclass(frozen=True)
class Shard:
    """The part of a parameter that this process holds.

    Attributes:
        group: the processes that hold the parameter together, in the order of the rows; None: it is whole here.
        place: (rank, number) of this process among them.
        begin, end: its elements of the whole parameter.
    """

    group: dist.ProcessGroup | None
    place: tuple[int, int]
    begin: int
    end: int


def shard_of(name: str, parameter: Tensor) -> Shard:
    """The part of a parameter that this process holds.

    Raises:
        ValueError: naming the parameter, unless it is sharded over dimension 0 once, in chunks as of torch.chunk.
    """
    placements = parameter.placements if is_dtensor(parameter) else ()
    sharded = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if not is_dtensor(parameter) or not sharded:
        return Shard(None, (0, 1), 0, parameter.numel())
    from torch.distributed.tensor import Shard as OnDim  # no subclass: those order rows differently

    dim = sharded[0]
    if len(sharded) > 1 or type(placements[dim]) is not OnDim or placements[dim] != OnDim(0):
        raise ValueError(
            f"parameter {name!r} is placed {tuple(placements)}, expected Shard(0) over one dimension of the device"
            " mesh and Replicate over the others"
        )
    rank, size, rows = parameter.device_mesh.get_local_rank(dim), parameter.device_mesh.size(dim), parameter.shape[0]
    begin, end = (min(place * -(-rows // size), rows) for place in (rank, rank + 1))
    held = local(parameter)
    if held.shape != (end - begin, *parameter.shape[1:]):
        raise ValueError(
            f"parameter {name!r}: shard {rank} of {size} is {tuple(held.shape)}, expected {end - begin} of the {rows}"
            " rows, as from torch.chunk"
        )
    row = parameter.numel() // max(rows, 1)
    return Shard(parameter.device_mesh.get_group(dim), (rank, size), begin * row, end * row)


def groups_of(parameters: Iterable[Tensor]) -> list[dist.ProcessGroup]:
    """The groups of the device meshes of the DTensors among the parameters, one per dimension."""
    meshes = dict.fromkeys(parameter.device_mesh for parameter in parameters if is_dtensor(parameter))
    return list(dict.fromkeys(group for mesh in meshes for group in mesh.get_all_groups()))


@torch.no_grad()
def placed_like(parameter: Tensor, name: str, values: Tensor) -> Tensor:
    """``values`` over the whole parameter, sharded like it."""
    if not is_dtensor(parameter):
        return values.reshape(parameter.shape)
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    if is_dtensor(values):
        return values.redistribute(mesh, placements)
    shard = shard_of(name, parameter)
    part = values.reshape(-1)[shard.begin : shard.end].view(local(parameter).shape)
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


class Whole:
    """Parameters that this process holds in full: the usual case.

    Attributes:
        shapes: of what this process keeps of each parameter.
        place: (rank, number) of this process among those that hold the parameters together.
    """

    place = (0, 1)

    def __init__(self, shapes: Sequence[Shape]):
        self.shapes = tuple(shapes)

    def unit_scores(self, score: Score, granularity: Granularity) -> list[Tensor]:
        """float32 scores of the units of each parameter that this process ranks."""
        return unit_scores(score, unit_counts(self.shapes, granularity))

    def top_k(self, score: Score, k: int, granularity: Granularity, *, largest: bool) -> tuple[Tensor, Tensor]:
        """``(bits, rank)`` of the best k of all elements, or of all units, whose scores are then given by value."""
        bits, rank = empty_mask(score.numels, score.device)
        ops.select_(bits, rank, k, score, largest=largest)
        return bits, rank

    def top_in(
        self, score: Score, segments: Segments, granularity: Granularity, *, largest: bool
    ) -> tuple[Tensor, Tensor]:
        """The same of the best in every segment by itself."""
        bits, rank = empty_mask(score.numels, score.device)
        runs, ks, groups = segments.runs, segments.ks, segments.groups
        ops.select_segments_(bits, rank, runs, ks, score, groups=groups, largest=largest)
        return bits, rank

    def at_least(
        self, score: Score, threshold: float, granularity: Granularity, *, largest: bool
    ) -> tuple[Tensor, Tensor]:
        """The same of those that score at least ``threshold``, or at most unless ``largest``."""
        return at_least(score, threshold, largest=largest)

    def all_scores(self, scores: list[Tensor], granularity: Granularity) -> list[Tensor]:
        """The scores of all units, given those that :meth:`unit_scores` returned here."""
        return scores

    def total(self, values: Tensor) -> Tensor:
        """[T] sums over the whole parameters, given the sums over the parts held here."""
        return values

    def require_same(self, call: str, described: Mapping[str, Any]) -> None:
        """Raises ValueError in all processes that hold parts or replicas, unless they describe a call alike."""


class Sharded(Whole):
    """Parameters that the processes of a group hold together; they call each method together.

    Elements and rows are scored by the process that holds them. Whole tensors are scored by every process, from
    accumulators gathered one tensor at a time, because a sum of shards rounds differently.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        shards: Sequence[Shard],
        group: dist.ProcessGroup,
        groups: Sequence[dist.ProcessGroup],
    ):
        super().__init__(shapes)
        self._group, self._groups = group, groups
        self.place = (dist.get_rank(group), dist.get_world_size(group))
        # Parameters that every process holds in full belong to the first.
        self._owned = [shard.group is not None or self.place[0] == 0 for shard in shards]

    def unit_scores(self, score: Score, granularity: Granularity) -> list[Tensor]:
        score = self._of_owned(score)
        for checked in nan_checks(score):
            collectives.refuse_nan(checked, self._group)
        if granularity == "tensor":
            return [self._tensor_score(score.entry(t)) for t in range(len(self.shapes))]
        shapes = [shape if owned else (0, *shape[1:]) for shape, owned in zip(self.shapes, self._owned, strict=True)]
        return unit_scores(score, unit_counts(shapes, granularity))

    def _tensor_score(self, score: Score) -> Tensor:
        score = score.map(lambda _, run: concatenated(run, self._group))
        return unit_scores(score, [min(score.a[0].numel(), 1)])[0]

    def top_k(self, score: Score, k: int, granularity: Granularity, *, largest: bool) -> tuple[Tensor, Tensor]:
        if granularity == "tensor":
            return super().top_k(score, k, granularity, largest=largest)
        return collectives.top_k(self._of_owned(score), k, self._group, largest=largest)

    def top_in(
        self, score: Score, segments: Segments, granularity: Granularity, *, largest: bool
    ) -> tuple[Tensor, Tensor]:
        if granularity == "tensor":
            return super().top_in(score, segments, granularity, largest=largest)
        return collectives.top_in(self._of_owned(score), segments, self._group, largest=largest)

    def at_least(
        self, score: Score, threshold: float, granularity: Granularity, *, largest: bool
    ) -> tuple[Tensor, Tensor]:
        if granularity == "tensor":
            return super().at_least(score, threshold, granularity, largest=largest)
        return collectives.at_least(self._of_owned(score), threshold, self._group, largest=largest)

    def all_scores(self, scores: list[Tensor], granularity: Granularity) -> list[Tensor]:
        return scores if granularity == "tensor" else [concatenated(score, self._group) for score in scores]

    def total(self, values: Tensor) -> Tensor:
        owned = torch.tensor(self._owned, device=values.device)
        return total(torch.where(owned, values, 0), self._group)

    def require_same(self, call: str, described: Mapping[str, Any]) -> None:
        require_same(call, described, self._groups)

    def _of_owned(self, score: Score) -> Score:
        return score.map(lambda t, run: run if self._owned[t] else run[:0])


def holding_of(named: Mapping[str, Tensor]) -> Whole:
    """How this process holds the parameters.

    Raises:
        ValueError: naming the parameters, if :func:`shard_of` refuses one, or two are sharded over different processes.
    """
    shapes = shapes_of(local(parameter) for parameter in named.values())
    shards = {name: shard_of(name, parameter) for name, parameter in named.items()}
    groups = {name: shard.group for name, shard in shards.items() if shard.group is not None}
    if not groups:
        return Whole(shapes)
    (first, group), *others = groups.items()
    for name, other in others:
        if dist.get_process_group_ranks(other) != dist.get_process_group_ranks(group):
            raise ValueError(
                f"parameters {first!r} and {name!r} are sharded over different processes:"
                f" {dist.get_process_group_ranks(group)} and {dist.get_process_group_ranks(other)}"
            )
    return Sharded(shapes, list(shards.values()), group, groups_of(named.values()))


def part_of_mask(mask: ParameterMask, parameters: Mapping[str, Tensor]) -> ParameterMask:
    """The mask over the parts of these parameters (some or all of the mask's) that this process holds."""
    shapes = shapes_of(local(parameter) for parameter in parameters.values())
    numels = [math.prod(shape) for shape in shapes]
    bits, _ = empty_mask(numels, mask.device)
    for (name, parameter), first, numel in zip(parameters.items(), first_blocks(numels), numels, strict=False):
        shard = shard_of(name, parameter)
        selected = mask.bool_of(name).view(-1)[shard.begin : shard.end]
        packed, packed_rank = empty_mask([numel], mask.device)
        ops.pack_bits_(packed, packed_rank, [selected])
        bits[first * WORDS_PER_BLOCK :][: packed.numel()] = packed
    return ParameterMask.from_bits(tuple(parameters), shapes, bits)
