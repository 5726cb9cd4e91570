"""Inputs of the denoiser, recorded while it samples: the calibration of a quantised one."""

from collections.abc import Sequence

from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Engine

_PROMPTS = 8
_CALLS = 8


def calibration_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Some of the prompts, evenly spread, so that all groups are among them.

    Raises:
        AimfairError: there are none.
    """
    if not prompts:
        raise AimfairError("generate.quantization: needs the prompts of a run, on which it measures ranges; found none")
    count = min(_PROMPTS, len(prompts))
    return tuple(prompts[len(prompts) * k // count] for k in range(count))


class Recorder:
    """Wraps an :class:`Engine` and keeps what the denoiser is given."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._calls: list[list[Tensor]] = []

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`."""
        if part == "denoiser":
            self._calls.append([tensor.detach().to("cpu", copy=True) for tensor in inputs])
        return self._engine.run(part, inputs)

    def some(self) -> list[Sequence[Tensor]]:
        """At most 8 of the calls, evenly spread over the steps, first and last included."""
        last = len(self._calls) - 1
        places = sorted({round(last * k / (_CALLS - 1)) for k in range(_CALLS)})
        return [self._calls[place] for place in places]
