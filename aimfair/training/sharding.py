"""Models whose weights several processes hold together (FSDP2), from their first moment to their file.

A sharded model is made without weights, on the meta device, and each process reads its rows of every tensor from a
safetensors file. The file that it is saved to is that of a whole model, written tensor by tensor.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from aimfair.base.errors import AimfairError
from aimfair.selective.distributed import is_dtensor, local, shard_of
from aimfair.selective.stream import write_stream
from aimfair.training.execution import repeated_blocks


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, parameters of new modules are on the meta device, where they take no memory; buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def shard(model: nn.Module, weights: Path, device: torch.device) -> nn.Module:
    """Shards a model from :func:`without_weights` over all processes, in place, block by block.

    Args:
        weights: a safetensors file of the whole model; each process reads its rows.

    Raises:
        AimfairError: a parameter that cannot be sharded, by name.
    """
    if scalars := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
        raise AimfairError(
            f"distributed.strategy fsdp2: {type(model).__name__} has the parameter {scalars[0]}, a single number, which"
            " cannot be sharded; use ddp"
        )
    names: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            names.setdefault(id(parameter), []).append((module, leaf, f"{prefix}.{leaf}".removeprefix(".")))
    mesh = _mesh(device.type)
    for block in [*repeated_blocks(model), model]:
        fully_shard(block, mesh=mesh)  # type: ignore[call-overload]
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
        for places in names.values():
            module, leaf, _ = places[0]
            parameter = getattr(module, leaf)
            name = next(name for _, _, name in places if name in stored)
            loaded = nn.Parameter(rows_of(file, name, parameter, device), parameter.requires_grad)
            for module, leaf, _ in places:
                module._parameters[leaf] = loaded
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(device)
    return model


@cache
def _mesh(kind: str) -> DeviceMesh:
    return init_device_mesh(kind, (dist.get_world_size(),))


def rows_of(file: Any, name: str, parameter: DTensor, device: torch.device) -> DTensor:
    """The rows of a stored tensor that this process holds of ``parameter``."""
    held, rows = local(parameter).shape[0], shard_of(name, parameter)
    begin = rows.begin // max(parameter.numel() // max(parameter.shape[0], 1), 1)
    part = file.get_slice(name)[begin : begin + held].to(device, copy=True)  # else a memory map
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def is_sharded(model: nn.Module) -> bool:
    return any(is_dtensor(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, in full; every process calls this."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def write_model(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights and buffers of a sharded model to the file of a whole one; every process calls this."""
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(weights.items())}
    write_stream(path, {"format": "pt"}, specs, lambda name: [whole(weights[name])], write=dist.get_rank() == 0)
