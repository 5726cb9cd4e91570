"""Exports models to ONNX. torch's exporter needs onnx and onnxscript; running the files needs neither."""

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt
from aimfair.diffusion.engines.engine import Part, Source, Tensors

OPSET = 20

_EXPORTERS = ("onnx", "onnxscript")
_BATCH = 2  # of the example: torch treats sizes 0 and 1 as constants


def exporters() -> dict[str, str]:
    """The installed packages among those that an export needs, with their versions."""
    found = {}
    for name in _EXPORTERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing_exporters() -> list[str]:
    """The packages that an export needs and that are not installed."""
    return [name for name in _EXPORTERS if name not in exporters()]


def path_of(folder: Path, part: str) -> Path:
    """The file of a part; its weights are in the same folder, in ``<part>.onnx.data``."""
    return folder / f"{part}.onnx"


@torch.no_grad()  # the exporter cannot trace in inference mode
def export(source: Source, folder: Path, interrupt: Interrupt) -> None:
    """Writes a file for each part into an existing folder.

    The first dimension of every tensor, the batch, is dynamic; the others are fixed.

    Raises:
        AimfairError: a package is missing, or the exporter does not support the model.
        Interrupted: between two parts.
        OSError: the files cannot be written.
    """
    if missing := missing_exporters():
        raise AimfairError(
            f"{' and '.join(missing)} not installed; exporting generate.model needs: pip install {' '.join(missing)}"
        )

    def example(tensors: Tensors) -> Tensor:
        return torch.zeros(_BATCH, *tensors.shape, dtype=tensors.dtype, device=source.device)

    for part in source.parts:
        _export(part, tuple(map(example, part.inputs.values())), path_of(folder, part.name))
        interrupt.check()


def _export(part: Part, example: tuple[Tensor, ...], path: Path) -> None:
    try:
        names = list(part.inputs), list(part.outputs)
        write(part.module, example, path, *names, optimize=not part.tiny_constants)
    except NotExportable as error:
        raise AimfairError(
            f"generate.model cannot be exported to ONNX: {part.name}: {error}; use --generate.engine eager, or other"
            f" versions: pip install --upgrade {' '.join(_EXPORTERS)}"
        ) from error


class NotExportable(Exception):
    """The exporter's reason, in one line."""


def write(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    weights_beside: bool = True,
    optimize: bool = True,
) -> None:
    """Exports a module, without gradients, by torch's dynamo exporter, with :data:`OPSET`.

    Args:
        example: inputs, at least two images: torch treats sizes 0 and 1 as constants. Their first dimension,
            ``batch``, is dynamic in the file.
        inputs, outputs: names of the tensors.
        weights_beside: store weights in ``<path>.data``; else in the file itself, which is limited to 2 GB.
        optimize: simplify the graph, which takes constants below 1e-8 for 0.

    Raises:
        NotExportable: the exporter fails or does not support the module.
        OSError: the file cannot be written.
    """
    try:
        with _silent():
            torch.onnx.export(
                module,
                example,
                path,
                dynamo=True,
                opset_version=OPSET,
                external_data=weights_beside,
                optimize=optimize,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: "batch"} for _ in example),
            )
    except OSError:
        raise
    except Exception as error:  # exporter, optimizer and checker each raise their own errors
        raise NotExportable((str(error).strip() or type(error).__name__).splitlines()[0]) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Silences warnings about missing libraries and deprecations inside torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
