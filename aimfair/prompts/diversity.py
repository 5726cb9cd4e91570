"""Measures the diversity of prompts within groups, and how similar groups are: diversity.json.

The classes below are its schema. Shares are in [0, 1]; undefined values are null. The same prompts give the same
bytes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import log
from pathlib import Path
from typing import Self

import numpy as np

from aimfair.base.files import write_text
from aimfair.base.lines import read_record
from aimfair.base.seeds import generator
from aimfair.base.settings import Record
from aimfair.prompts.grammar import Prompt, without_contexts
from aimfair.prompts.settings import PromptSettings

MOST_COMPARED = 1000
"""Most prompts of a group that are compared pairwise; of larger groups, a random sample of this size."""

Group = tuple[int, int]
"""(y, a): target class and protected value."""


class Coverage(Record):
    """One contextual attribute in the prompts of one group.

    Attributes:
        values: value -> number of prompts, the most frequent first; case and spaces are ignored.
        coverage: share of the values in the settings that occur.
        evenness: entropy of ``values`` over its maximum: 1 if all are equally frequent. The maximum is over the values
            in the settings or, if others occur, over those that occur. None for fewer than two values.
    """

    y: int
    a: int
    values: dict[str, int]
    coverage: float
    evenness: float | None


class Attribute(Record):
    """One contextual attribute.

    Attributes:
        values: their number in the settings.
        groups: in the order of (y, a).
        difference: largest total variation distance between the values of two groups, with "no value" as one of them:
            0 if every value is equally frequent in all groups, 1 if two groups share none.
        between: these two groups.
    """

    name: str
    values: int
    groups: list[Coverage]
    difference: float
    between: tuple[Group, Group]


class Wording(Record):
    """The texts of one group.

    Attributes:
        prompts: their number.
        distinct_1, distinct_2: share of distinct words, and of distinct bigrams, among all of them (Li et al. 2016);
            None if there are none.
        similarity: Jaccard similarity of the words of two prompts, mean over all pairs; None for a single prompt.
        compared: number of prompts that ``similarity`` is computed on, a random sample in larger groups.
    """

    y: int
    a: int
    prompts: int
    distinct_1: float | None
    distinct_2: float | None
    similarity: float | None
    compared: int


class Diversity(Record):
    """
    Attributes:
        provider: what wrote the prompts.
        attributes: in the order of the settings.
        contextual: the prompts of each group, in the order of (y, a).
        plain: the same prompts without contexts.
    """

    provider: str
    attributes: list[Attribute]
    contextual: list[Wording]
    plain: list[Wording]

    @property
    def greatest_difference(self) -> Attribute | None:
        """The attribute with the largest difference; None without attributes."""
        return max(self.attributes, key=lambda attribute: attribute.difference, default=None)

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            AimfairError: the file is missing or damaged.
        """
        return read_record(path, cls, "remove the file; aimfair prompts writes it")


def measure(prompts: Sequence[Prompt], settings: PromptSettings) -> Diversity:
    """The diversity of at least one prompt."""
    groups: dict[Group, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.y, prompt.a), []).append(prompt)
    groups = dict(sorted(groups.items()))
    used = {name for prompt in prompts for name in prompt.contexts}
    names = [*settings.contexts, *sorted(used.difference(settings.contexts))]
    return Diversity(
        provider=settings.provider,
        attributes=[_attribute(name, settings.contexts.get(name, []), groups) for name in names],
        contextual=[_wording(group, [prompt.text for prompt in of]) for group, of in groups.items()],
        plain=[_wording(group, without_contexts(settings, of)) for group, of in groups.items()],
    )


def _attribute(name: str, known: Sequence[str], groups: dict[Group, list[Prompt]]) -> Attribute:
    counts = {
        group: Counter(_normal(prompt.contexts[name]) for prompt in of if name in prompt.contexts)
        for group, of in groups.items()
    }
    shares = {group: _shares(counts[group], len(of)) for group, of in groups.items()}
    farthest, difference = (next(iter(groups)),) * 2, 0.0
    for pair in combinations(groups, 2):
        if (found := _total_variation(shares[pair[0]], shares[pair[1]])) > difference:
            farthest, difference = pair, found
    return Attribute(
        name=name,
        values=len(known),
        groups=[_coverage(group, counts[group], {_normal(value) for value in known}) for group in groups],
        difference=difference,
        between=farthest,
    )


def _coverage(group: Group, counts: Counter[str], known: set[str]) -> Coverage:
    total = counts.total()
    possible = len(known) if known.issuperset(counts) else len(counts)
    entropy = -sum(n / total * log(n / total) for n in counts.values())
    return Coverage(
        y=group[0],
        a=group[1],
        values=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        coverage=len(known.intersection(counts)) / max(len(known), 1),
        evenness=min(abs(entropy) / log(possible), 1.0) if possible > 1 and total else None,
    )


def _shares(counts: Counter[str], prompts: int) -> dict[str, float]:
    """Value -> share of the prompts; "" stands for no value."""
    return {"": 1 - counts.total() / prompts} | {value: n / prompts for value, n in counts.items()}


def _total_variation(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(abs(one.get(value, 0.0) - other.get(value, 0.0)) for value in {**one, **other}) / 2


def _wording(group: Group, texts: Sequence[str]) -> Wording:
    words = [re.findall(r"\w+", text.casefold()) for text in texts]
    drawn: Iterable[int] = range(len(words))
    if len(words) > MOST_COMPARED:
        drawn = np.sort(generator("diversity", *group).choice(len(words), MOST_COMPARED, replace=False))
    compared = [set(words[i]) for i in drawn]
    return Wording(
        y=group[0],
        a=group[1],
        prompts=len(texts),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        similarity=_similarity(compared),
        compared=len(compared),
    )


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """None if no text has n words."""
    total, different = 0, set[tuple[str, ...]]()
    for words in texts:
        grams = list(zip(*(words[k:] for k in range(n)), strict=False))
        total += len(grams)
        different.update(grams)
    return len(different) / total if total else None


def _similarity(sets: Sequence[set[str]]) -> float | None:
    """Mean over the pairs of at most ``MOST_COMPARED`` sets: a few matrices of 4 MB."""
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    if len(sets) < 2:
        return None
    column = {word: k for k, word in enumerate(sorted(set().union(*sets)))}
    columns = [column[word] for words in sets for word in words]
    starts = np.cumsum([0, *map(len, sets)])
    shape = len(sets), len(column)
    has = csr_array((np.ones(len(columns), dtype=np.float32), columns, starts), shape)  # 1 where a set has the word
    shared = (has @ has.T).toarray()  # number of words that both have
    sizes = shared.diagonal()
    together = sizes[:, None] + sizes[None, :] - shared
    pairs = np.triu_indices(len(sets), 1)
    return float(np.mean(shared[pairs] / np.maximum(together[pairs], 1), dtype=np.float64))


def _normal(value: str) -> str:
    return " ".join(value.casefold().split())
