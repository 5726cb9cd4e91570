"""Batches and learning rates as functions of the position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfair.training.optimizer import learning_rate
from aimfair.training.samplers import epoch_batches, steps_per_epoch
from aimfair.training.settings import OptimizerSettings


@given(st.integers(2, 400), st.integers(1, 150))
def test_an_epoch_is_cut_into_batches_of_even_size(images, batch_size):
    batches = epoch_batches(np.arange(images)[::-1], batch_size)
    sizes = [len(batch) for batch in batches]
    assert np.concatenate(batches).tolist() == list(range(images))[::-1]
    assert len(batches) == steps_per_epoch(images, batch_size)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= (batch_size if batch_size != 2 else 3)
    assert min(sizes) >= 2 or batch_size == 1


def test_constant():
    settings = OptimizerSettings(lr=0.1, epochs=3)
    assert {learning_rate(settings, epoch, step, 4) for epoch in (1, 2, 3) for step in range(4)} == {0.1}


def test_step_divides_by_ten_as_the_paper_does_after_epoch_ten():
    settings = OptimizerSettings(lr=0.01, epochs=15, schedule="step", step_epochs=10)
    rates = [learning_rate(settings, epoch, 0, 4) for epoch in range(1, 16)]
    assert rates == pytest.approx([0.01] * 10 + [0.001] * 5)


def test_cosine_falls_from_lr_towards_zero():
    settings = OptimizerSettings(lr=0.1, epochs=2, schedule="cosine")
    rates = [learning_rate(settings, epoch, step, 5) for epoch in (1, 2) for step in range(5)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * done / 10)) for done in range(10)])
    assert rates[0] == 0.1
    assert 0 < rates[-1] < 0.003
