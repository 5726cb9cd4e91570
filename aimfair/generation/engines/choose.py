"""The engines by the names that ``generate.engine`` gives them."""

from typing import Any

from aimfair.generation.engines import compiled, onnx_runtime
from aimfair.generation.engines.eager import Eager
from aimfair.generation.engines.interface import Engine, Source
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log


def load_engine(name: str, source: Source, log: Log = NOWHERE, interrupt: Interrupt = NEVER) -> Engine:
    """The engine that was asked for, and never another.

    Raises:
        AimfairError: it cannot be made here; says what would mend it.
        Interrupted: as ``interrupt`` says.
    """
    if name == onnx_runtime.NAME:
        return onnx_runtime.load(source, log, interrupt)
    if name == compiled.NAME:
        return compiled.Compiled(source, log, interrupt)
    return Eager(source)


def engine_facts(name: str) -> dict[str, Any] | None:
    """Name and versions, for the record of what images were made with; None for eager, which has none of its own.

    Raises:
        AimfairError: a package is missing.
    """
    versions = {onnx_runtime.NAME: onnx_runtime.versions, compiled.NAME: compiled.versions}
    return {"name": name, **versions[name]()} if name in versions else None
