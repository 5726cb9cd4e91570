"""Weighted losses: the gradient they give, GroupDRO's weights, and that a training with them resumes."""

import os
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.methods.group_dro import GroupWeights
from aimfair.training.batch_gradient import BatchGradient
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.loop import Training
from aimfair.training.samplers import EqualGroups, groups_of
from aimfair.training.settings import OptimizerSettings
from tests.training.samples import (
    MODEL,
    TRAIN,
    VALIDATION,
    ActAfter,
    Net,
    SmallMemory,
    state_bits,
    without_seconds,
)

CPU = torch.device("cpu")
X = torch.randn(11, 3, 16, 16, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0])
SETTINGS = OptimizerSettings(lr=0.01, epochs=2, batch_size=14)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# -- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [99, 4])
def test_it_is_that_of_the_weighted_sum(most):
    """Also where memory cuts the batch: weights then need the losses of the whole first."""
    seen = []

    def weigh(losses):
        seen.append(losses)
        return losses.softmax(0)

    model = Net(batchnorm=False).train()
    model.dropout.p = 0.0
    small = SmallMemory(model, most)
    result = BatchGradient(small, 11)(X, Y, 7, weigh)
    found = gradients(small)
    model.zero_grad()
    losses = F.cross_entropy(model(X), Y, reduction="none")
    (losses.detach().softmax(0) * losses).sum().backward()
    for name, p in small.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen[-1], losses.detach())
    assert len(seen) == 1
    assert result.is_finite
    assert result.loss == pytest.approx(losses.sum().item(), rel=1e-5)


def test_equal_weights_give_the_mean():
    found = []
    for weigh in (None, lambda losses: torch.full_like(losses, 1 / len(losses))):
        model = Net().train()
        BatchGradient(model, 11)(X, Y, 7, weigh)
        found.append(gradients(model))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_the_first_look_at_a_batch_in_parts_leaves_no_trace():
    """Dropout and running statistics are those of one pass over the parts."""
    seen, states = [], []
    for weigh in (None, lambda losses: seen.append(losses) or torch.full_like(losses, 1 / len(losses))):
        small = SmallMemory(Net().train(), 4)
        gradient = BatchGradient(small, 4)
        result = gradient(X, Y, 7, weigh)
        states.append((result.loss, result.correct, {name: b.clone() for name, b in small.named_buffers()}))
    assert states[0][0] == pytest.approx(states[1][0])
    assert states[0][1] == states[1][1]
    assert all(torch.equal(states[0][2][name], states[1][2][name]) for name in states[0][2])
    assert seen[0].sum().item() == pytest.approx(states[0][0])


# -- GroupDRO ---------------------------------------------------------------------------------------------------------


def by_the_book(groups, batches, step_size, adjustment):
    """Algorithm 1 of arXiv 1911.08731 as it is written: weights after each batch of (indices, losses)."""
    count = groups.max() + 1
    q = np.full(count, 1 / count)
    history = []
    for indices, losses in batches:
        for group in range(count):
            of_group = losses[groups[indices] == group]
            if len(of_group):
                q[group] *= np.exp(
                    step_size * (of_group.mean() + adjustment / np.sqrt((groups == group).sum()))
                )  # fmt: skip
        q /= q.sum()
        history.append(q.copy())
    return history


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_weights_follow_algorithm_1(adjustment):
    random = np.random.default_rng(1)
    groups = np.array([0] * 20 + [1] * 3 + [2] * 9)
    batches = [
        (random.permutation(32)[:6], random.exponential(size=6)) for _ in range(10)
    ]  # fmt: skip
    assert any(len(set(groups[indices])) < 3 for indices, _ in batches), "some batch must lack a group"
    objective = GroupWeights(groups, 0.3, adjustment, CPU)
    assert objective.q == pytest.approx([1 / 3] * 3)
    for (indices, losses), q in zip(batches, by_the_book(groups, batches, 0.3, adjustment), strict=True):
        weights = objective.weights(torch.tensor(losses, dtype=torch.float32), indices)
        objective.accept()
        assert objective.q == pytest.approx(q.tolist(), rel=1e-5)
        of_images = groups[indices]
        expected = [q[group] / (of_images == group).sum() for group in of_images]
        assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_move_only_with_steps_that_are_taken():
    objective = GroupWeights(np.array([0, 1]), 1.0, 0.0, CPU)
    objective.weights(torch.tensor([3.0, 0.0]), np.array([0, 1]))
    objective.weights(torch.tensor([float("nan"), 1.0]), np.array([0, 1]))
    assert objective.q == pytest.approx([0.5, 0.5])
    objective.weights(torch.tensor([1.0, 0.0]), np.array([0, 1]))
    objective.accept()
    assert objective.q == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])
    other = GroupWeights(np.array([0, 1]), 1.0, 0.0, CPU)
    other.restore(objective.state())
    assert other.q == objective.q


def trained(task=None, checkpoint=None, interrupt=None, model=None):
    model = model or Net()
    groups = groups_of(TRAIN)
    objective = GroupWeights(groups, 0.5, 0.0, CPU)
    options = {"checkpoint": checkpoint, "sampler": EqualGroups(groups), "objective": objective}
    options |= {"interrupt": interrupt} if interrupt else {}
    options |= {"task": task} if task else {}
    training = Training(model, TRAIN, VALIDATION, SETTINGS, MODEL, 100, **options)
    history = training.fit()
    return state_bits(model), without_seconds(history), objective.q


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_training_goes_on_to_the_same_bits(tmp_path, step):
    whole = trained()
    assert max(whole[2]) > 0.26, "weights must have moved"
    stop = ActAfter(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with Interrupt() as interrupt, pytest.raises(Interrupted):
        trained(stop, Checkpoint(tmp_path, 1e9), interrupt)
    assert trained(checkpoint=Checkpoint(tmp_path, 1e9)) == whole


def test_a_skipped_step_moves_no_weight(tmp_path):
    class Failing(Net):
        count = 0

        def forward(self, x):
            self.count += self.training
            return super().forward(x * float("nan") if self.training and self.count == 2 else x)

    model, groups, states = Failing(), groups_of(TRAIN), []
    objective = GroupWeights(groups, 0.5, 0.0, CPU)
    task = ActAfter(10**9, lambda: None)
    task.advance = lambda *_, **__: states.append(objective.state())
    with pytest.warns(UserWarning, match="skipped"):
        Training(
            model, TRAIN, VALIDATION, SETTINGS, MODEL, 100,
            sampler=EqualGroups(groups), objective=objective, task=task,
        ).fit()  # fmt: skip
    assert states[1] == states[0] != states[2]


def test_another_sampler_or_objective_is_another_training():
    def identity(sampler, objective):
        model = Net()
        return Training(model, TRAIN, VALIDATION, SETTINGS, MODEL, 100, sampler=sampler, objective=objective).identity()

    groups = groups_of(TRAIN)
    found = {
        identity(None, None),
        identity(EqualGroups(groups), None),
        identity(EqualGroups(np.zeros_like(groups)), None),
        identity(None, GroupWeights(groups, 0.1, 0.0, CPU)),
        identity(None, GroupWeights(groups, 0.2, 0.0, CPU)),
        identity(None, GroupWeights(groups, 0.1, 1.0, CPU)),
    }
    assert len(found) == 6
    assert identity(None, None) in found
