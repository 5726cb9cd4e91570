"""What stands between a wrong engine and its use."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aimfair.diffusion.engines.agreement import compare
from aimfair.diffusion.engines.engine import Eager, Engine, Source
from aimfair.diffusion.text_to_image import engine_and_source
from aimfair.generation.settings import GenerateSettings

PARTS = {"denoiser", "decoder"}


@pytest.fixture(scope="module")
def source(model: Path) -> Source:
    return engine_and_source(model, GenerateSettings(engine="eager"), torch.device("cpu"))[1]


class Wrong(Eager):
    """Eager with a change of one part's result."""

    def __init__(self, source: Source, part: str, change: Callable[[Tensor], Tensor]):
        super().__init__(source)
        self._wrong, self._change = part, change

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, *others = super().run(part, inputs)
        return (self._change(first) if part == self._wrong else first, *others)


def one_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(result: Tensor) -> Tensor:
        result[(1, *(0,) * (result.ndim - 1))] += value
        return result

    return change


def test_eager_agrees_with_itself(source: Source) -> None:
    engine: Engine = Eager(source)
    agreement = compare(engine, source)
    assert set(agreement.differences) == {part.name for part in source.parts} >= PARTS
    assert set(agreement.differences.values()) == {0.0}
    assert agreement.good


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize("value", [0.1, torch.nan, torch.inf])
def test_one_wrong_value_is_seen(source: Source, part: str, value: float) -> None:
    agreement = compare(Wrong(source, part, one_value(value)), source)
    assert not agreement.good
    assert agreement.differences[part] > agreement.tolerance
    assert f"{part} {agreement.differences[part]:.1e}" in str(agreement)
    assert {name for name, difference in agreement.differences.items() if difference} == {part}


def test_nothing_compared_is_no_agreement(source: Source) -> None:
    nothing = replace(source, parts=())
    assert not compare(Eager(nothing), nothing).good


@pytest.mark.parametrize("name", ["timestep", "embeddings"])
def test_an_input_of_which_only_the_first_image_s_counts_is_seen(source: Source, name: str) -> None:
    class Deaf(Eager):
        def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            if part == "denoiser":
                place = list(source.parts[0].inputs).index(name)
                inputs = list(inputs)
                inputs[place] = inputs[place][:1].expand_as(inputs[place])
            return super().run(part, inputs)

    assert not compare(Deaf(source), source).good
