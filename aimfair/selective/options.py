"""Arguments of the masked optimizers, checked by name: options, also those of a param group, params and mask.

Numbers may be of any real type except bool; only ``lr`` may be a tensor.
"""

import math
import os
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from aimfair.selective.mask import ParameterMask

IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
"""Options by which torch's optimizers choose an implementation.

A masked step is always one fused call and can be captured in a CUDA graph: any of these is accepted, except
``differentiable=True``, and changes nothing.
"""


def require_options(options: Mapping[str, Any]) -> None:
    """Refuses options of an optimizer, or of one of its param groups, that are of a wrong type or out of range.

    Args:
        options: all of the optimizer's, by name, and any of :data:`IMPLEMENTATION`.

    Raises:
        TypeError, ValueError: naming the option.
    """
    for name, value in options.items():
        _CHECKS[name](name, value)
    if options.get("nesterov") and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError(
            f"nesterov needs momentum > 0 and dampening = 0, found momentum={options['momentum']},"
            f" dampening={options['dampening']}"
        )
    if options["stochastic_rounding"] and options["master_weights"]:
        raise ValueError("stochastic_rounding is not valid with master_weights")
    if options["moment_bits"] == 8 and options.get("amsgrad"):
        raise ValueError("amsgrad is not valid with moment_bits=8: a maximum is not kept by rounding; use 16 or 32")
    if options.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: a step changes the weights in place, outside autograd; use"
            " torch's optimizer to differentiate through steps"
        )


def require_mask(mask: object) -> None:
    """TypeError for anything but a mask or None; says what to pass instead."""
    if mask is None or isinstance(mask, ParameterMask):
        return
    if _is_number(mask) or (isinstance(mask, Tensor) and mask.numel() == 1):
        found, instead = f"mask={mask}", f"the mask comes second; give the learning rate by name: lr={mask}"
    elif isinstance(mask, str | os.PathLike):
        found, instead = f"mask={os.fspath(mask)!r}", "read the file with ParameterMask.load"
    else:
        found, instead = f"mask is of type {type(mask).__name__}", "of bool tensors, make one: ParameterMask.from_bool"
    raise TypeError(f"{found}: expected a ParameterMask or None; {instead}")


def require_max_norm(max_norm: object) -> None:
    """Refuses a norm to clip to that is neither None nor a number greater than 0."""
    if max_norm is None:
        return
    _number("max_norm", max_norm)
    if not max_norm > 0:  # type: ignore[operator]
        raise ValueError(f"max_norm={max_norm}: expected a number greater than 0")


def require_params(params: object) -> None:
    """TypeError for a module or a dict, which torch would iterate over or report without saying what to pass."""
    if isinstance(params, nn.Module):
        raise TypeError(f"params is a module ({type(params).__name__}): pass model.named_parameters()")
    if isinstance(params, Mapping):
        raise TypeError("params is a dict: pass (name, parameter) pairs, such as .items(), or a list of param groups")


def _lr(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        if not _is_number(value):
            raise _wrong_type(name, value, "a number or a tensor of one element")
        return _require_range(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}, expected one element")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} is a {value.dtype} tensor, expected float32 or float64")
    _require_range(name, value.item())


def _size(name: str, value: Any) -> None:
    _number(name, value)
    _require_range(name, value)


def _number(name: str, value: Any) -> None:
    if not _is_number(value):
        raise _wrong_type(name, value, "a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: expected a finite number")


def _betas(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or not all(map(_is_number, value)):
        raise _wrong_type(name, value, "two numbers")
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"{name}={value}: expected two numbers, both at least 0 and less than 1")


def _bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")


def _moment_bits(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or value not in (32, 16, 8):
        raise ValueError(f"{name}={value!r}: expected 32, 16 or 8")


def _bool_or_none(name: str, value: Any) -> None:
    if value is not None:
        _bool(name, value)


def _seed(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _wrong_type(name, value, "an integer")
    if not -(1 << 63) <= int(value) < 1 << 63:
        raise ValueError(f"{name}={value}: expected an integer of 64 bits")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": _lr,
    "betas": _betas,
    **dict.fromkeys(("eps", "weight_decay", "momentum"), _size),
    "dampening": _number,
    **dict.fromkeys(("amsgrad", "nesterov", "maximize", "master_weights", "stochastic_rounding", "offload"), _bool),
    "moment_bits": _moment_bits,
    "seed": _seed,
    **dict.fromkeys(("capturable", "differentiable"), _bool),
    **dict.fromkeys(("foreach", "fused"), _bool_or_none),
}
"""Option of an optimizer or of a param group -> its check."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_range(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} is out of range, expected a finite number, at least 0")


def _wrong_type(name: str, value: object, expected: str) -> TypeError:
    found = "a tensor" if isinstance(value, Tensor) else " ".join(reprlib.repr(value).split())
    return TypeError(f"{name}={found}: expected {expected}")
