"""The engines by the names of ``generate.engine``, and the choice of ``auto``."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines import compiled, onnx_runtime, quantize, tensorrt, tensorrt_build, torch_tensorrt
from aimfair.diffusion.engines.engine import Eager, Engine, Source
from aimfair.diffusion.settings import TextToImageSettings

AUTO = "auto"
_EIGHT_BITS = (onnx_runtime.NAME, *tensorrt_build.NAMES)
_ONNX = ("onnx", "onnxscript", "onnxruntime")


class Choice(NamedTuple):
    """An engine and, in words, the reason for it."""

    engine: str
    reason: str


def choose_engine(
    settings: TextToImageSettings,
    device: Callable[[], torch.device],
    made_with: str | None = None,
    known: Callable[[], bool] = lambda: True,
) -> Choice:
    """``settings.engine``, or a choice for ``auto``.

    If images exist already, their engine makes the rest of the set. On a GPU nobody should wait minutes for an engine
    without having asked for it.

    Args:
        device: returns the device of the model; called only if it matters.
        made_with: the engine of existing images, if there are any.

    Raises:
        AimfairError: a quantised model needs an engine that takes long to build.
    """
    if settings.engine != AUTO:
        return Choice(settings.engine, "it is set")
    if settings.step_cache is not None or settings.channels_last:
        return Choice("eager", "step_cache and channels_last are of its modules")
    if made_with is not None and (settings.quantization is None or made_with in _EIGHT_BITS):
        return Choice(made_with, "it made the existing images")
    if settings.quantization is not None:
        if device().type == "cuda":
            raise AimfairError(
                "generate.engine: found auto, expected tensorrt or tensorrt-rtx on a GPU with generate.quantization"
            )
        return Choice("onnxruntime", "it runs quantised models on a CPU")
    if device().type == "cuda":
        return Choice("eager", "other engines take minutes to build; the fastest on a GPU: --generate.engine tensorrt")
    if settings.dtype != "float32":
        return Choice("eager", f"onnxruntime is slow in {settings.dtype} on a CPU")
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        return Choice("eager", f"not installed: {' '.join(missing)}; with them onnxruntime is faster on a CPU")
    if not known():
        return Choice("eager", "the model is of no known family")
    return Choice("onnxruntime", "the fastest on a CPU")


def load_engine(
    settings: TextToImageSettings,
    source: Source,
    batches: Mapping[str, int],
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
) -> Engine:
    """The engine of the settings, never another one; for ``auto``, the one chosen by :func:`choose_engine`.

    Args:
        batches: part -> its largest batch.

    Raises:
        AimfairError: it cannot be built; the message says how to fix it.
        Interrupted: as ``interrupt`` says.
    """
    name, reason = choose_engine(settings, lambda: source.device)
    if name != settings.engine:
        log.tell(f"engine: {name} ({reason})")
    if name == onnx_runtime.NAME:
        return onnx_runtime.load(source, log, interrupt)
    if name == compiled.NAME:
        return compiled.Compiled(source, log, interrupt, regions=settings.compile_regions)
    if name == torch_tensorrt.NAME:
        return torch_tensorrt.load(source, log, interrupt)
    if name in tensorrt_build.NAMES:
        return tensorrt.Maker(name, source, settings.tensorrt, batches, log, interrupt).load()
    return Eager(source)


def prepare_engine(
    settings: TextToImageSettings,
    source: Source,
    batches: Mapping[str, int],
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
) -> bool:
    """Builds the engine if it is not in the cache; TensorRT needs no GPU for this. Raises as :func:`load_engine`.

    Returns:
        Whether it was compared with eager; if not, its first run compares it.
    """
    if settings.engine in tensorrt_build.NAMES:
        maker = tensorrt.Maker(settings.engine, source, settings.tensorrt, batches, log, interrupt)
        return maker.prepare() is not None
    load_engine(settings, source, batches, log, interrupt)
    return True


def engine_facts(name: str, quantization: str | None = None) -> dict[str, Any] | None:
    """Name and versions, for the provenance of images; None for eager, which has no version of its own.

    Args:
        quantization: ``generate.quantization``.

    Raises:
        AimfairError: a package is missing.
    """
    if name in tensorrt_build.NAMES:
        rounded_by = {} if quantization is None else {"onnxruntime": quantize.version()}
        return {"name": name, **tensorrt.versions(name), **rounded_by}
    versions = {one.NAME: one.versions for one in (onnx_runtime, compiled, torch_tensorrt)}
    return {"name": name, **versions[name]()} if name in versions else None
