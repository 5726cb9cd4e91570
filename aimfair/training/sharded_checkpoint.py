"""Checkpoints of a sharded training, through ``torch.distributed.checkpoint``: any number of processes can resume, and
those that hold whole models, too.

Every process writes its part, as safetensors: nothing is unpickled when it is read. A small file, replaced last, says
which folder is the checkpoint.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import write_json
from aimfair.selective import storage
from aimfair.selective.distributed import is_dtensor, local, shard_of
from aimfair.selective.masked_optimizer import MaskedOptimizer
from aimfair.training.checkpoint import (
    CHECKPOINT,
    FOLDERS,
    KIND,
    SHARDED,
    VERSION,
    WAY_OUT,
    Checkpoint,
    Tensors,
    changing_tensors,
    copy_tensors,
    same_training,
)
from aimfair.training.history import Position
from aimfair.training.sharding import is_sharded, rows_of


class Part(Tensor):
    """Consecutive elements of a vector that the processes hold together: compact optimizer state.

    ``torch.distributed.checkpoint`` calls the methods.
    """

    begin: int
    total: int

    @classmethod
    def of(cls, values: Tensor, begin: int, total: int) -> Self:
        part = values.as_subclass(cls)
        part.begin, part.total = begin, total
        return part

    def size(self) -> torch.Size:  # type: ignore[override]
        """Of the whole vector."""
        return torch.Size([self.total])

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.begin]), torch.Size([len(self)]))

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not len(self):
            return []
        data = TensorWriteData(self._chunk(), TensorProperties(dtype=self.dtype), self.size())
        return [WriteItem(MetadataIndex(name, torch.Size([self.begin])), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()] if len(self) else []

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.as_subclass(Tensor)


class ShardedCheckpoint(Checkpoint):
    """As :class:`Checkpoint`; every process calls each method."""

    of_all = True

    def __init__(self, folder: Path, seconds: float, inputs: str = ""):
        super().__init__(folder, seconds, inputs)
        self.path = self.path.with_name(SHARDED)

    def save(self, identity: str, position: Position, model: nn.Module, optimizer: Optimizer, kept: Tensors) -> None:
        number = 1 - self._number()
        folder = self.path.with_name(FOLDERS[number])
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        state = _vectors({f"model/{name}": tensor for name, tensor in changing_tensors(model).items()})
        state |= _vectors({f"kept/{name}": tensor for name, tensor in kept.items()})
        saved: Mapping[int, Mapping[str, object]] = optimizer.state_dict()["state"]
        entries = {
            f"optimizer/{index}/{key}": value
            for index, entry in saved.items()
            for key, value in entry.items()
            if isinstance(value, Tensor)
        }
        state |= _vectors(entries, _Places(optimizer))
        try:
            save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        except CheckpointException as error:  # which is no Exception
            raise _not_written(folder, error) from error
        dist.barrier()
        if dist.get_rank() == 0:
            write_json(self.path, {"identity": identity, "position": position.model_dump(), "number": number})
            self._remove_but({SHARDED, FOLDERS[number]})
        dist.barrier()
        self.note_saved()

    def restore(self, identity: str, model: nn.Module, optimizer: Optimizer) -> tuple[Position, Tensors] | None:
        if not self.path.exists():
            return restore_whole(self.path.with_name(CHECKPOINT), identity, model, optimizer)
        return restore_shards(self.path, identity, model, optimizer)

    def _number(self) -> int:
        """Of the last folder; 1 if there is none."""
        try:
            return int(json.loads(self.path.read_text(encoding="utf-8"))["number"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 1


# -- reading -----------------------------------------------------------------------------------------------------------


def restore_shards(
    path: Path, identity: str, model: nn.Module, optimizer: Optimizer
) -> tuple[Position, Tensors] | None:
    """As :meth:`Checkpoint.restore`, from what :class:`ShardedCheckpoint` wrote; the model may be sharded or not.

    Args:
        path: of the small file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not same_training(str(record["identity"]), identity):
            return None
        position = Position.model_validate(record["position"])
        reader = HuggingFaceStorageReader(str(path.with_name(FOLDERS[int(record["number"])])))
        kept, entries = _read_shards(reader, model, optimizer)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    except FileNotFoundError:
        return None
    except (LookupError, ValueError, TypeError, SafetensorError, CheckpointException) as error:
        raise _not_usable(path, error) from error
    return position, kept


