"""Training, sensitivity and prediction by several processes are those of one: to the bit, or but for rounding."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.ranks import Ranks
from aimfair.data.settings import AugmentSettings
from aimfair.methods.group_dro import GroupWeights
from aimfair.selective.mask import ParameterMask
from aimfair.training import shared_batchnorm
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.execution import prepare
from aimfair.training.feed import Feed, Normalize
from aimfair.training.predict import predict_logits
from aimfair.training.processes import Processes
from aimfair.training.samplers import groups_of
from aimfair.training.sensitivity import measure_sensitivity
from aimfair.training.settings import DistributedSettings, OptimizerSettings, SensitivitySettings
from tests.base.together import in_threads
from tests.selective import processes
from tests.training.samples import MODEL, TRAIN, VALIDATION, ActAfter, Net, images, state_bits, training

CPU = torch.device("cpu")
SETTINGS = OptimizerSettings(
    optimizer="sgd", lr=0.02, epochs=2, batch_size=9, augment=AugmentSettings(flip=True, shift=2)
)
"""42 images in batches of 9 and 8: shares differ in size. AdamW would turn the gradient of a bias before
BatchNorm, which is rounding alone, into steps of lr."""
IN_BACKWARD = SETTINGS.model_copy(update={"step_in_backward": True})


class Plain(Net):
    """Without dropout, whose numbers depend on the number of processes."""

    def __init__(self, *, unused: bool = False):
        super().__init__()
        self.dropout = nn.Identity()
        if unused:
            self.unused = nn.Parameter(torch.ones(2, 3))


# -- in threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_each_process_gets_its_share_of_the_same_images(size: int) -> None:
    plan = [(np.arange(start, start + 7), start) for start in (3, 20)]
    normalize = Normalize(MODEL, CPU)
    augment = AugmentSettings(flip=True, shift=3)

    def made(ranks: Ranks | None = None) -> list[Tensor]:
        with Feed(TRAIN.images, augment, normalize, threads=1, **({} if ranks is None else {"ranks": ranks})) as feed:
            batches = feed.batches([(indices, np.random.default_rng(seed)) for indices, seed in plan])
            return [batch.clone() for batch in batches]

    whole = made()

    def body(here: Ranks) -> None:
        for part, batch in zip(made(here), whole, strict=True):
            assert torch.equal(part, batch[here.share(7)])

    assert in_threads(body, size) == [None] * size


@pytest.mark.parametrize("batch_size", [3, 7, 50])
def test_predictions_have_the_bits_of_one_process(batch_size: int) -> None:
    model, normalize = Net(), Normalize(MODEL, CPU)
    prepare(model, MODEL)
    alone = predict_logits(model, TRAIN, normalize, batch_size)

    def body(here: Ranks) -> None:
        task = ActAfter(0, lambda: None)
        scores = predict_logits(copy.deepcopy(model), TRAIN, normalize, batch_size, ranks=here, task=task)
        assert torch.equal(scores, alone)
        if here.leads:
            assert task.done == len(TRAIN)

    assert in_threads(body, 3) == [None] * 3


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_over_processes_is_that_of_the_whole_batch(momentum: float | None, affine: bool) -> None:
    x, grad = torch.randn(7, 4, 3, 3) + 3, torch.randn(7, 4, 3, 3)
    whole = nn.BatchNorm2d(4, momentum=momentum, affine=affine)
    if affine:
        nn.init.uniform_(whole.weight)
    norms = [copy.deepcopy(whole) for _ in range(3)]
    own = x.clone().requires_grad_()
    expected = whole(own)
    expected.backward(grad)
    of_weight = []

    def body(here: Ranks) -> None:
        norm, share = norms[here.rank], here.share(7)
        part = x[share].clone().requires_grad_()
        with shared_batchnorm.synchronised(norm, here):
            y = norm(part)
            y.backward(grad[share])
            torch.testing.assert_close(y, expected[share], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(part.grad, own.grad[share], atol=1e-5, rtol=1e-5)
            norm.eval()
            norm(part)
        if affine:
            of_weight.append(torch.stack([norm.weight.grad, norm.bias.grad]))

    assert in_threads(body, 3) == [None] * 3
    for norm in norms:
        assert "forward" not in norm.__dict__
        torch.testing.assert_close(norm.state_dict(), whole.state_dict())
    if affine:
        torch.testing.assert_close(torch.stack(of_weight).sum(0), torch.stack([whole.weight.grad, whole.bias.grad]))


def test_a_signal_to_one_process_is_one_to_all() -> None:
    def body(here: Ranks) -> None:
        interrupt = Interrupt()
        if here.rank == 1:
            interrupt.request(15)
        assert Processes(here).agreed(interrupt)[0].signal == 15
        assert not Processes(here).agreed(Interrupt())[0].requested
        assert Processes(here).agreed(Interrupt(), due=here.leads)[1]

    assert in_threads(body) == [None, None]


def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    few = Processes(Ranks(0, 8, dist.HashStore()))
    with pytest.raises(AimfairError, match="8 processes share batches of 7 images, expected one for each at least"):
        training(Net(), OptimizerSettings(epochs=1, batch_size=7), processes=few)


# -- in processes -----------------------------------------------------------------------------------------------------


def close(model: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(model.state_dict(), other.state_dict(), atol=2e-5, rtol=2e-4)


def digest_of(model: nn.Module) -> str:
    return hashlib.sha256(str(state_bits(model)).encode()).hexdigest()


def together(rank: int, directory: Path, **settings: object) -> Processes:
    size = dist.get_world_size()
    store = dist.PrefixStore(str(settings), dist.FileStore(str(directory / f"job-{size}"), size))
    return Processes(Ranks(rank, size, store), DistributedSettings.model_validate(settings))


def check_training(both: Processes) -> None:
    mask = ParameterMask.random(Plain(), 0.5, seed=3)
    objective = {"objective": None}
    for unused, options in ((False, {}), (True, {}), (False, {"mask": mask}), (False, {"batchnorm": "freeze"})):
        models = [Plain(unused=unused) for _ in range(2)]
        ends = [
            training(model, SETTINGS, **objective, **options, **more).fit()
            for model, more in zip(models, ({}, {"processes": both}), strict=True)
        ]
        close(*models)
        stepped = Plain(unused=unused)
        training(stepped, IN_BACKWARD, **objective, **options, processes=both).fit()
        assert state_bits(stepped) == state_bits(models[1])
        assert ends[0].epochs[-1].train_accuracy == ends[1].epochs[-1].train_accuracy
        assert ends[0].epochs[-1].train_loss == pytest.approx(ends[1].epochs[-1].train_loss, rel=1e-4)
        both.ranks.require_same({"weights": digest_of(models[1])}, "")
        assert all(parameter.grad is None for parameter in models[1].parameters())


def check_objective(both: Processes) -> None:
    def trained(**more: object) -> tuple[nn.Module, list[float]]:
        model, objective = Plain(), GroupWeights(groups_of(TRAIN), 0.1, 0.5, CPU)
        training(model, SETTINGS, objective=objective, **more).fit()
        return model, objective.q

    (alone, q), (model, shared_q) = trained(), trained(processes=both)
    close(model, alone)
    assert shared_q == pytest.approx(q, rel=1e-4)


def check_local_batchnorm(rank: int, directory: Path) -> None:
    local = together(rank, directory, batchnorm="local")
    model, alone = Plain(), Plain()
    training(model, SETTINGS, processes=local).fit()
    training(alone, SETTINGS).fit()
    local.ranks.require_same({"weights": digest_of(model)}, "")
    assert not torch.allclose(model.norm.running_mean, alone.norm.running_mean, rtol=1e-4)


def check_sensitivity(both: Processes) -> None:
    sources = {
        name: images(40, seed) for seed, name in enumerate(("real_biased", "synthetic_biased", "synthetic_fair"))
    }
    settings = SensitivitySettings(batch_size=8, train_mode=True)
    model = Net()
    alone = measure_sensitivity(model, sources, settings, MODEL, seed=1)
    shared = measure_sensitivity(model, sources, settings, MODEL, seed=1, processes=both)
    assert shared.batches == alone.batches
    for source in sources:
        torch.testing.assert_close(shared.mean(source), alone.mean(source))
        torch.testing.assert_close(shared.mean_square(source), alone.mean_square(source))
    model.head.weight.data[0, 0] = float("inf")
    with pytest.raises(AimfairError, match="sensitivity: NaN or infinite gradients in source 'real_biased'"):
        measure_sensitivity(model, sources, settings, MODEL, seed=1, processes=both)


def check_interruption(both: Processes, directory: Path) -> None:
    """With dropout: the same number of processes continues to the same bits, another one to the same but for that."""
    whole, cut = Net(), Net()
    training(whole, SETTINGS, processes=both).fit()
    interrupt = Interrupt()
    task = ActAfter(7, lambda: interrupt.request(2) if not both.ranks.leads else None)
    checkpoint = Checkpoint(directory / "model", 1000.0)
    options = {"processes": both, "checkpoint": checkpoint}
    with pytest.raises(Interrupted):
        training(cut, SETTINGS, task=task, interrupt=interrupt, **options).fit()
    both.ranks.meet()
    model = Net()
    task = ActAfter(10**9, lambda: None)
    training(model, SETTINGS, task=task, **options).fit()
    assert task.done == 10
    assert state_bits(model) == state_bits(whole)
    if both.ranks.leads:
        training(Net(), SETTINGS, checkpoint=checkpoint, task=(task := ActAfter(10**9, lambda: None))).fit()
        assert task.done == 10
        checkpoint.remove()
    both.ranks.meet()


def check_differences(both: Processes) -> None:
    other = images(42, 1 + both.ranks.rank, bias=0.7)
    from aimfair.training.loop import Training

    with pytest.raises(AimfairError, match="process 0 and process 1 differ in settings, labels or initial weights: "):
        Training(Net(), other, VALIDATION, SETTINGS, MODEL, 1, processes=both).fit()


def check_all(rank: int, directory: Path) -> None:
    both = together(rank, directory)
    check_training(both)
    check_objective(both)
    check_local_batchnorm(rank, directory)
    check_sensitivity(both)
    check_interruption(both, directory)
    check_differences(both)


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    processes.run(check_all, tmp_path)
