"""Models as ONNX files. torch's exporter needs onnx and onnxscript; running the files needs neither."""

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
_BATCH = 2  # of the example: torch takes sizes 0 and 1 for fixed ones


def exporters() -> dict[str, str]:
    """Version of each package that an export needs and that is installed."""
    found = {}
    for name in _EXPORTERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing_exporters() -> list[str]:
    """Packages that an export needs and that are not installed."""
    return [name for name in _EXPORTERS if name not in exporters()]


def path_of(folder: Path, part: str) -> Path:
    """The file of a part; its weights lie beside it, under the same name and ``.data``."""
    return folder / f"{part}.onnx"


@torch.no_grad()  # the exporter cannot trace in inference mode
def export(source: Source, folder: Path, interrupt: Interrupt) -> None:
    """Writes a file for each part into ``folder``, which is there.

    The first dimension of every tensor is the batch, and free; the others are those of the part.

    Raises:
        AimfairError: a package is missing, or the model has something that the exporter cannot express.
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
        write(part.module, example, path, list(part.inputs), list(part.outputs))
    except NotExportable as error:
        raise AimfairError(
            f"generate.model cannot be exported to ONNX: {part.name}: {error}; use --generate.engine eager, or other"
            f" versions: pip install --upgrade {' '.join(_EXPORTERS)}"
        ) from error


class NotExportable(Exception):
    """What the exporter has to say, in one line."""


def write(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    weights_beside: bool = True,
) -> None:
    """One module as an ONNX file, by torch's exporter of exported programs, with :data:`OPSET`. Without gradients.

    Args:
        example: of the inputs, two images at least: torch takes sizes 0 and 1 for fixed ones. Their first dimension,
            ``batch``, is free in the file.
        inputs, outputs: names of the tensors.
        weights_beside: in a file of their own, ``<path>.data``; else within, which holds up to 2 GB.

    Raises:
        NotExportable: the module has something that cannot be expressed, or the exporter fails.
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
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: "batch"} for _ in example),
            )
    except OSError:
        raise
    except Exception as error:  # exporter, its optimizer and its checker each have errors of their own
        raise NotExportable((str(error).strip() or type(error).__name__).splitlines()[0]) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without word of absent libraries and of deprecations inside torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