def _read_shards(
    reader: HuggingFaceStorageReader, model: nn.Module, optimizer: Optimizer
) -> tuple[Tensors, dict[int, Tensors]]:
    """The weights of the best epoch and the state of the optimizer; copies the weights into the model."""
    stored = cast(dict[str, Any], reader.read_metadata().state_dict_metadata)
    own, places = changing_tensors(model), _Places(optimizer)
    tensors = {f"model/{name}": torch.empty_like(tensor) for name, tensor in own.items()}
    kept = {name: torch.empty_like(tensor) for name, tensor in own.items() if f"kept/{name}" in stored}
    tensors |= {f"kept/{name}": tensor for name, tensor in kept.items()}
    entries: dict[int, Tensors] = {}
    for name, found in stored.items():
        kind, _, rest = name.partition("/")
        if kind != "optimizer":
            continue
        index, _, key = rest.partition("/")
        entries.setdefault(int(index), {})[key] = tensors[name] = places.empty(int(index), key, found.size)
    state = _vectors(tensors, places)
    if lacking := state.keys() - stored.keys():
        raise ValueError(f"it lacks {min(lacking)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of no_dist, too
        load(state, storage_reader=reader, no_dist=not is_sharded(model))
    copy_tensors({name: tensors[f"model/{name}"] for name in own}, model)
    return kept, entries


def restore_whole(path: Path, identity: str, model: nn.Module, optimizer: Optimizer) -> tuple[Position, Tensors] | None:
    """As :meth:`Checkpoint.restore`, into a sharded model: each process reads its part of the file of a whole one."""
    try:
        header, _ = storage.read_header(path)
        metadata = storage.metadata_of(header, KIND, VERSION)
        if not same_training(str(metadata.get("identity")), identity):
            return None
        position = Position.model_validate(metadata.get("position"))
        places, entries = _Places(optimizer), dict[int, Tensors]()
        own = changing_tensors(model)
        with safe_open(path, framework="pt") as file:
            stored = [name for name in header if name != "__metadata__"]
            weights = {name: _own_part(file, f"model/{name}", tensor) for name, tensor in own.items()}
            kept = {name: _own_part(file, f"kept/{name}", t) for name, t in own.items() if f"kept/{name}" in header}
            for name in stored:
                kind, _, rest = name.partition("/")
                if kind == "optimizer":
                    index, _, key = rest.partition("/")
                    entries.setdefault(int(index), {})[key] = places.read(file, name, int(index), key)
        copy_tensors(weights, model)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    except FileNotFoundError:
        return None
    except (LookupError, ValueError, TypeError, SafetensorError) as error:
        raise _not_usable(path, error) from error
    return position, kept


def _own_part(file: Any, name: str, tensor: Tensor) -> Tensor:
    """What this process holds, as ``tensor``, of a stored tensor."""
    found = torch.Size(file.get_slice(name).get_shape())
    if found != tensor.shape:
        raise ValueError(f"{name} is {tuple(found)}, expected {tuple(tensor.shape)}")
    if isinstance(tensor, DTensor):
        return rows_of(file, name, tensor, local(tensor).device)
    return cast(Tensor, file.get_tensor(name)).to(tensor.device, copy=True)


def _not_usable(path: Path, error: BaseException) -> AimfairError:
    return AimfairError(f"{path}: not a usable checkpoint: {one_line(_first(error))}; {WAY_OUT}")


def _not_written(folder: Path, error: CheckpointException) -> BaseException:
    """For every process, whichever could not write."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    if not isinstance(cause, Exception):  # Ctrl-C
        return cause
    reason = cause.strerror.lower() if isinstance(cause, OSError) and cause.strerror else one_line(cause)
    return AimfairError(
        f"{folder}: process {rank} cannot write its part of the checkpoint: {reason}; the checkpoint before it is kept"
    )


def _first(error: BaseException) -> BaseException:
    """Of the errors of several processes."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


class _Places:
    """Where compact state of this process lies in that of the whole parameter."""

    def __init__(self, optimizer: Optimizer):
        assert isinstance(optimizer, MaskedOptimizer)
        self._mask, self._parameters = optimizer.mask, list[Tensor]()
        self._names: list[str] = []
        for group in optimizer.param_groups:
            self._parameters += group["params"]
            self._names += group["param_names"]

    def empty(self, index: int, key: str, size: torch.Size) -> Tensor:
        """A tensor to read a stored one into."""
        parameter = self._parameters[index]
        if key == "step":
            return torch.zeros((), device=parameter.device)
        if size == parameter.shape:
            return torch.zeros_like(parameter, dtype=torch.float32)
        begin, end, _ = self._place(index)
        return torch.zeros(end - begin, device=parameter.device)

    def read(self, file: Any, name: str, index: int, key: str) -> Tensor:
        """This process's part of a stored tensor of a whole parameter."""
        parameter, size = self._parameters[index], torch.Size(file.get_slice(name).get_shape())
        if key == "step":
            return cast(Tensor, file.get_tensor(name)).to(parameter.device, copy=True)
        if size == parameter.shape:
            return _own_part(file, name, parameter)
        begin, end, total = self._place(index)
        if size != (total,):
            raise ValueError(f"{name} is {tuple(size)}, expected {(total,)}")
        if begin == end:
            return torch.zeros(0, device=parameter.device)
        return cast(Tensor, file.get_slice(name)[begin:end]).to(parameter.device, copy=True)

    def part(self, name: str, values: Tensor) -> Part | None:
        """Of compact state; None: it is of another layout."""
        _, index, key = name.split("/", 2)
        if key == "step" or is_dtensor(values) or not is_dtensor(self._parameters[int(index)]):
            return None
        begin, _, total = self._place(int(index))
        return Part.of(values, begin, total)

    def _place(self, index: int) -> tuple[int, int, int]:
        """Begin and end of this process's elements among those selected, and the number of these."""
        assert self._mask is not None
        shard = shard_of(self._names[index], self._parameters[index])
        selected = self._mask.bool_of(self._names[index]).view(-1)
        return int(selected[: shard.begin].sum()), int(selected[: shard.end].sum()), int(selected.sum())


def _vectors(tensors: Mapping[str, Tensor], places: _Places | None = None) -> dict[str, Any]:
    """What ``torch.distributed.checkpoint`` takes: no scalars, and parts of compact state."""
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        part = places.part(name, tensor) if places and name.startswith("optimizer/") else None
        state[name] = part if part is not None else tensor if tensor.ndim else tensor.view(1)
    return state
