"""Denoiser and decoder as ONNX files. torch's exporter needs onnx and onnxscript; running the files needs neither."""

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from aimfair.errors import AimfairError
from aimfair.generation.engines.eager import Decoder, Denoiser
from aimfair.generation.engines.interface import Source
from aimfair.run.interrupt import Interrupt

OPSET = 20

DENOISER, DECODER = "denoiser.onnx", "decoder.onnx"
"""Names of the files; their weights lie beside them, under the same name and ``.data``."""

INPUTS = {DENOISER: ("sample", "timestep", "embeddings"), DECODER: ("latents",)}
OUTPUT = "output"
"""Of both. The first dimension of every tensor is the batch, and free; the others are those of ``Source.shapes``."""

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


@torch.no_grad()  # the exporter cannot trace in inference mode
def export(source: Source, folder: Path, interrupt: Interrupt) -> None:
    """Writes both files into ``folder``, which is there.

    Raises:
        AimfairError: a package is missing, or the model has something that the exporter cannot express.
        Interrupted: between the two.
        OSError: the files cannot be written.
    """
    if missing := [name for name in _EXPORTERS if name not in exporters()]:
        raise AimfairError(
            f"{' and '.join(missing)} not installed; exporting generate.model needs: pip install {' '.join(missing)}"
        )

    def example(shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(_BATCH, *shape, dtype=source.dtype, device=source.device)

    latents, embeddings = example(source.shapes.latents), example(source.shapes.embeddings)
    timestep = torch.zeros(_BATCH, device=source.device)
    _export(Denoiser(source.unet), (latents, timestep, embeddings), folder / DENOISER)
    interrupt.check()
    _export(Decoder(source.vae), (latents,), folder / DECODER)
    interrupt.check()


def _export(module: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    names = INPUTS[path.name]
    try:
        with _silent():
            torch.onnx.export(
                module.eval(),
                example,
                path,
                dynamo=True,
                opset_version=OPSET,
                external_data=True,
                verbose=False,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: "batch"} for name in names},
            )
    except OSError:
        raise
    except Exception as error:  # exporter, its optimizer and its checker each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AimfairError(
            f"generate.model cannot be exported to ONNX: {path.stem}: {reason}; use --generate.engine eager, or other"
            f" versions: pip install --upgrade {' '.join(_EXPORTERS)}"
        ) from error


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
