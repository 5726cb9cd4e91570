"""The balanced synthetic images that judge trials, apart from those that train them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import ImageRecord


@dataclass(frozen=True)
class HoldOut:
    """Files of the synthetic images that may train, in either set, and of the balanced ones that judge."""

    train: frozenset[str]
    judge: frozenset[str]

    def training_part(self, images: ImageSet) -> ImageSet:
        """Of a set of the manifest, whose ids are its files."""
        return _part(images, self.train)

    def judging_part(self, images: ImageSet) -> ImageSet:
        return _part(images, self.judge)


def hold_out(records: Sequence[ImageRecord], share: float) -> HoldOut:
    """Splits the images by group, and within a group by prompt: images of one prompt resemble each other.

    Prompts are held out in a random order, always the same for the same prompts, until the share is reached; images of
    held-out prompts in the biased set are used for nothing. Images without a prompt, which were imported, are split one
    by one, equal ones together. Pairs are not torn apart: the same prompts are held out for each protected value.

    Raises:
        AimfairError: a group whose balanced images have a single prompt, or are a single one.
    """
    groups: dict[tuple[int, int], dict[str, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.group][record.prompt or record.digest].append(record)
    paired = any(record.pair is not None for record in records)
    train: set[str] = set()
    judge: set[str] = set()
    for group, clusters in sorted(groups.items()):
        balanced = {name: sum("balanced" in one.sets for one in images) for name, images in clusters.items()}
        names = sorted(name for name, count in balanced.items() if count)
        if paired:
            names.sort(key=len)  # ids begin with numbers: the order of the prompts is the same for each value
        if len(names) < 2:
            raise AimfairError(
                f"tune.held_out: the balanced images of group {group} have {len(names)} prompts, expected at least 2,"
                " to judge by one what another trains; raise prompts.per_group"
            )
        wanted, held = share * sum(balanced.values()), 0
        judging: set[str] = set()
        for index in generator("tune", "held out", *group[: 1 if paired else 2]).permutation(len(names))[:-1]:
            if held >= wanted:
                break
            judging.add(names[index])
            held += balanced[names[index]]
        for name, images in clusters.items():
            if name in judging:
                judge |= {one.file for one in images if "balanced" in one.sets}
            else:
                train |= {one.file for one in images}
    return HoldOut(frozenset(train), frozenset(judge))


def _part(images: ImageSet, files: frozenset[str]) -> ImageSet:
    return images.rows(np.flatnonzero([file in files for file in images.ids]))


def validation_halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Real images for a method that trains on them, and others that judge it: half of the clusters each.

    Clusters are drawn at random; their labels are not read.

    Raises:
        AimfairError: there is a single cluster.
    """
    clusters = np.array(images.clusters)
    names = np.unique(clusters)
    if len(names) < 2:
        raise AimfairError("tune: found 1 validation image or cluster, expected 2 for a method that trains on them")
    order = generator("tune", "validation").permutation(len(names))
    judging = np.isin(clusters, names[order[: len(names) // 2]])
    return images.rows(np.flatnonzero(~judging)), images.rows(np.flatnonzero(judging))
