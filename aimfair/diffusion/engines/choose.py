"""The engines by the names that ``generate.engine`` gives them."""

from collections.abc import Mapping
from typing import Any

from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines import compiled, onnx_runtime, tensorrt_library, tensorrt_load
from aimfair.diffusion.engines.auto import choose_engine
from aimfair.diffusion.engines.eager import Eager
from aimfair.diffusion.engines.interface import Engine, Source
from aimfair.diffusion.settings import TextToImageSettings


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
        AimfairError: it cannot be made here; says what would mend it.
        Interrupted: as ``interrupt`` says.
    """
    name, reason = choose_engine(settings, lambda: source.device)
    if name != settings.engine:
        log.tell(f"engine: {name} ({reason})")
    if name == onnx_runtime.NAME:
        return onnx_runtime.load(source, log, interrupt)
    if name == compiled.NAME:
        return compiled.Compiled(source, log, interrupt)
    if name in tensorrt_library.NAMES:
        return tensorrt_load.Maker(name, source, settings.tensorrt, batches, log, interrupt).load()
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
    if settings.engine in tensorrt_library.NAMES:
        maker = tensorrt_load.Maker(settings.engine, source, settings.tensorrt, batches, log, interrupt)
        return maker.prepare() is not None
    load_engine(settings, source, batches, log, interrupt)
    return True


def engine_facts(name: str) -> dict[str, Any] | None:
    """Name and versions, for the record of what images were made with; None for eager, which has none of its own.

    Raises:
        AimfairError: a package is missing.
    """
    if name in tensorrt_library.NAMES:
        return {"name": name, **tensorrt_load.versions(name)}
    versions = {onnx_runtime.NAME: onnx_runtime.versions, compiled.NAME: compiled.versions}
    return {"name": name, **versions[name]()} if name in versions else None
