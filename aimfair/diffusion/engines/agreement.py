"""Compares an engine with eager: each part once, on the same noise."""

import torch
from pydantic import Field
from torch import Tensor

from aimfair.base.settings import Record
from aimfair.diffusion.engines import quantize
from aimfair.diffusion.engines.engine import Eager, Engine, Source, Tensors, full_precision

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""A grey level is 4e-3 of the range. Another order of summation changes results by 1e-6 to 1e-5 in float32 and
by 2e-3 to 2e-2 in half precision; a wrong graph by more than 1e-1."""

_BATCH = 3  # not the batch size of the export: a batch dimension wrongly exported as constant must be found


class Agreement(Record, allow_inf_nan=False):
    """Largest differences from eager, relative to the largest value of eager.

    Attributes:
        differences: part -> the largest over its outputs; infinite values and NaN count as 1e30.
        tolerance: the largest accepted, by dtype.
        looser: part -> the largest accepted there, if it is quantised.
    """

    differences: dict[str, float]
    tolerance: float
    looser: dict[str, float] = Field(default={})

    @property
    def good(self) -> bool:
        return bool(self.differences) and all(
            share <= self.looser.get(part, self.tolerance) for part, share in self.differences.items()
        )

    def __str__(self) -> str:
        found = ", ".join(f"{part} {share:.1e}" for part, share in self.differences.items())
        most = [
            f"{self.tolerance:.0e}",
            *(f"{share:.0e} for the quantised {part}" for part, share in self.looser.items()),
        ]
        return f"largest relative difference from eager: {found}, expected at most {', '.join(most)}"


@torch.inference_mode()
@full_precision()
def compare(engine: Engine, source: Source) -> Agreement:
    """Runs every part of both on the same batch of noise, a quantised denoiser on inputs that it is made for."""
    generator = torch.Generator("cpu").manual_seed(0)
    eager, differences = Eager(source), {}
    for part in source.parts:
        inputs = [example(tensors, _BATCH, generator).to(source.device) for tensors in part.inputs.values()]
        if source.quantization is not None and part.name == quantize.PART:
            inputs = [tensor[-_BATCH:].to(source.device) for tensor in source.quantization.examples()[0]]
        found = engine.run(part.name, inputs)
        pairs = zip(found, eager.run(part.name, inputs), strict=True)
        differences[part.name] = max(difference(*pair) for pair in pairs)
    looser = {} if source.quantization is None else {quantize.PART: quantize.TOLERANCE}
    return Agreement(differences=differences, tolerance=TOLERANCES[source.dtype], looser=looser)


def example(tensors: Tensors, batch: int, generator: torch.Generator) -> Tensor:
    """Noise [batch, ...] for an input, different in each image; on the CPU."""
    shape = (batch, *tensors.shape)
    if tensors.below is None:
        return torch.randn(shape, generator=generator).to(tensors.dtype)
    if not tensors.dtype.is_floating_point:
        return torch.randint(tensors.below, shape, generator=generator, dtype=tensors.dtype)
    # Eighths are exact: Flux multiplies them by 1000 in half precision, ONNX Runtime without rounding.
    return torch.randint(8, shape, generator=generator).mul(tensors.below / 8).to(tensors.dtype)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, relative to the largest expected value; infinite values and NaN count as 1e30."""
    share = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return min(float(share.nan_to_num(1e30)), 1e30)
