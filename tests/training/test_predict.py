"""Predictions."""

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.data.images import ImageSet
from aimfair.training.feed import Normalize
from aimfair.training.predict import predict, predict_logits
from tests.training.samples import MODEL, VALIDATION, ActAfter, Net, SmallMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_they_are_the_logits_in_the_order_of_the_images(batch_size):
    model = Net().train()
    predicted = predict(model, VALIDATION, MODEL, batch_size=batch_size, device=CPU)
    with torch.no_grad():
        expected = model.eval()(Normalize(MODEL, CPU)(VALIDATION.images)).numpy()
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    assert len(set(predicted.argmax(axis=1).tolist())) == 2


def test_a_read_only_memory_map_will_do(tmp_path):
    np.save(tmp_path / "images.npy", VALIDATION.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    stored = ImageSet(mapped, VALIDATION.target, VALIDATION.protected, VALIDATION.ids)
    ways = [predict(Net(), images, MODEL, batch_size=8, device=CPU).tolist() for images in (stored, VALIDATION)]
    assert ways[0] == ways[1]


def test_the_batch_is_halved_when_memory_runs_out():
    small, task = SmallMemory(Net(), 3), ActAfter(10**9, lambda: None)
    predicted = predict(small, VALIDATION, MODEL, batch_size=16, device=CPU, task=task)
    expected = predict(Net(), VALIDATION, MODEL, batch_size=16, device=CPU)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    assert small.sizes[:4] == [16, 8, 4, 2]
    assert set(small.sizes[4:]) == {2}
    assert task.done == len(VALIDATION)


def test_logits_that_are_not_finite_are_refused():
    model = Net()
    model.head.bias.data[1] = float("nan")
    with pytest.raises(AimfairError, match="NaN or infinite logits for 20 of 20 images"):
        predict_logits(model, VALIDATION, Normalize(MODEL, CPU), 8)


def test_it_can_be_stopped():
    import os
    import signal

    task = ActAfter(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with Interrupt() as interrupt, pytest.raises(Interrupted):
        predict(Net(), VALIDATION, MODEL, batch_size=4, device=CPU, task=task, interrupt=interrupt)
    assert task.done == 4
