"""What stands between a wrong engine and its use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aimfair.config import GenerateSettings
from aimfair.generation.diffusion import engine_and_source
from aimfair.generation.engines.agreement import compare
from aimfair.generation.engines.eager import Eager
from aimfair.generation.engines.interface import Engine, Source


@pytest.fixture(scope="module")
def source(model: Path) -> Source:
    return engine_and_source(model, GenerateSettings(), torch.device("cpu"))[1]


class Wrong(Eager):
    """Eager with a change of one of its two results."""

    def __init__(self, source: Source, part: str, change: Callable[[Tensor], Tensor]):
        super().__init__(source)
        right = getattr(self, part)
        setattr(self, part, lambda *inputs: change(right(*inputs)))


def one_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(result: Tensor) -> Tensor:
        result[1, 0, 0, 0] += value
        return result

    return change


def test_eager_agrees_with_itself(source: Source) -> None:
    engine: Engine = Eager(source)
    agreement = compare(engine, source)
    assert (agreement.denoise, agreement.decode, agreement.good) == (0.0, 0.0, True)


@pytest.mark.parametrize("part", ["denoise", "decode"])
@pytest.mark.parametrize("value", [0.01, torch.nan, torch.inf])
def test_one_wrong_value_is_seen(source: Source, part: str, value: float) -> None:
    agreement = compare(Wrong(source, part, one_value(value)), source)
    assert not agreement.good
    assert getattr(agreement, part) > agreement.tolerance
    assert f"{part} {getattr(agreement, part):.1e}" in str(agreement)
    other = "decode" if part == "denoise" else "denoise"
    assert getattr(agreement, other) == 0


def test_a_timestep_that_is_ignored_is_seen(source: Source) -> None:
    class Deaf(Eager):
        def denoise(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
            return super().denoise(sample, timestep[:1].expand(len(timestep)), embeddings)

    assert not compare(Deaf(source), source).good
