"""Selective tuning and fairness for vision models.

The names below load on first use, so that importing a part does not import the whole. ``aimfair.ops`` has the
operators, for callers with their own scores or loops.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aimfair.evaluation.evaluate import evaluate
    from aimfair.selective import ops
    from aimfair.selective.build import build_info, cpu_paths, set_cpu_path
    from aimfair.selective.debias import debias
    from aimfair.selective.delta import Delta
    from aimfair.selective.frozen import apply_mask, verify_frozen
    from aimfair.selective.mask import ParameterMask
    from aimfair.selective.optim import MaskedAdamW, MaskedSGD
    from aimfair.selective.score import Score
    from aimfair.selective.select_mask import select_mask
    from aimfair.selective.sensitivity import Sensitivity

_HOMES = {
    "Delta": "aimfair.selective.delta",
    "MaskedAdamW": "aimfair.selective.optim",
    "MaskedSGD": "aimfair.selective.optim",
    "ParameterMask": "aimfair.selective.mask",
    "Score": "aimfair.selective.score",
    "Sensitivity": "aimfair.selective.sensitivity",
    "apply_mask": "aimfair.selective.frozen",
    "build_info": "aimfair.selective.build",
    "cpu_paths": "aimfair.selective.build",
    "debias": "aimfair.selective.debias",
    "evaluate": "aimfair.evaluation.evaluate",
    "select_mask": "aimfair.selective.select_mask",
    "set_cpu_path": "aimfair.selective.build",
    "verify_frozen": "aimfair.selective.frozen",
}

__all__ = [
    "Delta",
    "MaskedAdamW",
    "MaskedSGD",
    "ParameterMask",
    "Score",
    "Sensitivity",
    "apply_mask",
    "build_info",
    "cpu_paths",
    "debias",
    "evaluate",
    "ops",
    "select_mask",
    "set_cpu_path",
    "verify_frozen",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("aimfair.selective.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'aimfair' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
