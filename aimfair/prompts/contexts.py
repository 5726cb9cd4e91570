"""Contexts of prompts: a few contextual attributes, each with one of its values, all used equally often."""

import itertools
from math import prod

import numpy as np
import numpy.typing as npt

from aimfair.base.seeds import generator

_POOL = 4_000  # contexts among which balanced ones are sought


def count_contexts(values: dict[str, list[str]], size: int) -> int:
    """Number of different contexts of ``size`` attributes; ``values`` names each attribute's."""
    return sum(prod(len(values[name]) for name in chosen) for chosen in itertools.combinations(values, size))


def draw_contexts(values: dict[str, list[str]], size: int, count: int, seed: int) -> list[dict[str, str]]:
    """``count`` different contexts of ``size`` attributes, in the order that the attributes have in ``values``.

    Each context is the one whose attributes and values were used least so far, chance deciding between equals: every
    beginning of the list is balanced too.

    Raises:
        ValueError: there are fewer contexts than ``count``.
    """
    names = list(values)
    sizes = np.array([len(values[name]) for name in names], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)  # where an attribute's values begin among all
    pool = _pool(sizes, size, count, generator(seed, "contexts"))
    if len(pool) < count:
        raise ValueError(f"{count} contexts wanted, there are {len(pool)}")
    # What taking a context adds to the use of each: one for every attribute that it shares, and for every value that
    # attribute's number of values, since a value's fair share of use is its attribute's divided by that number.
    values_of_pool = first[pool[:, :, 0]] + pool[:, :, 1]
    shares_attribute = np.zeros((len(names), len(pool)), dtype=np.float32)
    shares_value = np.zeros((first[-1], len(pool)), dtype=np.float32)
    columns = np.arange(len(pool))[:, None]
    shares_attribute[pool[:, :, 0], columns] = 1
    shares_value[values_of_pool, columns] = sizes[pool[:, :, 0]]
    use = np.zeros(len(pool), dtype=np.float32)  # whole numbers, so exact
    drawn = []
    for _ in range(count):
        best = int(np.argmin(use))
        for (k, _), value in zip(pool[best], values_of_pool[best], strict=True):
            use += shares_attribute[k]
            use += shares_value[value]
        use[best] = np.inf
        drawn.append({names[k]: values[names[k]][v] for k, v in pool[best]})
    return drawn


def _pool(sizes: npt.NDArray[np.int64], size: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Different contexts in random order, all of them or many: int64 [M, size, 2] of (attribute, value)."""
    wanted = max(_POOL, 20 * count)
    everything = (
        tuple(zip(attributes, chosen, strict=True))
        for attributes in itertools.combinations(range(len(sizes)), size)
        for chosen in itertools.product(*(range(sizes[k]) for k in attributes))
    )
    contexts = list(itertools.islice(everything, 4 * wanted + 1))
    if len(contexts) > 4 * wanted:  # so many that random ones are seldom the same
        found: dict[tuple[tuple[int, int], ...], None] = {}
        while len(found) < wanted:
            attributes = np.sort(rng.choice(len(sizes), size, replace=False))
            found[tuple((int(k), int(rng.integers(sizes[k]))) for k in attributes)] = None
        contexts = list(found)
    pool = np.array(contexts, dtype=np.int64).reshape(len(contexts), size, 2)
    return pool[rng.permutation(len(pool))]
