"""The training loop: what it learns from, what it keeps, and what it does when a step fails."""

import json

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.data.images import ImageSet
from aimfair.data.settings import AugmentSettings
from aimfair.training.history import HISTORY
from aimfair.training.loop import Training
from aimfair.training.predict import predict
from aimfair.training.settings import OptimizerSettings
from tests.training.samples import (
    MODEL,
    TRAIN,
    VALIDATION,
    ActAfter,
    Net,
    SmallMemory,
    images,
    state_bits,
    training,
    without_seconds,
)

SHORT = OptimizerSettings(lr=3e-3, epochs=2, batch_size=16, augment=AugmentSettings(shift=1, flip=True))


def test_it_learns_and_says_how_it_went(tmp_path):
    model = Net()
    settings = OptimizerSettings(lr=0.01, epochs=12, batch_size=16, schedule="cosine")
    task = ActAfter(0, lambda: None)
    whole = training(model, settings, task=task)
    history = whole.fit()
    assert task.done == whole.steps == 36
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 13))
    assert history.epochs[-1].validation_accuracy >= 0.9 > history.epochs[0].train_accuracy
    assert history.epochs[-1].train_loss < 0.5 * history.epochs[0].train_loss
    assert (history.kept_epoch, history.skipped_steps) == (12, 0)
    predicted = predict(model, VALIDATION, MODEL, batch_size=7, device=torch.device("cpu")).argmax(axis=1)
    assert (predicted == VALIDATION.target).mean() == pytest.approx(history.epochs[-1].validation_accuracy)
    assert not model.training
    history.save(tmp_path)
    assert json.loads((tmp_path / HISTORY).read_text())["epochs"][0]["train_loss"] == history.epochs[0].train_loss


def test_the_result_is_a_function_of_the_arguments():
    def result(seed, settings=SHORT):
        model = Net()
        history = training(model, settings, seed).fit()
        return state_bits(model), without_seconds(history)

    torch.manual_seed(1)
    first = result(100)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert result(100) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert result(200)[0] != first[0]


def test_protected_labels_are_never_read():
    def result(train, validation):
        model = Net()
        Training(model, train, validation, SHORT, MODEL, 100).fit()
        return state_bits(model)

    def hidden(whole):
        return ImageSet(whole.images, whole.target, np.full_like(whole.protected, 10**9), whole.ids)

    assert result(hidden(TRAIN), hidden(VALIDATION)) == result(TRAIN, VALIDATION)


@pytest.mark.parametrize("keep", ["last", "best_validation"])
def test_the_weights_that_are_kept(keep):
    def trained(epochs, keep):
        model = Net()
        return model, training(model, OptimizerSettings(lr=0.003, epochs=epochs, batch_size=16, keep=keep)).fit()

    model, history = trained(5, keep)
    accuracies = [epoch.validation_accuracy for epoch in history.epochs]
    best = accuracies.index(max(accuracies)) + 1
    assert 1 < best < 5, "the sample must tell the epochs apart"
    assert history.kept_epoch == (5 if keep == "last" else best)
    shorter, _ = trained(history.kept_epoch, "last")
    assert state_bits(model) == state_bits(shorter)


@pytest.mark.parametrize("batchnorm", ["freeze", "adapt"])
def test_batchnorm(batchnorm):
    model = Net()
    mean, scale = model.norm.running_mean.clone(), model.norm.weight.detach().clone()
    training(model, SHORT, batchnorm=batchnorm).fit()
    assert torch.equal(model.norm.running_mean, mean) == (batchnorm == "freeze")
    assert not torch.equal(model.norm.weight, scale)


def test_learning_rates_follow_the_schedule():
    model, seen = Net(), []
    settings = OptimizerSettings(lr=0.1, epochs=3, batch_size=21, schedule="step", step_epochs=2)
    whole = training(model, settings)
    whole.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    history = whole.fit()
    assert seen == pytest.approx([0.1] * 4 + [0.01] * 2)
    assert [epoch.lr for epoch in history.epochs] == pytest.approx([0.1, 0.1, 0.01])


class Failing(Net):
    """Gives NaN in some of its training steps, running statistics included."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.count = steps, 0

    def forward(self, x):
        if self.training:
            self.count += 1
            if self.count in self.steps:
                x = x * float("nan")
        return super().forward(x)


def test_a_step_without_a_finite_gradient_leaves_no_trace(tmp_path):
    settings = OptimizerSettings(lr=0.01, epochs=1, batch_size=14)
    bad = Failing({2})
    states = []
    task = ActAfter(10**9, lambda: None)
    task.advance = lambda *_, **__: states.append(state_bits(bad))
    log = Log(tmp_path / "log.jsonl")
    history = training(bad, settings, task=task, log=log).fit()
    log.close()
    assert history.skipped_steps == 1
    assert states[1] == states[0]
    assert states[2] != states[1]
    warnings = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert warnings[0]["message"].startswith("epoch 1, step 2 of 3: skipped, the gradient of convolution.weight is NaN")


def test_five_in_a_row_end_the_training(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    settings = OptimizerSettings(lr=0.01, epochs=3, batch_size=7)
    message = r"epoch 3, step 3 of 6: 5 steps in a row gave NaN .* convolution\.weight.* lower lr"
    with pytest.raises(AimfairError, match=message):
        training(Failing({1, 11, 12, 13, 14, 15}), settings, log=log).fit()
    with pytest.raises(AimfairError, match="5 steps in a row"):
        training(Failing(set(range(1, 99))), settings, log=log).fit()
    history = training(Failing({1, 2, 3, 4, 6, 7, 8, 9}), settings, log=log).fit()
    assert history.skipped_steps == 8
    log.close()


def test_an_epoch_without_a_step_is_no_epoch():
    settings = OptimizerSettings(lr=0.01, epochs=3, batch_size=14)
    message = r"epoch 2, step 3 of 3: every step of the epoch gave NaN .* convolution\.weight.* lower lr"
    with pytest.raises(AimfairError, match=message), pytest.warns(UserWarning, match="skipped"):
        training(Failing({4, 5, 6}), settings).fit()


def test_a_diverging_training_is_an_error():
    settings = OptimizerSettings(optimizer="sgd", lr=1e30, epochs=3, batch_size=14)
    with pytest.raises(AimfairError, match="lower lr"), pytest.warns(UserWarning, match="skipped"):
        training(Net(), settings).fit()


def test_out_of_memory_keeps_the_effective_batch():
    settings = OptimizerSettings(lr=0.01, epochs=2, batch_size=21)

    def weights(most):
        small = SmallMemory(Net(batchnorm=False).requires_grad_(True), most)
        small.model.dropout.p = 0.0
        task = ActAfter(10**9, lambda: None)
        training(small, settings, task=task).fit()
        assert task.done == 4
        return small.model.state_dict()

    torch.testing.assert_close(weights(5), weights(99), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("train", "validation"), [(1, 5), (5, 0)])
def test_too_few_images_are_refused(train, validation):
    model = Net()
    with pytest.raises(AimfairError, match=f"{train} training and {validation} validation images"):
        Training(model, images(train), images(validation), SHORT, MODEL, 1)
