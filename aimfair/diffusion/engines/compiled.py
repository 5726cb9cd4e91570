"""Denoiser and decoder by torch.compile, for each batch size that occurs; text encoders stay eager."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines.agreement import TOLERANCES, difference
from aimfair.diffusion.engines.engine import Eager, Source

NAME = "compile"
_PARTS = ("denoiser", "decoder")  # an encoder is called once for each text
_VARIANTS = 64  # compiled batch sizes of one part; torch's default of 8 is too few when batches are halved


class Compiled:
    """An :class:`Engine`, with CUDA graphs on a GPU.

    A new batch size is compiled at its first call, which takes about a minute, is logged, and is compared with eager
    before its result is used. A batch larger than half of a compiled size is padded to it.

    Args:
        regions: compile the repeated blocks of the denoiser, once for each kind, in place of the whole.
        backend: another compiler than Inductor, with its options; it makes no CUDA graphs.

    Raises:
        AimfairError: the denoiser has no repeated blocks. In :meth:`run`: the model cannot be compiled, or its result
            differs from eager's.
    """

    def __init__(
        self,
        source: Source,
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
        *,
        regions: bool = False,
        backend: tuple[str, dict[str, Any]] | None = None,
    ):
        torch._dynamo.config.recompile_limit = _VARIANTS
        self._eager, self._log, self._interrupt = Eager(source), log, interrupt
        self._tolerance = TOLERANCES[source.dtype]
        self._graphs = source.device.type == "cuda" and backend is None
        self._name = NAME if backend is None else backend[0]
        # Without fullgraph, graph breaks would silently run in eager.
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        if backend is not None:
            options |= {"backend": backend[0], "options": backend[1]}
        whole = options if backend is not None else {**options, "mode": "reduce-overhead" if self._graphs else None}
        self._compiled = {
            part.name: _by_regions(part.module, options)
            if regions and part.name == "denoiser"
            else torch.compile(part.module, **whole)
            for part in source.parts
            if part.name in _PARTS
        }
        self._sizes: dict[str, set[int]] = {name: set() for name in self._compiled}

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`."""
        if part not in self._compiled:
            return self._eager.run(part, inputs)
        batch = len(inputs[0])
        size = min((size for size in self._sizes[part] if batch <= size < 2 * batch), default=None)
        if size is None:
            return self._first(part, inputs)
        return tuple(output[:batch] for output in self._call(part, [_filled(tensor, size) for tensor in inputs]))

    def _first(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self._interrupt.check()
        batch, began = len(inputs[0]), time.monotonic()
        try:
            outputs = self._call(part, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # tracer, compiler and C++ compiler each raise their own errors
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if not line.endswith("raised:")), type(error).__name__)
            raise AimfairError(
                f"generate.model cannot be compiled: {part}: {reason}; torch.compile needs a C++ compiler and, on a"
                " GPU, triton; or use --generate.engine eager"
            ) from error
        seconds = time.monotonic() - began
        with torch.compiler.set_stance("force_eager"):  # compiled regions are in the modules themselves
            expected = self._eager.run(part, inputs)
        if not all(output.isfinite().any() for output in expected):
            return outputs  # nothing to compare; the next batch of this size is compared
        worst = max(_difference(*pair) for pair in zip(outputs, expected, strict=True))
        self._log("compiled", part=part, batch=batch, seconds=round(seconds, 1), difference=worst)
        if worst > self._tolerance:
            raise AimfairError(
                f"generate.engine: {self._name} is not to be trusted with generate.model: {part}: largest relative"
                f" difference from eager: {worst:.1e}, expected at most {self._tolerance:.0e}; use --generate.engine"
                " eager"
            )
        self._sizes[part].add(batch)
        return outputs

    def _call(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        module = self._compiled[part]
        tensors = [tensor.contiguous() for tensor in inputs]
        if not self._graphs:
            return tuple(module(*tensors))
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return tuple(output.clone() for output in module(*tensors))  # the next call overwrites the graph's own


def _by_regions(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The same module, with compiled blocks.

    Raises:
        AimfairError: diffusers knows no repeated blocks of it.
    """
    models: list[Any] = [one for one in module.modules() if getattr(one, "_repeated_blocks", None)]
    if not models:
        raise AimfairError(
            "generate.compile_regions: found true, expected false: the denoiser of generate.model has no repeated"
            " blocks"
        )
    for model in models:
        model.compile_repeated_blocks(**options)
    return module


def versions() -> dict[str, Any]:
    """What images depend on besides model and settings."""
    return {"torch": torch.__version__}


def _difference(found: Tensor, expected: Tensor) -> float:
    """As :func:`difference`, where eager is finite: half precision may overflow; filters reject such images."""
    finite = expected.isfinite()
    return difference(found[finite], expected[finite])


def _filled(tensor: Tensor, size: int) -> Tensor:
    """[size, ...], padded by copies of the last image."""
    missing = size - len(tensor)
    return torch.cat((tensor, tensor[-1:].expand(missing, *tensor.shape[1:]))) if missing else tensor
