"""Whether an engine computes what eager does: one step and one decode of the same noise."""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from aimfair.generation.engines.eager import Eager
from aimfair.generation.engines.interface import Engine, Source

_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""A grey level is 4e-3 of the range. Sums in another order change 1e-6 to 1e-5 in single precision and 2e-3 to 2e-2 in
half; a wrong graph changes more than 1e-1."""

_BATCH = 3  # not the size of the batch that exporters are shown: one that they took for fixed must come out


class Agreement(BaseModel):
    """Largest differences from eager, as shares of eager's largest value.

    Attributes:
        denoise, decode: of one step, of one decode; infinite values and NaN count as 1e30.
        tolerance: what they may be, by dtype.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    denoise: float
    decode: float
    tolerance: float

    @property
    def good(self) -> bool:
        return max(self.denoise, self.decode) <= self.tolerance

    def __str__(self) -> str:
        return (
            f"largest difference from eager, of its largest value: denoise {self.denoise:.1e}, decode"
            f" {self.decode:.1e}; at most {self.tolerance:.0e}"
        )


@torch.inference_mode()
def compare(engine: Engine, source: Source) -> Agreement:
    """Runs both on the same three images of noise, at three timesteps."""
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(_BATCH, *shape, generator=generator).to(source.device, source.dtype)

    eager = Eager(source)
    latents, embeddings = noise(source.shapes.latents), noise(source.shapes.embeddings)
    timestep = torch.tensor([1.0, 400.0, 999.0], device=source.device)
    return Agreement(
        denoise=_difference(
            engine.denoise(latents, timestep, embeddings), eager.denoise(latents, timestep, embeddings)
        ),
        decode=_difference(engine.decode(latents), eager.decode(latents)),
        tolerance=_TOLERANCES[source.dtype],
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    difference = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return min(float(difference.nan_to_num(1e30)), 1e30)
