"""Loads models and tokenizers of transformers from a folder; refuses missing and broken weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.os_errors import of_the_machine


def load_model(key: str, folder: Path, kind: Any, **options: Any) -> Any:
    """A model with every weight from the folder's safetensors files, without pickle and without network.

    Args:
        key: the setting that names the folder, for errors.
        kind: a class of transformers with ``from_pretrained``.
        options: of ``from_pretrained``.

    Returns:
        The model, on the CPU.

    Raises:
        AimfairError: it cannot be loaded, or a tensor is missing, of another shape, or holds NaN or infinite values.
    """
    model, found = _one_line(
        key,
        folder,
        kind,
        lambda: kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        ),
    )
    if missing := sorted(found["missing_keys"]):  # transformers would fill them with random values
        raise AimfairError(f"{key}: {folder}: {missing[0]} is missing; fetch or copy it again")
    for name, saved, expected in sorted(found["mismatched_keys"]):
        raise AimfairError(
            f"{key}: {folder}: {name} has shape {tuple(saved)}, expected {tuple(expected)} by config.json; fetch or "
            "copy it again"
        )
    refuse_broken_weights(f"{key}: {folder}", model)
    return model


def refuse_broken_weights(where: str, model: nn.Module) -> None:
    """NaN loads silently, and gives black images or filters that accept everything.

    Args:
        where: location of the model, for the error.

    Raises:
        AimfairError: a tensor holds NaN or infinite values.
    """
    if bad := not_finite(model.state_dict()):
        raise AimfairError(f"{where}: {bad[0]} holds NaN or infinite weights; fetch or copy it again")


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinite values."""
    return [name for name, tensor in weights.items() if not _finite(tensor)]


def load_tokenizer(key: str, folder: Path) -> Any:
    """The tokenizer in the folder of a model.

    Args:
        key: the setting that names the folder, for errors.

    Raises:
        AimfairError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _one_line(
        key, folder, AutoTokenizer, lambda: AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    )


def _one_line(key: str, folder: Path, kind: Any, load: Callable[[], Any]) -> Any:
    """The result of ``load``, without progress bars and reports; its errors in one line."""
    import transformers as library

    transformers: Any = library  # its annotations are incomplete
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load()
    except Exception as error:  # a damaged folder raises many kinds of errors
        if of_the_machine(error):
            raise
        raise AimfairError(f"{key}: {folder}: not a usable {kind.__name__}: {one_line(error)}") from error


def _finite(weights: Tensor) -> bool:
    if weights.is_floating_point() and weights.itemsize == 1:  # isfinite lacks some of the float8 types
        weights = weights.float()
    return bool(torch.isfinite(weights).all())
