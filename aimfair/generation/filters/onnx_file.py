"""ONNX files of the user's that take images, such as a classifier or a detector."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.base.errors import AimfairError, one_line, prefixed
from aimfair.base.files import file_digest
from aimfair.base.libraries import optional
from aimfair.diffusion.engines.onnx_runtime import session
from aimfair.diffusion.model import digest_of_files

_IN_OTHER_SHAPES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


class ImageFile:
    """A file that takes images one by one, on the CPU, such as a classifier or a detector.

    Args:
        key: the setting that names the file, for errors.

    Attributes:
        outputs: their names.
        size: (H, W); None: any.

    Raises:
        AimfairError: onnxruntime is missing, cannot read the file, or it takes something else.
    """

    def __init__(self, key: str, path: Path):
        self._where = f"{key}: {path}"
        if not path.is_file():
            raise AimfairError(f"{self._where}: there is no such file, expected an ONNX model")
        with prefixed(key):
            self._session = session(path, torch.device("cpu"), torch.get_num_threads(), key)
        inputs = self._session.get_inputs()
        batch, channels, *size = inputs[0].shape if inputs and len(inputs[0].shape) == 4 else (0, 0)
        fits = all(not isinstance(found, int) or found == wanted for found, wanted in ((batch, 1), (channels, 3)))
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not fits:
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
            raise AimfairError(f"{self._where}: inputs {found}; expected one, tensor(float) [1, 3, H, W]")
        self._input = inputs[0].name
        self.outputs: list[str] = [one.name for one in self._session.get_outputs()]
        self.size: tuple[int, int] | None = (size[0], size[1]) if all(isinstance(one, int) for one in size) else None

    def run(self, image: Tensor) -> list[npt.NDArray[Any]]:
        """The outputs for an image, float32 [3, H, W].

        Raises:
            AimfairError: onnxruntime fails.
        """
        try:
            found: list[npt.NDArray[Any]] = self._session.run(None, {self._input: image[None].contiguous().numpy()})
        except Exception as error:  # onnxruntime has one error class for all runtime failures
            size = f"{image.shape[2]} x {image.shape[1]}"
            raise AimfairError(f"{self._where}: fails on an image of {size} pixels: {one_line(error)}") from error
        return found


def fingerprint(path: Path, *beside: str) -> str:
    """SHA-256 of a file, of those with its weights, if there are any, and of those beside it with these names."""
    names = {path.name, *_weights(path), *beside}
    if len(names) == 1:
        return file_digest(path)
    return digest_of_files(path.parent, [glob.escape(name) for name in names])


def last_operation(path: Path) -> str:
    """What gives the first output, such as Softmax, apart from operations that only change its shape; "": an input."""
    onnx = _library()
    graph = onnx.load(path, load_external_data=False).graph
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name)
    while node is not None and node.op_type in _IN_OTHER_SHAPES:
        node = made_by.get(node.input[0])
    return "" if node is None else str(node.op_type)


def _weights(path: Path) -> set[str]:
    """The files beside it that hold tensors."""
    onnx = _library()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # of protobuf; onnxruntime words it for the user
        return set()
    tensors = [one for one in _tensors(model.graph) if onnx.external_data_helper.uses_external_data(one)]
    return {onnx.external_data_helper.ExternalDataInfo(one).location for one in tensors}


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _library() -> Any:
    with optional("generate.filters with an ONNX file", "onnx onnxruntime"):
        import onnx
    return onnx
