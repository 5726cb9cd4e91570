"""Image classifiers of transformers. The only importer of transformers for classifiers.

Pretrained weights may be those of a classifier, of its body (``ViTModel``, ``Dinov2Model``, ``ResNetModel``) or of a
model of images and text (``CLIPModel``, ``SiglipModel``), whose image tower is used; the head is then new.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import write_text
from aimfair.base.libraries import optional
from aimfair.selective.parameters import listing
from aimfair.selective.storage import check_header
from aimfair.training.backbones.origin import CONFIG, WEIGHTS
from aimfair.training.backbones.weights import load_weights, pickled_only, write_weights
from aimfair.training.head import head_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PREPROCESSOR = "preprocessor_config.json"
"""File in which transformers keeps the preprocessing of a model."""

TASK: dict[str, Any] = {
    "problem_type": "single_label_classification",
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""What a configuration says of the task and of outputs, whatever a pretrained one said: one of several classes, and
logits by name."""

_OF_THE_DATA = ("num_labels", "id2label", "label2id")
"""Keys of a configuration that follow from the data set."""


def build(values: dict[str, Any], classes: int) -> nn.Module:
    """A classifier with random weights, of a configuration with ``model_type``.

    Raises:
        AimfairError: naming the key of ``model.config`` that is wrong.
    """
    with _quiet():
        return _from_config(_new_config(values, classes))


def build_pretrained(name: str, classes: int, allow_download: bool) -> nn.Module:
    """A model from a folder or the hub, with a new head if it has none for ``classes``.

    Raises:
        AimfairError: missing, damaged, or incomplete beyond the head.
    """
    with _quiet():
        return _pretrained(name, classes, allow_download)


def is_of_transformers(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "to_json_string")


def save(model: nn.Module, folder: Path) -> None:
    """Configuration, then weights, as ``from_pretrained`` reads them."""
    config = cast("PreTrainedConfig", model.config)
    write_text(folder / CONFIG, config.to_json_string(use_diff=False))
    write_weights(folder / WEIGHTS, model)


def load(folder: Path, values: dict[str, Any]) -> nn.Module:
    """The model of a folder whose configuration holds ``values``."""
    from transformers import AutoConfig

    with _quiet():
        values = dict(values)
        try:
            config = AutoConfig.for_model(values.pop("model_type"), **values)
        except Exception as error:
            raise AimfairError(f"{folder / CONFIG}: not a usable model configuration: {one_line(error)}") from error
        model = _from_config(config)
    load_weights(folder / WEIGHTS, model)
    return model


