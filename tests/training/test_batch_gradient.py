"""The gradient of a batch, also where it does not fit into memory."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.training.batch_gradient import BatchGradient
from aimfair.training.feed import Normalize
from tests.training.samples import MODEL, TRAIN, Net, SmallMemory, state_bits

CPU = torch.device("cpu")


@pytest.fixture
def batch():
    return Normalize(MODEL, CPU)(TRAIN.images[:11]), torch.from_numpy(TRAIN.target[:11])


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_images_are_normalised_by_channel_and_kept_as_they_are():
    stored = TRAIN.images[:5]
    stored.setflags(write=False)  # as a memory map is
    expected = (stored.astype(np.float64) / 255 - MODEL.mean) / MODEL.std
    x = Normalize(MODEL, CPU)(stored)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-6)


def test_it_is_that_of_the_mean_loss(batch):
    x, y = batch
    model = Net().eval()
    result = BatchGradient(model, 11)(x, y, 0)
    found = gradients(model)
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    torch.testing.assert_close(found, gradients(model))
    assert result.loss == pytest.approx(11 * loss.item(), rel=1e-6)
    assert result.correct == (model(x).argmax(1) == y).sum()
    assert result.is_finite


@pytest.mark.parametrize(("most", "tried"), [(11, [11]), (6, [11, 5, 6]), (5, [11, 5, 6, 2, 3, 3, 3]), (1, None)])
def test_parts_of_a_batch_add_up_to_the_whole(batch, most, tried):
    x, y = batch
    whole, parts = Net(batchnorm=False).eval(), Net(batchnorm=False).eval()
    expected = BatchGradient(whole, 11)(x, y, 0)
    small = SmallMemory(parts, most)
    result = BatchGradient(small, 11)(x, y, 0)
    torch.testing.assert_close(gradients(parts), gradients(whole))
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.correct == expected.correct
    assert tried is None or small.sizes == tried


def test_the_smaller_size_is_kept(batch):
    small = SmallMemory(Net().eval(), 3)
    gradient = BatchGradient(small, 11)
    gradient(*batch, 0)
    small.sizes.clear()
    gradient(*batch, 0)
    assert max(small.sizes) == 3


def test_attempts_that_failed_leave_no_trace_in_running_statistics(batch):
    small = SmallMemory(Net().train(), 6)
    BatchGradient(small, 11)(*batch, 0)
    assert small.model.norm.num_batches_tracked == 2


def test_one_image_that_does_not_fit_is_an_error(batch):
    with pytest.raises(AimfairError, match="out of memory with a single image"):
        BatchGradient(SmallMemory(Net(), 0), 4)(*batch, 0)


def test_dropout_is_a_function_of_the_seed(batch):
    model = Net().train()
    gradient = BatchGradient(model, 11)
    losses = [gradient(*batch, seed).loss for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_undo_takes_everything_back(batch):
    model = Net().train()
    before = state_bits(model)
    gradient = BatchGradient(model, 11)
    gradient(*batch, 0)
    assert state_bits(model) != before
    gradient.undo()
    assert state_bits(model) == before
    assert all(grad is None for grad in gradients(model).values())


@pytest.mark.parametrize("name", ["head.weight", "norm.bias"])
def test_gradients_that_are_not_finite_are_named(batch, name):
    model = Net().train()
    parameter = dict(model.named_parameters())[name]
    parameter.register_hook(lambda grad: torch.full_like(grad, float("inf")))
    gradient = BatchGradient(model, 11)
    assert not gradient(*batch, 0).is_finite
    assert gradient.not_finite() == f"the gradient of {name}"


def test_a_loss_that_is_not_finite_is_found_where_gradients_are(batch):
    class Infinite(Net):
        def forward(self, x):
            return super().forward(x) + torch.tensor([0.0, float("-inf")])

    gradient = BatchGradient(Infinite().eval(), 11)
    result = gradient(*batch, 0)
    assert result.loss == float("inf")
    assert not result.is_finite
    assert gradient.not_finite() == "the loss"


def test_frozen_parameters_take_no_part(batch):
    model = Net().train()
    model.convolution.requires_grad_(False)
    assert BatchGradient(model, 11)(*batch, 0).is_finite
    assert model.convolution.weight.grad is None
    assert model.head.weight.grad is not None
