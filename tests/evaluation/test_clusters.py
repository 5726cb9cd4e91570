"""The bootstrap draws the images of a cluster together."""

import numpy as np

from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet
from aimfair.evaluation.over_seeds import Grouping

N = 80


def replicates(ids: tuple[str, ...], clusters: tuple[str, ...] = ()) -> np.ndarray:
    target, protected = np.arange(N) % 2, np.arange(N) // 2 % 2
    test = ImageSet(np.zeros((N, 8, 8, 3), np.uint8), target, protected, ids, clusters=clusters)
    predicted = [np.where(np.arange(N) // 8 % 2 == 0, target, 1 - target)]  # right or wrong for eight in a row
    grouping = Grouping(
        target, protected, (2, 2), {"biased": predicted}, clusters=test.clusters, confidence=0.95, replicates=200,
        generator=generator("test"),
    )  # fmt: skip
    return grouping.replicates["biased"]["accuracy"]


def test_clusters_are_drawn_and_not_images() -> None:
    files = tuple(f"{number}.png" for number in range(N))
    patients = tuple(f"p{number // 8}" for number in range(N))
    alone, together = replicates(files), replicates(files, patients)
    assert together.std() > 2 * alone.std()  # ten patients know less than eighty
    np.testing.assert_array_equal(together, replicates(patients))
