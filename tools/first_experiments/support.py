"""How well synthetic features cover real ones, and how diverse features are.

Features are float64 [N, D], one row for each image.
"""

import numpy as np

from tools.premise_study.analysis import Values


def density_and_coverage(real: Values, synthetic: Values, k: int) -> tuple[float, float]:
    """Of Naeem et al. 2020 (arXiv 2002.09797). A real image's ball reaches up to its k-th nearest real neighbour.

    Returns:
        density: mean number of balls around a synthetic image, over k; near 1 where both are alike.
        coverage: share of the balls that hold a synthetic image.
    """
    if len(real) <= k:
        raise ValueError(f"{len(real)} real images, expected more than k = {k}")
    radius = np.sort(distances(real, real), axis=1)[:, k]  # the first is the image itself
    inside = distances(real, synthetic) < radius[:, None]
    return float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean())


def expected_coverage(real: int, synthetic: int, k: int) -> float:
    """Of so many images of one and the same distribution, independently drawn (Naeem et al. 2020, appendix)."""
    i = np.arange(k)
    return float(1 - np.prod((real - 1 - i) / (real + synthetic - 1 - i)))


def vendi_score(features: Values) -> float:
    """Friedman and Dieng 2022 (arXiv 2210.02410), with cosine similarity: the effective number of different images."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.svd(unit, compute_uv=False) ** 2 / len(unit)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_distance(features: Values) -> float:
    """Between two different images."""
    count = len(features)
    return float(distances(features, features).sum() / (count * (count - 1)))


def distances(one: Values, other: Values) -> Values:
    """Euclidean, [N, M]."""
    return np.asarray(np.linalg.norm(one[:, None] - other[None], axis=2))
