"""What a delta holds of each tensor, and its file: a safetensors file with the changed elements and their bits.

For a tensor NAME that differs there are ``NAME.indices``, ascending flat indices in the narrowest of uint8, uint16,
uint32 and uint64, or ``NAME.bits``, uint8, whose bit i % 8 of byte i // 8 is set for a changed element i, whichever is
smaller; ``NAME.values``, in the tensor's dtype and in index order; and, in a reversible delta, ``NAME.old_values``.
The metadata hold every tensor of the model: dtype, shape, and the SHA-256 of its bytes before and after.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from aimfair.selective import checkpoint, storage
from aimfair.selective.atomic import replace_file
from aimfair.selective.checkpoint import Bits, Spec
from aimfair.selective.parameters import listing

KIND, VERSION = "aimfair.delta", 1
"""Kind and version in a delta file."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """The changed elements of one tensor.

    Attributes:
        where: flat indices, or the bits of all elements if ``packed``.
        new, old: their bits after and before; old is None in a delta that cannot be reverted.
    """

    numel: int
    where: Bits
    packed: bool
    new: Bits
    old: Bits | None

    @classmethod
    def at(cls, numel: int, positions: Positions, new: Bits, old: Bits | None) -> Self:
        """Of ascending positions, in the smaller of the two forms."""
        width = np.min_scalar_type(max(numel - 1, 0))
        if len(positions) * width.itemsize <= -(-numel // 8):
            return cls(numel, positions.astype(width), False, new, old)
        bits = np.zeros(-(-numel // 8) * 8, dtype=np.bool_)
        bits[positions] = True
        return cls(numel, np.packbits(bits, bitorder="little"), True, new, old)

    @property
    def nnz(self) -> int:
        return len(self.new)

    @property
    def nbytes(self) -> int:
        return self.where.nbytes + self.new.nbytes + (0 if self.old is None else self.old.nbytes)

    def positions(self) -> Positions:
        """Ascending flat indices.

        Raises:
            ValueError: they are not ascending, beyond the tensor, or not as many as the values: the file is damaged.
        """
        if self.packed:
            found = np.flatnonzero(np.unpackbits(self.where, bitorder="little"))
        else:
            found = self.where.astype(np.int64)
        ascending = not len(found) or (bool((found[1:] > found[:-1]).all()) and 0 <= found[-1] < self.numel)
        if len(found) != self.nnz or not ascending or found[:1].min(initial=0) < 0:
            raise ValueError(f"{len(found)} positions for {self.nnz} values, or out of order: damaged")
        return found

    def reversed(self) -> Self:
        assert self.old is not None
        return type(self)(self.numel, self.where, self.packed, self.old, self.new)


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    Attributes:
        before, after: SHA-256 of its bytes in the base and in the result, None if unknown.
        change: None if no element differs.
    """

    spec: Spec
    before: str | None
    after: str | None
    change: Change | None

    def reversed(self) -> Self:
        return type(self)(self.spec, self.after, self.before, self.change and self.change.reversed())


