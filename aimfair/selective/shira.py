"""Deltas as SHiRA adapters of PEFT, and back (sparse high-rank adapters, arXiv 2406.13175).

An adapter holds, for each adapted ``nn.Linear`` X, ``X.shira_indices``, int32 [2, n] rows and columns, and
``X.shira_weight`` [n], which PEFT adds to the weight; n is r * (in + out) with one r for all. Modules of other
kinds are saved whole, as its ``modules_to_save``.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aimfair.selective import storage
from aimfair.selective.atomic import replace_file
from aimfair.selective.checkpoint import InMemory, Overlaid, as_integers, opened, tensor_of
from aimfair.selective.delta import Delta, Model
from aimfair.selective.difference import positions_of
from aimfair.selective.parameters import listing, unwrapped

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""


@dataclass(frozen=True)
class Adapter:
    """What was written.

    Attributes:
        r: of the adapter: a module has r * (in + out) values, those beyond its changes are 0.
        sparse: names of the adapted modules.
        whole: names of the modules that are saved whole.
        inexact: elements of the result that no sum of the base's element and a float32 number reaches.
        largest_error: of those.
    """

    r: int
    sparse: tuple[str, ...]
    whole: tuple[str, ...]
    inexact: int
    largest_error: float


def write_adapter(delta: Delta, model: nn.Module, folder: str | os.PathLike[str]) -> Adapter:
    """Writes a delta as a SHiRA adapter that ``PeftModel.from_pretrained(model, folder)`` loads.

    PEFT adds differences. No float32 difference may lead from an element to one that is much smaller, or to one that
    differs only in its NaN or the sign of its 0; the result counts such elements.

    Args:
        model: holds the base.

    Raises:
        ValueError: naming tensors that an adapter cannot hold: of modules with submodules, or tied to others; or as
            :meth:`Delta.apply_`.
    """
    model = unwrapped(model)
    held = InMemory(model)
    result = {**held.tensors, **{name: held.tensors[name].clone() for name in delta.changes if name in held.tensors}}
    delta.apply_(result)
    changed = {name: change for name, change in delta.changes.items() if change.nnz}
    _require_adaptable(model, held, list(changed))
    whole = {_module(name) for name in changed if not _is_linear_weight(model, name)}
    linear = {module: changed[f"{module}.weight"].nnz for name in changed if (module := _module(name)) not in whole}
    r, dense = _rank(model, linear)
    whole = _all_named(model, whole | dense)
    contents: dict[str, Tensor] = {}
    errors = []
    for module in (module for module in linear if module not in whole):
        name = f"{module}.weight"
        where = torch.from_numpy(positions_of(name, changed[name]))
        base, wanted = (tensors[name].cpu().contiguous().view(-1)[where] for tensors in (held.tensors, result))
        values, missed = _summands(base, wanted)
        errors.append(missed)
        rows, columns = result[name].shape
        padding = r * (rows + columns) - len(where)  # with 0 where something is added anyway
        where = torch.cat([where, where[:1].expand(padding)])
        contents[f"{_PREFIX}{module}.shira_weight"] = torch.cat([values, values.new_zeros(padding)])
        contents[f"{_PREFIX}{module}.shira_indices"] = torch.stack([where // columns, where % columns]).int()
    for module in whole:
        for leaf in model.get_submodule(module).state_dict():
            contents[f"{_PREFIX}{module}.{leaf}"] = result[f"{module}.{leaf}"].cpu().contiguous()
    sparse = tuple(module for module in linear if module not in whole)
    _save(Path(folder), contents, r, sparse, sorted(whole))
    missed = torch.cat(errors) if errors else torch.zeros(0)
    return Adapter(
        r, sparse, tuple(sorted(whole)), int((missed != 0).sum()), float(missed.max()) if len(missed) else 0.0
    )


def read_adapter(folder: str | os.PathLike[str], base: Model, *, reversible: bool = True) -> Delta:
    """The delta that an adapter makes of ``base``: the weights as PEFT merges them, to the bit.

    Args:
        folder: as ``save_pretrained`` of PEFT, or :func:`write_adapter`, writes it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file: not a SHiRA adapter, or not for this model.
    """
    path, source = Path(folder) / WEIGHTS, opened(base)
    _require_shira(Path(folder) / CONFIG)
    try:
        storage.check_header(path)
        contents = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}
    except ValueError as error:
        raise ValueError(f"{path}: not a usable safetensors file: {error}") from error
    tensors: dict[str, Tensor] = {}
    for key, values in contents.items():
        module, _, leaf = key.rpartition(".")
        if leaf == "shira_indices":
            continue
        name = f"{module}.weight" if leaf == "shira_weight" else key
        if name not in source.specs:
            raise ValueError(f"{path}: {key!r} has no tensor {name!r} in {source}")
        if leaf != "shira_weight":
            tensors[name] = values
            continue
        tensors[name] = tensor_of(source, name)
        indices = contents.get(f"{module}.shira_indices")
        if indices is None or indices.shape != (2, len(values)) or not _inside(indices, tensors[name]):
            raise ValueError(f"{path}: the indices of {module!r} are missing or not those of {source.specs[name]}")
        tensors[name] += torch.sparse_coo_tensor(indices.int(), values, tensors[name].shape, check_invariants=False)
    return Delta.between(source, Overlaid(source, InMemory(tensors)), reversible=reversible)


# -- writing -------------------------------------------------------------------------------------------


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_linear_weight(model: nn.Module, name: str) -> bool:
    return name.endswith(".weight") and isinstance(model.get_submodule(_module(name)), nn.Linear)


def _require_adaptable(model: nn.Module, held: InMemory, names: list[str]) -> None:
    firsts = held.first_of
    shared = {first for name, first in firsts.items() if name != first}
    if tied := [name for name in names if firsts[name] in shared]:
        raise ValueError(f"a SHiRA adapter cannot hold {listing(tied)}: tied to other tensors")
    if inner := [name for name in names if not _module(name) or list(model.get_submodule(_module(name)).children())]:
        raise ValueError(
            f"a SHiRA adapter cannot hold {listing(inner)}: tensors of a module with submodules; tune without them"
        )


def _rank(model: nn.Module, nnz: Mapping[str, int]) -> tuple[int, set[str]]:
    """The smallest r that holds the changes of these layers, and those that are smaller whole than with it."""
    sizes = {module: model.get_parameter(f"{module}.weight").shape for module in nnz}
    dense: set[str] = set()
    while True:
        ranks = [-(-nnz[module] // sum(sizes[module])) for module in nnz if module not in dense]
        r = max(ranks, default=1)
        more = {module for module in nnz if module not in dense and r * sum(sizes[module]) > math.prod(sizes[module])}
        if not more:
            return r, dense
        dense |= more


def _all_named(model: nn.Module, whole: set[str]) -> set[str]:
    """Those whose names end like one of these, too: PEFT saves all of them."""
    return {name for name, _ in model.named_modules() if name and any(name.endswith(one) for one in whole)}


def _summands(base: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """float32 numbers that bring ``base`` to ``wanted`` when PEFT adds them, and the errors that remain."""
    difference = wanted.double() - base.double()
    best = difference.float()
    exact = _reaches(base, best, wanted)
    for other in (torch.nextafter(best, best.new_tensor(direction)) for direction in (math.inf, -math.inf)):
        better = ~exact & _reaches(base, other, wanted)
        best, exact = torch.where(better, other, best), exact | better
    error = (_sum(base, best).double() - wanted.double()).abs()
    return best, torch.where(exact, 0.0, error.nan_to_num(nan=math.inf).clamp(min=5e-324))


def _sum(base: Tensor, values: Tensor) -> Tensor:
    """As PEFT adds: in the wider dtype of the two, rounded to that of the base."""
    return (base + values).to(base.dtype)


def _reaches(base: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    return as_integers(_sum(base, values)) == as_integers(wanted)


def _save(folder: Path, contents: dict[str, Tensor], r: int, sparse: tuple[str, ...], whole: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
        "mask_type": "random",
        "modules_to_save": whole or None,
        "peft_type": "SHIRA",
        "r": r,
        "random_seed": 0,
        "target_modules": "|".join(map(re.escape, sparse)),
        "task_type": None,
    }
    with replace_file(folder / WEIGHTS) as temporary:
        save_file(contents, temporary, {"format": "pt"})
    with replace_file(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# -- reading -------------------------------------------------------------------------------------------


def _require_shira(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, transposed = config["peft_type"], config.get("fan_in_fan_out", False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the configuration of an adapter: {error}") from error
    if kind != "SHIRA" or transposed:
        raise ValueError(f"{path}: found {kind}, fan_in_fan_out {transposed}, expected SHIRA of nn.Linear layers")


def _inside(indices: Tensor, weight: Tensor) -> bool:
    limits = torch.tensor(weight.shape).unsqueeze(1)
    return weight.dim() == 2 and bool(((indices >= 0) & (indices < limits)).all())
