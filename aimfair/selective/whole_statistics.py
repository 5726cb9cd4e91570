"""Statistics of sharded parameters in the file of a single process, and back: for any number of processes.

The file is that of :meth:`Sensitivity.save` with parameters that one process holds.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from aimfair.selective import storage
from aimfair.selective.collectives import concatenated
from aimfair.selective.distributed import shard_of
from aimfair.selective.parameters import Parameters, Shape, named_parameters, shapes_of
from aimfair.selective.sensitivity import KIND, VERSION, Sensitivity
from aimfair.selective.statistics import ALIGNMENT, buffer_starts
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
    size = buffer_starts(map(math.prod, shapes))[-1]
    specs: dict[str, tuple[torch.dtype, Shape]] = dict.fromkeys(views, (torch.float32, (size,)))
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
    probe = Sensitivity.configured(metadata, named)
    views, totals = probe.shards()
    starts, offsets = buffer_starts(map(math.prod, shapes)), storage.data_offsets(header, begin)
    first = min((shard_of(name, parameter).place[0] for name, parameter in named.items()), default=0) == 0
    for key, of_key in views.items():
        for view, start, (name, parameter) in zip(of_key, starts, named.items(), strict=False):
            part = torch.empty(view.numel())
            storage.read_into(path, offsets[key] + 4 * (start + shard_of(name, parameter).begin), part)
            view.copy_(part)
    for key, value in totals.items():
        read = torch.empty(value.shape, dtype=value.dtype)
        storage.read_into(path, offsets[key], read)
        totals[key] = read if first else torch.zeros_like(read)  # the processes' parts add up
    probe.restore(metadata["batches"], totals)
    return probe
