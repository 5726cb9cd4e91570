"""Statistics of sharded parameters in the file of a single process, and back: for any number of processes.

The file is that of :meth:`Sensitivity.save` with parameters that one process holds.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aimfair.selective import storage
from aimfair.selective.collectives import concatenated
from aimfair.selective.distributed import shard_of
from aimfair.selective.parameters import Parameters, Shape, named_parameters, shapes_of
from aimfair.selective.sensitivity import KIND, VERSION, Sensitivity
from aimfair.selective.statistics import ALIGNMENT
from aimfair.selective.stream import write_stream


def save_whole(probe: Sensitivity, path: str | os.PathLike[str], parameters: Parameters, *, write: bool) -> None:
    """Writes the statistics of the whole parameters, of which one tensor at a time is in memory; a collective.

    Args:
        parameters: those of ``probe``.
        write: whether this process writes.

    Raises:
        OSError: the file cannot be written.
    """
    named = named_parameters(parameters)
    shapes = shapes_of(named.values())
    metadata = {**probe.metadata(), "shapes": shapes, "place": (0, 1)}
    views, totals = probe.shards()
    starts = _starts(shapes)
    size = starts[-1]
    specs: dict[str, tuple[torch.dtype, Shape]] = {}
    for key in views:
        specs[key] = torch.float32, (size,)
    specs |= {key: (value.dtype, tuple(value.shape)) for key, value in totals.items()}
    shards = [shard_of(name, parameter) for name, parameter in named.items()]

    def pieces(key: str) -> Iterator[Tensor]:
        if key in totals:
            yield totals[key].cpu().contiguous()
            return
        for view, shard, shape in zip(views[key], shards, shapes, strict=True):
            whole = view if shard.group is None else concatenated(view, shard.group)
            yield whole.cpu().contiguous()
            yield torch.zeros(-math.prod(shape) % ALIGNMENT)

    write_stream(path, storage.as_metadata(KIND, VERSION, metadata), specs, pieces, write=write)


def load_shards(path: str | os.PathLike[str], parameters: Parameters) -> Sensitivity:
    """The rows of this process of what :func:`save_whole`, or one process, wrote.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged, or for another model.
    """
    path = Path(path)
    named = named_parameters(parameters)
    header, begin = storage.read_header(path)
    metadata = storage.metadata_of(header, KIND, VERSION)
    shapes = shapes_of(named.values())
    saved = [tuple(shape) for shape in metadata["shapes"]]
    if (list(metadata["names"]), saved) != (list(named), list(shapes)):
        raise ValueError(f"{path}: the statistics are for another model")
    probe = Sensitivity(
        named,
        metadata["sources"],
        statistics=metadata["statistics"],
        batches=metadata["declared"],
        contrasts={name: tuple(pair) for name, pair in metadata["contrasts"].items()},
        nonfinite=metadata["nonfinite_policy"],
    )
    views, totals = probe.shards()
    starts = _starts(shapes)
    first = min((shard_of(name, parameter).place[0] for name, parameter in named.items()), default=0) == 0
    with path.open("rb") as file:
        for key, of_key in views.items():
            at = begin + header[key]["data_offsets"][0]
            for view, start, (name, parameter) in zip(of_key, starts, named.items(), strict=False):
                file.seek(at + 4 * (start + shard_of(name, parameter).begin))
                view.copy_(_read(file, torch.float32, view.numel()))
        for key, value in totals.items():
            file.seek(begin + header[key]["data_offsets"][0])
            read = _read(file, value.dtype, value.numel()).view(value.shape)
            totals[key] = read if first else torch.zeros_like(read)  # the processes' parts add up
    probe.restore(metadata["batches"], totals)
    return probe


def _starts(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Where the tensors lie in a buffer, and its length."""
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + math.ceil(math.prod(shape) / ALIGNMENT) * ALIGNMENT)
    return starts


def _read(file: object, dtype: torch.dtype, count: int) -> Tensor:
    kind = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}[dtype]
    values = np.fromfile(file, kind, count)  # type: ignore[call-overload]
    if len(values) < count:
        raise ValueError("the file ended while it was read")
    return torch.from_numpy(values)
