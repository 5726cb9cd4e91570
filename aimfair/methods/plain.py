"""Controls: the biased model's own training, on other images or with them in other numbers. None reads group labels
of real images but ``balanced_resampling``."""

from aimfair.data.union import union
from aimfair.methods.work import Trained, Work
from aimfair.training.samplers import EqualGroups


def erm(work: Work) -> Trained:
    """Empirical risk minimisation: the biased training once more, with the method's own lr, epochs and weight decay."""
    return work.fit(work.training(work.initial(), work.splits().train))


def synthetic_only(work: Work) -> Trained:
    """On the balanced synthetic images alone."""
    return work.fit(work.training(work.initial(), work.balanced()))


def real_and_synthetic(work: Work) -> Trained:
    """On the biased real and the balanced synthetic images together."""
    images = union(work.splits().train, work.balanced())
    return work.fit(work.training(work.initial(), images))


def balanced_resampling(work: Work) -> Trained:
    """On the biased real images, every group equally often (arXiv 2110.14503)."""
    train = work.splits().train
    return work.fit(work.training(work.initial(), train, sampler=EqualGroups(work.groups(train)[0])))
