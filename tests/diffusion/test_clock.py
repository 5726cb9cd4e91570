"""Where the time of sampling goes."""

import time
from pathlib import Path

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.clock import PARTS, Clock
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings

CPU = torch.device("cpu")


def test_a_part_within_another_is_counted_once() -> None:
    clock = Clock(CPU)
    with clock.measure("scheduler"):
        time.sleep(0.01)
        clock.begin("denoiser")
        time.sleep(0.05)
        clock.end()
    assert clock.seconds["denoiser"] >= 0.05
    assert 0.01 <= clock.seconds["scheduler"] < 0.05


def test_a_part_that_fails_is_forgotten_with_those_inside() -> None:
    clock = Clock(CPU)

    def fail() -> None:
        with clock.measure("scheduler"):
            clock.begin("denoiser")
            raise AimfairError("no memory")

    with clock.measure("decoder"), pytest.raises(AimfairError):
        fail()
    assert set(clock.seconds) == {"decoder"}


def test_the_parts_of_sampling_are_its_time(model: Path) -> None:
    settings = GenerateSettings(engine="eager", steps=4)
    diffusion = Diffusion(model, settings, CPU)
    begin = time.perf_counter()
    for _ in range(2):
        diffusion.sample(["one", "two"], [1, 2])
    took = time.perf_counter() - begin
    assert set(diffusion.seconds) == set(PARTS)
    assert all(seconds > 0 for seconds in diffusion.seconds.values())
    assert 0.8 * took < sum(diffusion.seconds.values()) <= took
