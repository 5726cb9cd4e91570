"""Reads, checks and writes weights in safetensors files, for models of any library."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aimfair.base.checked_weights import not_finite
from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import replace_file, way_out
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.parameters import listing
from aimfair.selective.storage import check_header, write_error
from aimfair.training.backbones.origin import CONFIG, WEIGHTS
from aimfair.training.head import head_names

Weights = dict[str, Tensor]

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
"""Suffixes of files of weights that torch reads with pickle."""


def weights_of(model: nn.Module) -> Weights:
    """Weights and buffers by name; the first name of a shared tensor."""
    seen: set[tuple[int, ...]] = set()
    weights: Weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        has_place = not (tensor.is_meta or is_dtensor(tensor))
        place = (tensor.data_ptr(), tensor.numel()) if has_place else (id(tensor),)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        weights[name] = tensor.detach()
    return weights


def is_follower(model: nn.Module) -> bool:
    """Whether the model is sharded, and another process writes it."""
    return any(map(is_dtensor, model.parameters())) and torch.distributed.get_rank() > 0


def write_weights(path: Path, model: nn.Module) -> None:
    """Replaces ``path`` atomically; of a sharded model, process 0 does, and every process calls this.

    Raises:
        OSError: the file cannot be written; the previous one is unchanged.
    """
    if any(map(is_dtensor, model.parameters())):
        from aimfair.training.sharding import write_model

        write_model(path, weights_of(model))
        return
    weights = {name: tensor.contiguous() for name, tensor in weights_of(model).items()}
    try:
        with replace_file(path) as temporary:
            save_file(weights, temporary, {"format": "pt"})
    except SafetensorError as error:
        raise write_error(error, path, weights) from error


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file, memory-mapped.

    Raises:
        AimfairError: naming the file: it is missing, damaged, or holds NaN or infinity. Pickles are never read.
    """
    try:
        check_header(path)
        weights = load_file(path)
    except FileNotFoundError:
        reason = pickled_only(path.parent) or "weights are read from safetensors alone"
        raise AimfairError(f"{path}: no such file; {reason}") from None
    except (SafetensorError, ValueError) as error:
        raise AimfairError(f"{path}: not a usable safetensors file: {one_line(error)}") from error
    require_finite(path, weights)
    return weights


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads weights that :func:`write_weights` wrote for the same architecture.

    Raises:
        AimfairError: as :func:`read_weights`, or the tensors are not those of ``model``: names are listed.
    """
    try:
        weights = read_weights(path)
    except AimfairError as error:
        raise AimfairError(f"{error}; {way_out(path, 'train again')}") from error
    expected = weights_of(model)
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "mismatched": [
            f"{name} {weights[name].dtype} {tuple(weights[name].shape)} instead of {tensor.dtype} {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and (weights[name].shape, weights[name].dtype) != (tensor.shape, tensor.dtype)
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {listing(names)}" for what, names in problems.items() if names)
        raise AimfairError(f"{path}: weights of another architecture than {CONFIG} beside it: {text}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def pickled_only(folder: Path) -> str | None:
    """What to do about a folder whose weights are pickles, which can run code when they are read; None if others are
    there, or none at all."""
    if any(folder.glob("*.safetensors")):
        return None
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if not pickles:
        return None
    return (
        f"found {listing(pickles)}, but pickles are not read, as they can run code; save the weights as {WEIGHTS} with"
        " save_pretrained of a recent transformers, or safetensors.torch.save_file"
    )


def transplant(weights: Mapping[str, Tensor], model: nn.Module, where: str, image_size: int = 224) -> None:
    """Loads pretrained weights; the head stays new if the number of classes differs.

    Args:
        image_size: of an image that the model takes, to find its head.

    Raises:
        AimfairError: weights other than the head's are missing or unknown to the model, or hold NaN or infinity.
    """
    require_finite(where, weights)
    expected = weights_of(model)
    head = set(head_names(model, image_size, where))
    fitting = {
        name: tensor for name, tensor in weights.items() if name in expected and tensor.shape == expected[name].shape
    }
    wrong = sorted((expected.keys() - fitting.keys() - head) | (weights.keys() - expected.keys() - head))
    if wrong:
        raise AimfairError(
            f"{where}: not the weights of a {type(model).__name__}: missing, unexpected or of another shape:"
            f" {listing(wrong)}"
        )
    if head - fitting.keys():  # a new weight with an old bias would be neither
        fitting = {name: tensor for name, tensor in fitting.items() if name not in head}
    with torch.no_grad():
        for name, tensor in fitting.items():
            expected[name].copy_(tensor)


def require_finite(where: Path | str, weights: Mapping[str, Tensor]) -> None:
    """
    Raises:
        AimfairError: NaN or infinite weights, by name.
    """
    if bad := not_finite(weights):
        raise AimfairError(f"{where}: NaN or infinite weights in {listing(bad)}")
