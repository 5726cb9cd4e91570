"""Image classifiers in transformers' architectures: made, saved and loaded. The only importer of transformers here."""

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aimfair.config import ModelSettings
from aimfair.errors import AimfairError
from aimfair.files import replace_file, write_text
from aimfair.seeds import derive_seed
from aimfair.selective.parameters import listing
from aimfair.selective.rules import head_names
from aimfair.selective.storage import refuse_repeated_keys
from aimfair.training.random_state import own_random_numbers, seed_random_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a model folder, as transformers has them: its ``from_pretrained`` reads what is saved here."""


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """[B, C] of normalised images float32 [B, 3, H, W]; the model is transformers' or any that returns a tensor."""
    output = model(images)
    scores: Tensor = output if isinstance(output, Tensor) else output.logits
    return scores


def build_model(settings: ModelSettings, classes: int, seed: int) -> nn.Module:
    """A classifier of ``classes`` classes, float32 on the CPU.

    Weights that are not pretrained depend on ``seed`` alone.

    Raises:
        AimfairError: settings that name no image classifier, or pretrained weights that are missing, damaged or leave
            anything but the head without a value.
    """
    with own_random_numbers(), _quiet():
        seed_random_numbers(derive_seed(seed, "initial weights"))
        if settings.pretrained is not None:
            return _pretrained(str(settings.pretrained), classes, settings.allow_download)
        return _from_config(_new_config(settings.config, classes))


def save_model(model: nn.Module, folder: Path) -> None:
    """Writes one of transformers' models: :data:`CONFIG` and, last, :data:`WEIGHTS`, each in one step.

    Raises:
        OSError: a file cannot be written; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = cast("PreTrainedConfig", model.config)
    write_text(folder / CONFIG, config.to_json_string(use_diff=False))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        with replace_file(folder / WEIGHTS) as temporary:
            save_file(weights, temporary, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: cannot be written: {error}") from error


def load_model(folder: Path) -> nn.Module:
    """A model that :func:`save_model` wrote, on the CPU.

    Raises:
        AimfairError: naming the file: it is missing, damaged, holds NaN or infinite weights, or those of another
            architecture (names listed). Pickled weights are never read.
    """
    with own_random_numbers(), _quiet():  # its random weights are replaced
        model = _from_config(_saved_config(folder / CONFIG))
    path = folder / WEIGHTS
    weights = _read_weights(path)
    _require_same_tensors(path, model.state_dict(), weights)
    _require_finite(path, weights)
    model.load_state_dict(weights)
    return model


# -- configurations ------------------------------------------------------------------------------------


def _new_config(values: dict[str, Any], classes: int) -> "PreTrainedConfig":
    from transformers import AutoConfig

    values = dict(values)
    kind = values.pop("model_type")
    try:
        known = AutoConfig.for_model(kind).to_dict().keys()
    except ValueError:  # whose text lists them all
        raise AimfairError(f"model.config.model_type: transformers knows no architecture {kind!r}") from None
    for key in values.keys() - known:
        nearest = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise AimfairError(f"model.config.{key}: {kind} has no such setting{hint}")
    try:
        return AutoConfig.for_model(kind, **values, num_labels=classes)
    except Exception as error:  # each architecture checks its own values and raises what it likes
        raise AimfairError(f"model.config: not usable for {kind}: {_one_line(error)}") from error


def _saved_config(path: Path) -> "PreTrainedConfig":
    from transformers import AutoConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except FileNotFoundError:
        raise AimfairError(f"{path}: no such file, expected a model folder with {CONFIG} and {WEIGHTS}") from None
    except Exception as error:
        raise AimfairError(f"{path}: not a usable model configuration: {_one_line(error)}") from error


def _from_config(config: "PreTrainedConfig") -> "PreTrainedModel":
    from transformers import AutoModelForImageClassification

    try:
        model: PreTrainedModel = AutoModelForImageClassification.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise AimfairError(f"model.config: no image classifier can be made of it: {_one_line(error)}") from error
    return model


# -- weights -------------------------------------------------------------------------------------------


def _pretrained(name: str, classes: int, allow_download: bool) -> "PreTrainedModel":
    """A model from a folder or the hub; its head is new if it is not for ``classes``."""
    from transformers import AutoModelForImageClassification

    model: PreTrainedModel
    try:
        source = name if allow_download or Path(name).is_absolute() else _cached(name)
        for path in Path(source).glob("*.safetensors"):
            refuse_repeated_keys(path)
        model, found = AutoModelForImageClassification.from_pretrained(
            source,
            num_labels=classes,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises what it likes
        raise AimfairError(f"model.pretrained: {name}: not usable: {_one_line(error)}") from error
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if lacking := sorted(new - set(head_names([key for key, _ in model.named_parameters()]))):
        raise AimfairError(
            f"model.pretrained: {name}: not the weights of a {type(model).__name__}:"
            f" missing or of another shape: {listing(lacking)}"
        )
    _require_finite(name, model.state_dict())
    return model


def _cached(name: str) -> str:
    """The folder in which the hub's cache holds a model.

    The hub's client, even if told to stay with its cache, may ask the network who is using it; this look-up does not.
    """
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, CONFIG)
    if not isinstance(file, str):
        raise FileNotFoundError(
            "no such folder, and no model of this name in the hub's cache; fetch it with model.allow_download"
        )
    return str(Path(file).parent)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        refuse_repeated_keys(path)
        return load_file(path)
    except FileNotFoundError:
        raise AimfairError(f"{path}: no such file; weights are read from safetensors alone") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise AimfairError(f"{path}: not a usable safetensors file: {_one_line(error)}") from error


def _require_same_tensors(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "mismatched": [
            f"{name} {found[name].dtype} {tuple(found[name].shape)} instead of {tensor.dtype} {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype)
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {listing(names)}" for what, names in problems.items() if names)
        raise AimfairError(f"{path}: weights of another architecture than {CONFIG} beside it: {text}")


def _require_finite(where: Path | str, weights: dict[str, Tensor]) -> None:
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise AimfairError(f"{where}: NaN or infinite weights in {listing(bad)}")


# -- transformers' ways --------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its reports of a new head, which are wanted here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _one_line(error: Exception) -> str:
    lines: Iterable[str] = str(error).split("\n")
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)
