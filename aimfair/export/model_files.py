"""Weights, configuration and preprocessing of a run's model, in the format of the backbone's own library."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_json
from aimfair.base.settings import is_url
from aimfair.data.images import ImageSet
from aimfair.data.load import list_images
from aimfair.data.settings import SHARDS, DataSettings
from aimfair.training.backbones.hf import TASK, architecture
from aimfair.training.execution import logits
from aimfair.training.feed import Normalize
from aimfair.training.models import CONFIG, WEIGHTS
from aimfair.training.settings import ModelSettings

_OF_THIS_MACHINE = ("_name_or_path", "name_or_path")
"""Where a model came from, perhaps a local path, which is not published."""


def copy_model(source: Path, to: Path, names: Sequence[str]) -> bool:
    """Copies the model in ``source`` and sets the class names in its configuration; whether it is of transformers.

    Args:
        names: of the classes, in order.

    Raises:
        AimfairError: the configuration is damaged, or for another number of classes.
    """
    path = source / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        of_transformers = isinstance(config.get("model_type"), str)
    except (ValueError, AttributeError) as error:
        raise AimfairError(f"{path}: not a usable model configuration: {error}") from error
    if of_transformers:
        known = config.get("id2label") or {}
        if len(known) != len(names):
            raise AimfairError(f"{path}: found {len(known)} labels, expected {len(names)}, one for each class")
        config = {key: value for key, value in config.items() if key not in _OF_THIS_MACHINE}
        config |= TASK  # of a model that an older version trained, it may be another
        if name := architecture(config["model_type"]):
            config["architectures"] = [name]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    write_json(to / CONFIG, config)
    shutil.copyfile(source / WEIGHTS, to / WEIGHTS)
    return of_transformers


PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Difference:
    """Difference between the preprocessing of transformers and of aimfair.

    Attributes:
        images: number compared.
        pixels: largest difference, in grey levels from 0 to 255.
        probability: largest difference of the probability of a class.
        classes: number of images whose most likely class differs.
    """

    images: int
    pixels: float
    probability: float
    classes: int


def processor_settings(data: DataSettings, model: ModelSettings) -> dict[str, Any]:
    """Settings of an image processor of transformers that reproduces aimfair's preprocessing.

    ``data.fit: stretch`` is a bilinear resize to a square, with the same bits. For ``crop``, by Lanczos, Perceiver's
    processor crops before it resizes; others resize to integral sizes first and then crop, which shifts the image by
    part of a pixel. Remaining differences are at the border, beyond which the filter of
    :func:`aimfair.data.decode.fit` reads, and half a pixel if width and height differ by an odd number.
    """
    square = {"height": data.image_size, "width": data.image_size}
    if data.fit == "crop":
        fit = {"image_processor_type": "PerceiverImageProcessor", "do_center_crop": True, "crop_size": square}
        resample = Image.Resampling.LANCZOS
    else:
        fit, resample = {"image_processor_type": "ViTImageProcessor"}, Image.Resampling.BILINEAR
    return {
        **fit,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square,
        "resample": resample.value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.mean),
        "image_std": list(model.std),
    }


def write(folder: Path, data: DataSettings, model: ModelSettings) -> None:
    """Writes :data:`PREPROCESSOR` into the folder of a model."""
    write_json(folder / PREPROCESSOR, processor_settings(data, model))


def examples(images: ImageSet, number: int) -> list[int]:
    """Up to ``number`` indices of images, evenly spaced."""
    count = min(number, len(images))
    return [round(k * (len(images) - 1) / max(1, count - 1)) for k in range(count)]


def measure(
    folder: Path, model: nn.Module, images: ImageSet, chosen: list[int], data: DataSettings, settings: ModelSettings
) -> Difference:
    """Compares transformers' preprocessing with aimfair's, from image file to probability.

    Args:
        folder: holds :data:`PREPROCESSOR`.
        model: in evaluation mode, on the CPU.
        images: of the data set; where it has no files, their pixels are used.
        chosen: indices of the images to compare.
    """
    from transformers import AutoImageProcessor

    # The other backend, torchvision's, has no Lanczos before its version 0.27, and none on a GPU.
    processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        folder, backend="pil", local_files_only=True
    )
    normalize = Normalize(settings, torch.device("cpu"))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (settings.mean, settings.std))
    pixels, probability, classes = 0.0, 0.0, 0
    for number, image in zip(chosen, _opened(images, chosen, data), strict=True):
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        stored = images.images[number : number + 1]
        pixels = max(pixels, _largest((theirs[0] * std + mean) * 255, _channels_first(stored[0])))
        ours, others = (_probabilities(model, x) for x in (normalize(stored), theirs))
        probability = max(probability, _largest(ours, others))
        classes += int(ours.argmax() != others.argmax())
    return Difference(len(chosen), pixels, probability, classes)


def _opened(images: ImageSet, chosen: list[int], data: DataSettings) -> Iterator[Image.Image]:
    """The images as transformers' pipelines open them."""
    from transformers.image_utils import load_image

    in_files = data.root is None or (data.kind not in SHARDS and not is_url(data.root))
    source = None if in_files else list_images(data).source
    for number in chosen:
        if source is not None:
            with source.open(images.ids[number]) as file:
                yield load_image(Image.open(file))
        elif data.root is None:
            yield Image.fromarray(np.asarray(images.images[number]))
        else:
            yield load_image(str(Path(data.root) / images.ids[number]))


def _channels_first(image: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))


@torch.inference_mode()
def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    return logits(model, x).float().softmax(1)[0]


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