def write(path: str | os.PathLike[str], entries: Iterable[tuple[str, Entry]], reversible: bool) -> None:
    """Writes a delta file atomically, a tensor at a time; deterministic to the byte.

    The order of the data is by width, as safetensors requires for their alignment.

    Raises:
        OSError: it cannot be written; an older file is unchanged.
    """
    path = Path(path)
    table: dict[str, Any] = {}
    found: list[tuple[str, str, int, int, int]] = []  # key, dtype, width, and where it begins and ends in its part
    with replace_file(path) as temporary, ExitStack() as stack:
        parts: dict[int, IO[bytes]] = {
            width: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for width in (8, 4, 2, 1)
        }
        for name, entry in entries:
            table[name] = [entry.spec.dtype, list(entry.spec.shape), entry.before, entry.after]
            for key, dtype, array in _arrays(name, entry):
                part = parts[array.itemsize]
                begin = part.tell()
                part.write(np.ascontiguousarray(array).data)
                found.append((key, dtype, array.itemsize, begin, part.tell()))
        firsts = dict(zip(parts, accumulate((part.tell() for part in parts.values()), initial=0), strict=False))
        header: dict[str, Any] = {
            "__metadata__": storage.as_metadata(KIND, VERSION, {"reversible": reversible, "tensors": table})
        }
        for key, dtype, width, begin, end in found:
            offsets = [firsts[width] + begin, firsts[width] + end]
            header[key] = {"dtype": dtype, "shape": [(end - begin) // width], "data_offsets": offsets}
        with open(temporary, "wb") as target:
            target.write(storage.header_bytes(header))
            for part in parts.values():
                part.seek(0)
                shutil.copyfileobj(part, target, 1 << 20)


def _arrays(name: str, entry: Entry) -> Iterator[tuple[str, str, Bits]]:
    """(key, dtype, contents) of what the file holds of a tensor."""
    change = entry.change
    if change is None:
        return
    where = "bits" if change.packed else "indices"
    yield f"{name}.{where}", f"U{8 * change.where.itemsize}", change.where
    yield f"{name}.values", entry.spec.dtype, change.new
    if change.old is not None:
        yield f"{name}.old_values", entry.spec.dtype, change.old


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Entry], bool]:
    """The tensors of a delta file, memory-mapped, and whether it is reversible.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line naming the file, if it is not a delta, or damaged.
    """
    path = Path(path)
    try:
        header, start = storage.read_header(path)
        metadata = storage.metadata_of(header, KIND, VERSION)
        layout = checkpoint.layout(path, header, start)
        data = np.asarray(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8))
        arrays = {
            name: (spec, data[begin : begin + spec.numel * spec.itemsize].view(spec.bits))
            for name, (spec, begin) in layout.items()
        }
        reversible = metadata["reversible"]
        entries = {name: _entry(name, row, arrays, reversible) for name, row in metadata["tensors"].items()}
        if arrays:
            raise ValueError(f"unexpected contents: {listing(arrays)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a usable {KIND} file: {error}") from error
    return entries, reversible


def _entry(name: str, row: list[Any], arrays: dict[str, tuple[Spec, Bits]], reversible: bool) -> Entry:
    """One tensor; takes what it holds out of ``arrays``."""
    dtype, shape, before, after = row
    spec = Spec(dtype, tuple(shape))
    spec.itemsize  # noqa: B018 # KeyError for an unknown dtype
    if f"{name}.values" not in arrays:
        return Entry(spec, before, after, None)
    new_spec, new = arrays.pop(f"{name}.values")
    old_spec, old = arrays.pop(f"{name}.old_values") if reversible else (new_spec, None)
    packed = f"{name}.bits" in arrays
    where_spec, where = arrays.pop(f"{name}.{'bits' if packed else 'indices'}")
    found = [(one.dtype, one.shape) for one in (new_spec, old_spec)]
    width = 1 if packed else np.min_scalar_type(max(spec.numel - 1, 0)).itemsize
    length = -(-spec.numel // 8) if packed else len(new)
    if found != [(dtype, (len(new),))] * 2 or where_spec != Spec(f"U{8 * width}", (length,)):
        raise ValueError(f"{name!r}: values {found}, positions {where_spec}, for a tensor {spec}")
    return Entry(spec, before, after, Change(spec.numel, where, packed, new, old))


def table_digest(entries: Mapping[str, Entry], *, after: bool) -> str | None:
    """SHA-256 over names, dtypes, shapes and digests of all tensors, whatever files hold them; None if unknown."""
    rows = []
    for name, entry in sorted(entries.items()):
        digest = entry.after if after else entry.before
        if digest is None:
            return None
        rows.append([name, entry.spec.dtype, list(entry.spec.shape), digest])
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
