"""Image classifiers of the user's: a folder in the layout of transformers, or an ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.base.checked_weights import load_model
from aimfair.base.errors import AimfairError, one_line
from aimfair.base.memory import MicroBatch, pieces
from aimfair.base.os_errors import of_the_machine
from aimfair.diffusion.model import diffusion_libraries, digest_of_files, from_hub
from aimfair.generation.filters import onnx_file
from aimfair.generation.filters.onnx_file import ImageFile
from aimfair.generation.filters.towers import CLASSES, READ, Towers, View, model_config

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which most ONNX classifiers were trained with
_SEVERAL = "multi_label_classification"
_SIZE = 224  # of an ONNX file that takes any


class Classifier(Protocol):
    """Gives each image a number for every label.

    Attributes:
        labels: K names.
        several: whether an image can have several labels: the numbers are of each on its own.
        probabilities: whether the numbers are probabilities; else they are logits, or a score.
    """

    labels: tuple[str, ...]
    several: bool
    probabilities: bool

    def numbers(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """float32 [B, K], on the CPU, of uint8 [B, H, W, 3]."""


def locate(key: str, model: str, allow_download: bool) -> Path:
    """The folder of a model, or its ONNX file.

    Args:
        key: the setting, for errors.
        model: an absolute path, or a hub id.

    Raises:
        AimfairError: it is not there.
    """
    if model.endswith(".onnx") and not Path(model).is_absolute():
        raise AimfairError(f"{key}: found {model!r}, expected a path that begins with /, ./, ../ or ~/")
    if not Path(model).is_absolute():
        return from_hub(key, model, allow_download, READ)
    path = Path(model)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise AimfairError(f"{key}: {path}: there is no such file, expected an ONNX model")
    elif not (path / "config.json").is_file():
        raise AimfairError(f"{key}: {path} has no config.json, expected the folder of a model, or a file .onnx")
    return path


def fingerprint(path: Path) -> str:
    """SHA-256 of the files that are read."""
    if path.suffix != ".onnx":
        return digest_of_files(path, READ)
    return onnx_file.fingerprint(path, *_BESIDE)


_BESIDE = ("config.json", "preprocessor_config.json")  # of an ONNX file: names of the labels, mean and deviation


def open_model(key: str, path: Path, device: torch.device) -> "Towers | Classifier":
    """What :func:`locate` found.

    Raises:
        AimfairError: it is neither CLIP or SigLIP nor an image classifier, or it cannot be loaded.
    """
    if path.suffix == ".onnx":
        return OnnxClassifier(key, path)
    config = model_config(key, path)
    if config.get("model_type") in CLASSES:
        return Towers(key, path, device)
    architectures = config.get("architectures") or []  # transformers finds the class of a model_type by itself
    if architectures and not str(architectures[0]).endswith("ForImageClassification"):
        raise AimfairError(
            f"{key}: {path}/config.json: found model_type {config.get('model_type')!r} and architecture"
            f" {architectures[0]}, expected {' or '.join(CLASSES)}, or an architecture ...ForImageClassification"
        )
    return FolderClassifier(key, path, device)


class FolderClassifier:
    """An image classifier of transformers, with its own preprocessing. See :class:`Classifier`.

    Args:
        key: the setting that names the folder, for errors.

    Raises:
        AimfairError: it cannot be loaded.
    """

    def __init__(self, key: str, folder: Path, device: torch.device):
        with diffusion_libraries():
            from transformers import AutoImageProcessor, AutoModelForImageClassification
        model = load_model(key, folder, AutoModelForImageClassification)
        self._model = model.float().eval().requires_grad_(False).to(device)
        try:  # the backend of Pillow: the same pixels with and without torchvision
            kind: Any = AutoImageProcessor  # without annotations
            self._processor = kind.from_pretrained(folder, local_files_only=True, backend="pil")
        except Exception as error:  # a damaged folder raises many kinds of errors
            if of_the_machine(error):
                raise
            raise AimfairError(f"{key}: {folder}: preprocessor_config.json: {one_line(error)}") from error
        names = self._model.config.id2label
        self.labels = tuple(str(names[number]) for number in range(len(names)))
        self.several = self._model.config.problem_type == _SEVERAL or len(self.labels) == 1
        self.probabilities = False
        self._device, self._fitting = device, MicroBatch(64)

    @torch.inference_mode()
    def numbers(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """See :class:`Classifier`."""
        return self._fitting.attempt(
            lambda size: torch.cat([self._logits(images[part]) for part in pieces(len(images), size)])
        )

    def _logits(self, images: npt.NDArray[np.uint8]) -> Tensor:
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        logits: Tensor = self._model(pixel_values=pixels).logits
        return logits.float().cpu()


class OnnxClassifier:
    """An ONNX file with one output [1, K]: logits or probabilities. See :class:`Classifier`.

    They are probabilities if the last operation is Softmax or Sigmoid, or if they add up to 1; with Sigmoid an image
    can have several labels. config.json beside it gives the labels, else they are their numbers;
    preprocessor_config.json mean and deviation, else they are ImageNet's. Images are resized to the size that the file
    takes, or to 224 x 224.

    Args:
        key: the setting that names the file, for errors.

    Raises:
        AimfairError: it cannot be loaded, or has other inputs or outputs.
    """

    def __init__(self, key: str, path: Path):
        self._file = ImageFile(key, path)
        where = f"{key}: {path}"
        if len(self._file.outputs) != 1:
            raise AimfairError(
                f"{where}: outputs {', '.join(self._file.outputs)}; expected one, [1, K], of logits or probabilities"
            )
        self._view = View(key, path.parent, self._file.size or (_SIZE, _SIZE), torch.device("cpu"), _MEAN, _STD)
        probe = self._file.run(torch.zeros(3, *(self._file.size or (_SIZE, _SIZE))))[0]
        if probe.ndim != 2 or len(probe) != 1:
            raise AimfairError(
                f"{where}: an output of shape {list(probe.shape)}, expected [1, K], of logits or probabilities"
            )
        config = model_config(key, path.parent) if (path.parent / _BESIDE[0]).is_file() else {}
        names = config.get("id2label") or {str(number): str(number) for number in range(probe.shape[1])}
        if len(names) != probe.shape[1]:
            raise AimfairError(f"{where}: {probe.shape[1]} numbers, and {len(names)} labels in config.json beside it")
        self.labels = tuple(str(name) for _, name in sorted(names.items(), key=lambda pair: int(pair[0])))
        last = onnx_file.last_operation(path)
        self.several = last == "Sigmoid" or config.get("problem_type") == _SEVERAL or len(self.labels) == 1
        self.probabilities = last in ("Softmax", "Sigmoid") or (not self.several and _shares(probe))

    def numbers(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """See :class:`Classifier`."""
        pixels = self._view(images)
        return torch.from_numpy(np.concatenate([self._file.run(one)[0] for one in pixels])).float()


def _shares(numbers: npt.NDArray[Any]) -> bool:
    """Whether they are those of a softmax that is made of other operations."""
    return bool((numbers >= 0).all() and abs(numbers.sum() - 1) < 1e-3)


def columns(key: str, classifier: Classifier, labels: Sequence[Sequence[str]]) -> list[list[tuple[int, int]]]:
    """For each value, the numbers of its labels with 1, or -1 for the absence of a label, written !label.

    Raises:
        AimfairError: a label does not exist, or the classifier always gives exactly one, so that none is absent.
    """
    known = {label: (number, 1) for number, label in enumerate(classifier.labels)}
    if classifier.several:
        known |= {f"!{label}": (number, -1) for label, (number, _) in known.items()}
    for label in (label for of_value in labels for label in of_value):
        if label not in known:
            absent = ", each also with ! for its absence" if classifier.several else ""
            raise AimfairError(
                f"{key}: found {label!r}, expected labels of the classifier: {shortened(classifier.labels)}{absent}"
            )
    return [[known[label] for label in of_value] for of_value in labels]


def shortened(labels: Sequence[str]) -> str:
    """The first labels, for an error."""
    return ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
