"""Writing a safetensors file of which only pieces are in memory at a time."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from aimfair.selective.atomic import replace_file
from aimfair.selective.checkpoint import dtype_name
from aimfair.selective.parameters import Shape
from aimfair.selective.storage import header_bytes


def write_stream(
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    specs: Mapping[str, tuple[torch.dtype, Shape]],
    pieces: Callable[[str], Iterable[Tensor]],
    *,
    write: bool = True,
) -> None:
    """Writes the file atomically.

    Args:
        specs: name -> dtype and shape, in the order of the file.
        pieces: gives the elements of a tensor in index order, in contiguous tensors on the CPU.
        write: if not, the pieces are asked for and dropped: of several processes that make them together one writes.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    if not write:
        for name in specs:
            for _ in pieces(name):
                pass
        return
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": dtype_name(dtype), "shape": list(shape), "data_offsets": [begin, end]}
    with replace_file(path) as temporary, temporary.open("wb") as target:
        target.write(header_bytes(header))
        for name in specs:
            for piece in pieces(name):
                target.write(piece.view(-1).view(torch.uint8).numpy().data)
