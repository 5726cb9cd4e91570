"""The engines by the names that ``generate.engine`` gives them, and which one ``auto`` is."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines import compiled, onnx_runtime, tensorrt, tensorrt_build
from aimfair.diffusion.engines.engine import Eager, Engine, Source
from aimfair.diffusion.settings import TextToImageSettings

AUTO = "auto"
_ONNX = ("onnx", "onnxscript", "onnxruntime")


class Choice(NamedTuple):
    """An engine and, in words, the reason for it."""

    engine: str
    reason: str


def choose_engine(
    settings: TextToImageSettings, device: Callable[[], torch.device], made_with: str | None = None
) -> Choice:
    """What ``settings.engine`` asks for; for ``auto`` what a user would most likely want.

    Images that exist decide first: the others of a set are to be made as they were. On a GPU nobody waits minutes for
    an engine unasked.

    Args:
        device: tells where the model will run; not asked where it does not matter.
        made_with: the engine of images that are there already, if there are any.
    """
    if settings.engine != AUTO:
        return Choice(settings.engine, "it was asked for")
    if made_with is not None:
        return Choice(made_with, "it made the images that are there")
    if device().type == "cuda":
        return Choice("eager", "the others take minutes to build; --generate.engine tensorrt is made for GPUs")
    if settings.dtype != "float32":
        return Choice("eager", f"onnxruntime is slow in {settings.dtype} on a CPU")
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        return Choice("eager", f"not installed: {' '.join(missing)}; with them onnxruntime is faster on a CPU")
    return Choice("onnxruntime", "the fastest on a CPU")


def load_engine(
    settings: TextToImageSettings,
    source: Source,
    batches: Mapping[str, int],
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
) -> Engine:
    """The engine that was asked for, and never another; of ``auto``, the one that it is here.

    Args:
        batches: part -> images that will go through it at a time, at most.

    Raises:
        AimfairError: it cannot be built here; the message says how to fix it.
        Interrupted: as ``interrupt`` says.
    """
    name, reason = choose_engine(settings, lambda: source.device)
    if name != settings.engine:
        log.tell(f"engine: {name} ({reason})")
    if name == onnx_runtime.NAME:
        return onnx_runtime.load(source, log, interrupt)
    if name == compiled.NAME:
        return compiled.Compiled(source, log, interrupt)
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
    """Makes the engine if it is not there, for a GPU that need not be; raises as :func:`load_engine`.

    Returns:
        Whether it was found to agree with eager; if not, its first run will tell.
    """
    if settings.engine in tensorrt_build.NAMES:
        maker = tensorrt.Maker(settings.engine, source, settings.tensorrt, batches, log, interrupt)
        return maker.prepare() is not None
    load_engine(settings, source, batches, log, interrupt)
    return True


def engine_facts(name: str) -> dict[str, Any] | None:
    """Name and versions, for the record of what images were made with; None for eager, which has none of its own.

    Raises:
        AimfairError: a package is missing.
    """
    if name in tensorrt_build.NAMES:
        return {"name": name, **tensorrt.versions(name)}
    versions = {onnx_runtime.NAME: onnx_runtime.versions, compiled.NAME: compiled.versions}
    return {"name": name, **versions[name]()} if name in versions else None
