"""Deltas as sparse weight patches of vLLM, and back.

vLLM's sparse weight transfer takes, for each changed tensor of a checkpoint, new values at flat indices of the whole
tensor; the model's own loader finds where they belong, also under tensor parallelism. It marks the other elements with
NaN, hence floating-point tensors and no NaN among the values. vLLM itself is not needed here.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aimfair.selective.checkpoint import Source, Spec, as_integers, opened, torch_dtype
from aimfair.selective.delta import Delta, Model
from aimfair.selective.delta_file import Change
from aimfair.selective.difference import Patched, merged, positions_of
from aimfair.selective.parameters import Shape, listing

_DTYPES = ("F16", "BF16", "F32", "F64")
_LARGEST = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class SparseWeightPatch:
    """New values of some elements of a checkpoint's tensor: the fields of vLLM's class of that name.

    Attributes:
        indices: int32 [n], flat, each once.
        values: [n], in the dtype of the tensor.
        full_shape: of the tensor.
    """

    name: str
    indices: Tensor
    values: Tensor
    full_shape: Shape


def to_patches(delta: Delta, device: torch.device | str = "cpu") -> Iterator[SparseWeightPatch]:
    """The new values of a delta, a patch per tensor that it changes, on a device.

    Everything is checked before the first patch: vLLM cannot take back those that it has applied.

    Raises:
        ValueError: naming tensors that a patch cannot hold: of integers or 8-bit floats, of more than 2^31 - 1
            elements, or with NaN among the new values; or that are damaged.
    """
    changes = {name: change for name, change in delta.changes.items() if change.nnz}
    _require(
        changes, lambda name: delta.specs[name].dtype in _DTYPES, "it holds float16, bfloat16, float32 and float64"
    )
    _require(changes, lambda name: changes[name].numel <= _LARGEST, f"more than {_LARGEST:,} elements")
    _require(changes, lambda name: not _values(changes[name], delta.specs[name]).isnan().any(), "NaN among the values")
    return (_patch(name, change, delta.specs[name], device) for name, change in changes.items())


def from_patches(patches: Iterable[SparseWeightPatch], base: Model, *, reversible: bool = True) -> Delta:
    """The delta that patches make of ``base``.

    Args:
        patches: of this module or of vLLM. Those of one tensor apply in their order.

    Raises:
        ValueError: naming the patch that is malformed or does not fit its tensor.
    """
    source = opened(base)
    changes: dict[str, Change] = {}
    for patch in patches:
        change = _change(patch, source)
        known = changes.get(patch.name)
        changes[patch.name] = change if known is None else merged(patch.name, [known, change], "last")[0]
    return Delta.between(source, Patched(source, changes), reversible=reversible)


def _require(names: Iterable[str], holds: Callable[[str], bool], what: str) -> None:
    if wrong := [name for name in names if not holds(name)]:
        raise ValueError(f"a sparse weight patch cannot hold {listing(wrong)}: {what}")


def _values(change: Change, spec: Spec) -> Tensor:
    """The new values, as a copy."""
    return torch.from_numpy(np.array(change.new).view(np.uint8)).view(torch_dtype(spec))


def _patch(name: str, change: Change, spec: Spec, device: torch.device | str) -> SparseWeightPatch:
    indices = torch.from_numpy(positions_of(name, change).astype(np.int32))
    return SparseWeightPatch(name, indices.to(device), _values(change, spec).to(device), spec.shape)


def _change(patch: SparseWeightPatch, source: Source) -> Change:
    where = f"the patch of {patch.name!r}"
    spec = source.specs.get(patch.name)
    if spec is None:
        raise ValueError(f"{where}: no such tensor in {source}")
    if tuple(patch.full_shape) != spec.shape or patch.values.dtype != torch_dtype(spec):
        raise ValueError(f"{where} is {patch.values.dtype} {tuple(patch.full_shape)}, the tensor of {source} {spec}")
    if patch.indices.dtype != torch.int32 or patch.indices.dim() != 1 or patch.indices.shape != patch.values.shape:
        raise ValueError(
            f"{where}: indices {patch.indices.dtype} {tuple(patch.indices.shape)} and values"
            f" {tuple(patch.values.shape)}, expected torch.int32 (n,) and (n,)"
        )
    positions, order = patch.indices.cpu().long().sort()
    if len(positions) and (positions[0] < 0 or positions[-1] >= spec.numel or (positions[1:] == positions[:-1]).any()):
        raise ValueError(f"{where}: indices outside of the tensor's {spec.numel:,} elements, or twice the same")
    new = as_integers(patch.values.detach().cpu()[order]).numpy().view(spec.bits)
    return Change.at(spec.numel, positions.numpy(), new, None)
