"""Guidance in some of the steps only: the others run the denoiser once, not twice, and images can get better for it.

Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models, 2024 (arXiv 2404.07724). As shares of the steps, where the paper names noise levels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aimfair.diffusion.engines.interface import Engine


class GuidanceInterval:
    """An :class:`Engine` in front of another. Where there is no guidance it leaves out the first half of the batch.

    Pipelines put the texts to steer away from into the first half, and add the scaled difference of both halves. The
    second half twice has no difference: what comes out is what the model predicts for the text alone.

    Args:
        engine: runs the parts.
        interval: first share of the steps with guidance, and first one without it again; (0, 1) is all of them.
        steps: how many times the pipeline will call the denoiser, known after its first call.
    """

    def __init__(self, engine: Engine, interval: tuple[float, float], steps: Callable[[], int]):
        self._engine, self._interval, self._steps = engine, interval, steps
        self._step = 0

    def begin(self) -> None:
        """The next call of the denoiser is the first of a batch."""
        self._step = 0

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`."""
        if part != "denoiser":
            return self._engine.run(part, inputs)
        start, stop = self._interval
        share, self._step = self._step / self._steps(), self._step + 1
        if start <= share < stop:
            return self._engine.run(part, inputs)
        outputs = self._engine.run(part, [tensor[len(tensor) // 2 :] for tensor in inputs])
        return tuple(torch.cat([output, output]) for output in outputs)
