"""Samplers and batches: the images of an epoch are a function of seed and epoch, so that a training can resume."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet

Indices = npt.NDArray[np.int64]


class Sampler(Protocol):
    """Chooses the images of an epoch."""

    @property
    def images(self) -> int:
        """Images of an epoch, with repetitions."""

    @property
    def depends_on(self) -> object:
        """What the order depends on besides seed and epoch, as a JSON value."""

    def order(self, seed: int, epoch: int) -> Indices:
        """int64 [images]: indices into the training images, in order."""


@dataclass(frozen=True)
class EveryImage:
    """Each of ``images`` images once."""

    images: int

    @property
    def depends_on(self) -> object:
        return self.images

    def order(self, seed: int, epoch: int) -> Indices:
        return generator(seed, "order", epoch).permutation(self.images)


@dataclass(frozen=True)
class EqualGroups:
    """Every group equally often, in an epoch of as many images as there are (or up to G - 1 fewer).

    Each epoch draws a new subset of a large group; an image of a small one repeats only after all of its group have
    occurred as often (group-balanced sampling as in arXiv 2110.14503, without replacement).

    Attributes:
        groups: int64 [N], the group of each image, numbered from 0 without gaps.
    """

    groups: Indices

    @property
    def _of_each(self) -> int:
        return max(len(self.groups) // self._count, 1)

    @property
    def _count(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def images(self) -> int:
        return self._of_each * self._count

    @property
    def depends_on(self) -> object:
        return self.groups.tolist()

    def order(self, seed: int, epoch: int) -> Indices:
        random = generator(seed, "equal groups", epoch)
        chosen = []
        for group in range(self._count):
            members = np.flatnonzero(self.groups == group)
            times, rest = divmod(self._of_each, len(members))
            chosen += [np.tile(members, times), random.permutation(members)[:rest]]
        return random.permutation(np.concatenate(chosen))


@dataclass(frozen=True)
class Repeated:
    """Each image as often as ``times`` says, int64 [N]."""

    times: Indices

    @property
    def images(self) -> int:
        return int(self.times.sum())

    @property
    def depends_on(self) -> object:
        return self.times.tolist()

    def order(self, seed: int, epoch: int) -> Indices:
        return generator(seed, "repeated", epoch).permutation(np.repeat(np.arange(len(self.times)), self.times))


def groups_of(images: ImageSet) -> Indices:
    """int64 [N]: the group (y, a) of each image, of those that are present, numbered by y and then by a."""
    pairs = np.stack([images.target, images.protected], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of one epoch: as few as hold all images, none of one image unless ``batch_size`` is 1, as BatchNorm
    cannot be trained on one value per channel."""
    steps = -(-images // batch_size)
    return min(steps, max(images // 2, 1)) if batch_size > 1 else steps


def epoch_batches(order: Indices, batch_size: int) -> list[Indices]:
    """Splits the images of an epoch into batches, in order.

    Sizes differ by at most one, so that no small last batch weighs as much as the others; they are at most
    ``batch_size`` (3 for ``batch_size`` 2 and an odd number of images).
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))
