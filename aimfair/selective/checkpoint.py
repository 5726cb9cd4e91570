"""Named tensors as raw bits, read piece by piece: safetensors files, sharded folders, models in memory."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aimfair.selective import storage
from aimfair.selective.atomic import naming, replace_file, sync
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.parameters import Shape, canonical_name, listing, unwrapped

Bits = npt.NDArray[np.unsignedinteger]
"""Elements as unsigned integers of their width: comparisons and copies are exact for NaN, -0.0 and any dtype."""

PIECE = 1 << 22
"""Elements that are read at a time."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_SIDE_FILES = {".json", ".txt", ".model"}
"""Endings of files of a model folder that are not weights: configuration, preprocessing, tokenizer."""

_ABOUT_ONE_MODEL = {"export.json"}
"""Files that hold digests of the weights, which another model must not inherit."""

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Spec(NamedTuple):
    """dtype, by its name in safetensors ("F32", "BF16"), and shape of a tensor."""

    dtype: str
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return torch_dtype(self).itemsize

    @property
    def bits(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(f"<u{self.itemsize}")

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls it."""
    return _NAMES[dtype]


def torch_dtype(spec: Spec) -> torch.dtype:
    return _DTYPES[spec.dtype]


class Source(Protocol):
    """Something that holds named tensors; ``str`` of it names it in messages."""

    @property
    def specs(self) -> Mapping[str, Spec]: ...

    def pieces(self, name: str) -> Iterator[Bits]:
        """The elements of a tensor in index order, :data:`PIECE` at a time."""
        ...


class Checkpoint:
    """Tensors on disk: a safetensors file, or a folder with model.safetensors or with shards and their index.

    Raises:
        FileNotFoundError: there is no such file or folder. ValueError: one line naming the file that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.files = _files(self.path)
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._starts: dict[Path, int] = {}
        for file in self.files:
            entries, self._starts[file] = _layout(file)
            if twice := entries.keys() & self.specs.keys():
                raise ValueError(f"{file}: {listing(sorted(twice))} also in another shard of {self.path}")
            for name, (spec, start) in entries.items():
                self.specs[name], self._places[name] = spec, (file, start)
        _require_indexed(self.path, self._places)

    def __str__(self) -> str:
        return str(self.path)

    def pieces(self, name: str) -> Iterator[Bits]:
        spec, (path, start) = self.specs[name], self._places[name]
        with open(path, "rb") as file:
            file.seek(start)
            for begin in range(0, spec.numel, PIECE):
                count = min(PIECE, spec.numel - begin)
                piece = np.fromfile(file, spec.bits, count)
                if len(piece) < count:
                    raise ValueError(f"{path}: the file ended while {name!r} was read")
                yield piece

    def write(self, source: Source, to: Path, check: Callable[[], None]) -> None:
        """Writes the tensors of ``source``, which are this checkpoint's by name, in the same files, header and order.

        A file, or a folder with its configuration; either appears at the end, complete, if ``check`` does not raise.

        Raises:
            ValueError: ``to`` is a folder that is not empty, or of another kind than this checkpoint.
            OSError: it cannot be written.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_dir():
            if to.is_dir():
                raise ValueError(f"{to}: is a folder, and {self.path} a file; name a file")
            with replace_file(to) as temporary:
                self._copy(self.path, source, temporary)
                check()
            return
        with _new_folder(to) as folder:
            for file in self.files:
                self._copy(file, source, folder / file.name)
            check()
            for file in sorted(self.path.iterdir()):
                if file.is_file() and file.suffix in _SIDE_FILES and file.name not in _ABOUT_ONE_MODEL:
                    shutil.copyfile(file, folder / file.name)
            for file in folder.iterdir():
                sync(file)

    def _copy(self, file: Path, source: Source, to: Path) -> None:
        with open(file, "rb") as header, open(to, "wb") as target:
            target.write(header.read(self._starts[file]))
            for name, (path, _) in self._places.items():  # those of a file are in its order
                if path == file:
                    for piece in source.pieces(name):
                        target.write(piece.data)


class InMemory:
    """The tensors of a module's ``state_dict()``, or of a dict, under the names of the plain model."""

    def __init__(self, source: nn.Module | Mapping[str, Tensor]):
        tensors = unwrapped(source).state_dict(keep_vars=True) if isinstance(source, nn.Module) else source
        self.tensors = {canonical_name(name): tensor.detach() for name, tensor in tensors.items()}
        for name, tensor in self.tensors.items():
            if is_dtensor(tensor):
                raise TypeError(f"{name!r} is sharded (DTensor): use full tensors, or files")
            if tensor.dtype not in _NAMES or tensor.layout is not torch.strided:
                raise TypeError(f"{name!r} is {tensor.dtype}, {tensor.layout}: not supported in a delta")
        self.specs = {name: Spec(_NAMES[t.dtype], tuple(t.shape)) for name, t in self.tensors.items()}

    def __str__(self) -> str:
        return "the model"

    def pieces(self, name: str) -> Iterator[Bits]:
        tensor, spec = self.tensors[name], self.specs[name]
        flat = as_integers(tensor.contiguous())
        for begin in range(0, spec.numel, PIECE):
            yield flat[begin : begin + PIECE].cpu().numpy().view(spec.bits)

    @property
    def first_of(self) -> dict[str, str]:
        """Tensor -> the first of those tied to it, itself if it is none."""
        firsts: dict[tuple[object, ...], str] = {}
        return {
            name: firsts.setdefault((t.device, t.data_ptr(), t.shape, t.stride()) if t.numel() else (name,), name)
            for name, t in self.tensors.items()
        }


class Overlaid:
    """A source in which some tensors are another's."""

    def __init__(self, source: Source, over: Source):
        self.source, self.over, self.specs = source, over, {**source.specs, **over.specs}

    def __str__(self) -> str:
        return str(self.source)

    def pieces(self, name: str) -> Iterator[Bits]:
        return (self.over if name in self.over.specs else self.source).pieces(name)


def tensor_of(source: Source, name: str) -> Tensor:
    """A copy of a whole tensor, on the CPU."""
    spec = source.specs[name]
    bits = np.concatenate([np.empty(0, spec.bits), *source.pieces(name)])
    return torch.from_numpy(bits.view(np.uint8)).view(torch_dtype(spec)).view(spec.shape)


def as_integers(contiguous: Tensor) -> Tensor:
    """A flat view of a tensor's elements as integers of their width."""
    return contiguous.detach().view(-1).view(_INTEGERS[contiguous.dtype.itemsize])


def opened(source: "str | os.PathLike[str] | nn.Module | Mapping[str, Tensor] | Source") -> Source:
    """A path, a model or a dict as a :class:`Source`."""
    if isinstance(source, str | os.PathLike):
        return Checkpoint(source)
    return InMemory(source) if isinstance(source, nn.Module | Mapping) else source


# -- files ---------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not (path / INDEX).is_file():
        raise FileNotFoundError(2, f"neither {SINGLE} nor {INDEX} in it", str(path))
    shards = sorted(set(_weight_map(path).values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{path / INDEX}: {outside[0]!r} is not the name of a file in the folder")
    return [path / shard for shard in shards]


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not (found and isinstance(found, dict) and all(isinstance(shard, str) for shard in found.values())):
            raise ValueError("weight_map is not a table of files")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / INDEX}: not an index of shards: {error}") from error
    return found


def _require_indexed(path: Path, places: Mapping[str, tuple[Path, int]]) -> None:
    """The index of a sharded folder must name the tensors that its shards hold."""
    if not path.is_dir() or (path / SINGLE).is_file():
        return
    found = {(name, file.name) for name, (file, _) in places.items()}
    if wrong := found ^ set(_weight_map(path).items()):
        raise ValueError(f"{path / INDEX}: disagrees with the shards on {listing(sorted(name for name, _ in wrong))}")


def _layout(path: Path) -> tuple[dict[str, tuple[Spec, int]], int]:
    """:func:`layout` of a file, and where its data begin."""
    try:
        header, start = storage.read_header(path)
        return layout(path, header, start), start
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a usable safetensors file: {error}") from error


def layout(path: Path, header: Mapping[str, Any], start: int) -> dict[str, tuple[Spec, int]]:
    """Tensor -> (spec, offset in the file), in file order.

    Raises:
        ValueError, KeyError, TypeError: the header does not describe the file, or has a dtype that is not supported.
    """
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    found: dict[str, tuple[Spec, int]] = {}
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name!r} is {entry['dtype']}, which is not supported")
        spec = Spec(entry["dtype"], tuple(entry["shape"]))
        begin, end = (start + offset for offset in entry["data_offsets"])
        if begin != at or end - begin != spec.numel * spec.itemsize:
            raise ValueError(f"the data of {name!r} are not where they should be")
        found[name], at = (spec, begin), end
    if at != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes, expected {at}")
    return found


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder beside ``to`` that takes its name at the end; removed if the body raises."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to}: already there; name a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with naming(to, temporary):
            temporary.mkdir()
            yield temporary
            sync(temporary)
            os.replace(temporary, to)
            sync(to.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
