"""safetensors files with a kind and a version: written atomically, checked when read."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aimfair.selective.atomic import note_needed, replace_file

_METADATA = "aimfair"
"""The only metadata entry, as safetensors writes several in a random order. Older files have one entry per value; they
are still read."""


def save(path: str | os.PathLike[str], kind: str, version: int, tensors: dict[str, Tensor], **metadata: Any) -> None:
    """Writes a file atomically (:func:`~aimfair.selective.atomic.replace_file`), deterministic to the byte.

    Args:
        kind, version: checked by :func:`load`.
        metadata: JSON-serializable values.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    try:
        with replace_file(path) as temporary:
            save_file(tensors, temporary, as_metadata(kind, version, metadata))
    except SafetensorError as error:
        raise write_error(error, path, tensors) from error


def write_error(error: SafetensorError, path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> OSError:
    """The error of the operating system for which ``save_file`` could not write these tensors to ``path``."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(f"{path}: cannot be written: {error}")
    number = int(found[1])
    result = OSError(number, os.strerror(number), str(path))
    if number == errno.ENOSPC:
        note_needed(result, sum(tensor.nbytes for tensor in tensors.values()))
    return result


def load(path: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, metadata)`` as given to :func:`save`.

    The tensors are on the CPU and memory-map the file: clone those you keep.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line naming the file, if it is truncated, malformed, or not of this kind and version.
    """
    with _opened(path, kind, version) as (file, metadata):
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def load_into(
    path: str | os.PathLike[str], kind: str, version: int, destination: Callable[[dict[str, Any]], Mapping[str, Tensor]]
) -> None:
    """As :func:`load`, into existing tensors, without a second copy in memory.

    Args:
        destination: maps metadata to the tensors to fill, one per tensor of the file; may raise ValueError.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`; also for other names, dtypes or shapes than the destination's.
    """
    with _opened(path, kind, version) as (file, metadata):
        tensors = destination(metadata)
        if other := tensors.keys() ^ set(file.keys()):
            raise ValueError(f"unexpected contents: {', '.join(sorted(other)[:5])}")
        starts = data_offsets(*read_header(Path(path)))
        for key, tensor in tensors.items():
            found = file.get_tensor(key)  # memory-mapped: pages are read on access only
            if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
                raise ValueError(
                    f"{key} is {found.dtype} {tuple(found.shape)}, expected {tensor.dtype} {tuple(tensor.shape)}"
                )
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                read_into(Path(path), starts[key], tensor)
            else:
                tensor.copy_(found)


@contextmanager
def _opened(path: str | os.PathLike[str], kind: str, version: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The checked open file and its metadata; errors raised inside get the name of the file."""
    try:
        header, _ = read_header(Path(path))
        with safe_open(path, framework="pt") as file:
            yield file, metadata_of(header, kind, version)
    except (SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a usable {kind} file: {reason}") from error


def _metadata(header: dict[str, str]) -> dict[str, Any]:
    if _METADATA in header:
        values = json.loads(header[_METADATA])
        return values if isinstance(values, dict) else {}
    if "kind" not in header:
        return {}
    return {key: value if key == "kind" else json.loads(value) for key, value in header.items()}


def data_offsets(header: Mapping[str, Any], start: int) -> dict[str, int]:
    """Tensor -> offset of its bytes in a file, from what :func:`read_header` returns."""
    return {key: start + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"}


def read_into(path: Path, start: int, tensor: Tensor) -> None:
    """The bytes from ``start`` on into a contiguous tensor on the CPU.

    Raises:
        ValueError: the file ends before.
    """
    if tensor.numel() == 0:
        return
    target = tensor.view(-1).view(torch.uint8).numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(target):
            count = file.readinto(target[done:])
            if not count:
                raise ValueError("the file ended while it was read")
            done += count


def check_header(path: Path) -> None:
    """As :func:`read_header`, for its errors alone."""
    read_header(path)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of any safetensors file, and the offset at which the data begin.

    The format's own reader silently keeps the last of two entries with one name.

    Raises:
        ValueError: a header longer than the file, malformed JSON, or a duplicate name.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"the header claims {length} bytes, the file has {path.stat().st_size}")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("the header is not a table of tensors")
    return header, 8 + length


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What a safetensors file begins with; the data follow, aligned to 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def as_metadata(kind: str, version: int, values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file's header."""
    return {_METADATA: json.dumps({**values, "kind": kind, "version": version})}


def metadata_of(header: Mapping[str, Any], kind: str, version: int) -> dict[str, Any]:
    """The metadata given to :func:`save`, from the header of a file of this kind and version.

    Raises:
        ValueError: it is of another kind or version.
    """
    metadata = _metadata(header.get("__metadata__") or {})
    found = (metadata.pop("kind", "unknown kind"), metadata.pop("version", "unknown"))
    if found != (kind, version):
        raise ValueError("expected {}, version {}, found {}, version {}".format(kind, version, *found))
    return metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the header holds {key!r} twice")
        found[key] = value
    return found
