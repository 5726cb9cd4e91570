"""Parameter lists: one ordered dict name -> parameter for sensitivities, masks and optimizers."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Parameters = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
"""A module, a dict name -> parameter, or pairs as from ``module.named_parameters()``."""

Shape = tuple[int, ...]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Parameter dtypes that the kernels tune."""

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def named_parameters(source: Parameters, *, trainable: bool = True) -> dict[str, Tensor]:
    """The parameters of ``source`` in order, each once: a tied parameter under its first name.

    Names are those of the plain model, without the prefixes of ``torch.compile`` and data-parallel wrappers.

    Args:
        source: see :data:`Parameters`.
        trainable: keep only parameters that require a gradient now.

    Raises:
        TypeError: an entry is not a (name, tensor) pair.
        ValueError: two parameters have the same name, or there are none.
    """
    if isinstance(source, nn.Module):
        pairs: Iterable[Any] = unwrapped(source).named_parameters()
    else:
        pairs = source.items() if isinstance(source, Mapping) else source

    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise TypeError(f"expected (name, parameter) pairs, found {type(pair).__name__}; use named_parameters()")
        name, parameter = canonical_name(pair[0]), pair[1]
        if id(parameter) in seen or (trainable and not parameter.requires_grad):
            continue
        if name in named:
            raise ValueError(f"two parameters are called {name!r}")
        seen.add(id(parameter))
        named[name] = parameter
    if not named:
        raise ValueError("no parameter requires a gradient" if trainable else "no parameters")
    return named


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside data-parallel wrappers."""
    while isinstance(module, _WRAPPERS):
        module = module.module
    return module


def canonical_name(name: str) -> str:
    """The name without the prefix of ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def shapes_of(parameters: Iterable[Tensor]) -> tuple[Shape, ...]:
    return tuple(tuple(parameter.shape) for parameter in parameters)


def listing(items: Iterable[object], limit: int = 5) -> str:
    """``a, b, c``, cut after ``limit`` entries, with the number of the others."""
    texts = [str(item) for item in items]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")


def require_tunable(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises, by name, for parameters that the kernels do not support.

    Raises:
        TypeError: a dtype other than float32, bfloat16 and float16, or a sparse layout.
        ValueError: a memory layout that is not contiguous.
    """
    for name, parameter in named:
        if parameter.dtype not in DTYPES:
            raise TypeError(f"parameter {name!r} is {parameter.dtype}, expected float32, bfloat16 or float16")
        if parameter.layout is not torch.strided:
            raise TypeError(f"parameter {name!r} has layout {parameter.layout}, expected a dense tensor")
        if not parameter.is_contiguous():
            raise ValueError(
                f"parameter {name!r} is not contiguous (strides {tuple(parameter.stride())}); call"
                " model.to(memory_format=torch.contiguous_format) first, inputs may stay channels_last"
            )


def require_one_device(named: Mapping[str, Tensor]) -> torch.device:
    """The device of all parameters; ValueError naming two of them if there are several."""
    first, device = next((name, parameter.device) for name, parameter in named.items())
    for name, parameter in named.items():
        if parameter.device != device:
            raise ValueError(f"several devices: {first!r} is on {device}, {name!r} on {parameter.device}")
    return device


@contextmanager
def named_errors(names: Sequence[str] | Callable[[], Sequence[str]]) -> Iterator[None]:
    """Adds the parameter's name to an operator's error about an entry such as ``grads[3]``."""
    try:
        yield
    except RuntimeError as error:
        entry = re.search(r"\b[a-z_]+\[(\d+)\]", str(error))
        known = names() if callable(names) else names
        if entry is None or int(entry[1]) >= len(known):
            raise
        raise RuntimeError(f"{error} (parameter {known[int(entry[1])]!r})") from error