def normalization(name: str, allow_download: bool) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` of the images of a pretrained model, as its file has them, if it has."""
    try:
        path = Path(name, PREPROCESSOR) if Path(name).is_absolute() else _hub_file(name, PREPROCESSOR, allow_download)
        values = json.loads(path.read_text(encoding="utf-8"))
        return values["image_mean"], values["image_std"]
    except Exception:  # the hub's client may raise anything, and the model need not say
        return None


def architecture(kind: str) -> str | None:
    """Name of transformers' image classifier for a ``model_type``; None: it has none, or several, as DeiT has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    return found if isinstance(found, str) else None


# -- configurations ------------------------------------------------------------------------------------


def _new_config(values: dict[str, Any], classes: int) -> "PreTrainedConfig":
    from transformers import AutoConfig

    values = dict(values)
    kind = values.pop("model_type")
    if fixed := [key for key in values if key in (*TASK, *_OF_THE_DATA)]:
        raise AimfairError(f"model.config.{fixed[0]}: it follows from the data and the task; leave it out")
    try:
        known = AutoConfig.for_model(kind).to_dict().keys()
    except ValueError:  # whose message lists them all
        raise AimfairError(f"model.config.model_type: transformers knows no architecture {kind!r}") from None
    for key in values.keys() - known:
        nearest = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise AimfairError(f"model.config.{key}: {kind} has no such setting{hint}")
    try:
        return AutoConfig.for_model(kind, **values, **TASK, num_labels=classes)
    except Exception as error:  # each architecture checks its own values and may raise anything
        raise AimfairError(f"model.config: not usable for {kind}: {one_line(error)}") from error


def _from_config(config: "PreTrainedConfig") -> "PreTrainedModel":
    from transformers import AutoModelForImageClassification

    _require_classifier(config, "model.config")
    try:
        model: PreTrainedModel = AutoModelForImageClassification.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except Exception as error:
        reason = _reason(error, config)
        raise AimfairError(f"model.config: no image classifier can be made of it: {reason}") from error
    return model


def _reason(error: Exception, config: "PreTrainedConfig | None") -> str:
    """What transformers says; of a value that it looks up in vain, which is all that it says, also the key."""
    values = config.to_dict() if config is not None and isinstance(error, KeyError) else {}
    key = next((key for key, value in values.items() if value == error.args[0]), None)
    return one_line(error) if key is None else f"{key}: {error.args[0]!r} is not known to it"


# -- weights -------------------------------------------------------------------------------------------


def _pretrained(name: str, classes: int, allow_download: bool) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForImageClassification

    model: PreTrainedModel
    config: PreTrainedConfig | None = None
    try:
        source = name if allow_download or Path(name).is_absolute() else str(_hub_file(name, CONFIG, False).parent)
        _require_safetensors(Path(source))
        config = AutoConfig.from_pretrained(source, num_labels=classes, **TASK)
        _require_classifier(config, name)
        model, found = AutoModelForImageClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except AimfairError:
        raise
    except Exception as error:  # transformers may raise anything
        raise AimfairError(f"{name}: transformers cannot load it: {_reason(error, config)}") from error
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if lacking := sorted(new - _may_be_new(model)):
        raise AimfairError(
            f"{name}: not the weights of a {type(model).__name__}: missing or of another shape: {listing(lacking)}"
        )
    return model


def _require_safetensors(folder: Path) -> None:
    """
    Raises:
        AimfairError: damaged safetensors files, or none but pickles.
    """
    for path in folder.glob("*.safetensors"):
        try:
            check_header(path)
        except ValueError as error:
            raise AimfairError(f"{path}: not a usable safetensors file: {one_line(error)}") from error
    if pickles := pickled_only(folder):
        raise AimfairError(f"{folder}: {pickles}")


def _require_classifier(config: "PreTrainedConfig", where: str) -> None:
    """
    Raises:
        AimfairError: transformers has no image classifier of this architecture.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFIERS

    if type(config) not in CLASSIFIERS:
        raise AimfairError(
            f"{where}: transformers has no image classifier of the architecture {config.model_type!r}; put a head on"
            " its backbone in a function of yours and give that as model.factory, see docs/methods.md"
        )


def _may_be_new(model: "PreTrainedModel") -> set[str]:
    """Weights and buffers that a pretrained model may lack: its heads, and what lies outside of the backbone."""
    prefix = model.base_model_prefix
    has_backbone = isinstance(getattr(model, prefix, None), nn.Module)
    outside = {key for key in model.state_dict() if has_backbone and not key.startswith(f"{prefix}.")}
    try:
        return outside | set(head_names(model, _image_size(model.config), type(model).__name__))
    except AimfairError:  # no layer of its own gives the logits
        return outside


def _image_size(config: Any) -> int:
    """Height of the images that a model was made for; 224 if it takes any."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return int(size) if isinstance(size, int) else int(size[0])


def _hub_file(name: str, file: str, allow_download: bool) -> Path:
    """A file of a model on the hub.

    The hub's client may use the network even when restricted to its cache; this look-up does not.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(name, file)
    if isinstance(path, str):
        return Path(path)
    if allow_download:
        return Path(hf_hub_download(name, file))
    raise FileNotFoundError(
        f"no model of this name in the hub's cache, {constants.HF_HUB_CACHE}; give a folder (beginning with /, ./, ../"
        " or ~/), or download it with --model.allow_download true"
    )


# -- silence ------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and its warnings of a new head, which is intended here."""
    with optional("this model", "transformers"):
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
