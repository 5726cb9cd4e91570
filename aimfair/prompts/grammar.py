"""Contextual prompts from word lists: the same contexts in every group, words and contexts equally often."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.lines import Line, as_lines, read_lines
from aimfair.base.seeds import generator
from aimfair.prompts.settings import PromptSettings

_POOL = 4_000  # candidates from which balanced contexts are chosen


def count_contexts(values: dict[str, list[str]], size: int) -> int:
    """Number of distinct contexts of ``size`` attributes; ``values``: attribute -> its values."""
    return sum(prod(len(values[name]) for name in chosen) for chosen in itertools.combinations(values, size))


def draw_contexts(values: dict[str, list[str]], size: int, count: int, seed: int) -> list[dict[str, str]]:
    """``count`` distinct contexts of ``size`` attributes, each in the order of ``values``.

    Each is the one whose attributes and values were used least so far, with random ties, so every prefix of the list
    is balanced too.

    Raises:
        ValueError: there are fewer contexts than ``count``.
    """
    names = list(values)
    sizes = np.array([len(values[name]) for name in names], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)  # index of each attribute's first value among all
    pool = _pool(sizes, size, count, generator(seed, "contexts"))
    if len(pool) < count:
        raise ValueError(f"found {len(pool)} contexts, expected {count}")
    # Choosing a context adds to the use of every other: 1 for each attribute in common, and for each value in common
    # the number of that attribute's values, as a value's fair share of use is its attribute's divided by that number.
    values_of_pool = first[pool[:, :, 0]] + pool[:, :, 1]
    shares_attribute = np.zeros((len(names), len(pool)), dtype=np.float32)
    shares_value = np.zeros((first[-1], len(pool)), dtype=np.float32)
    columns = np.arange(len(pool))[:, None]
    shares_attribute[pool[:, :, 0], columns] = 1
    shares_value[values_of_pool, columns] = sizes[pool[:, :, 0]]
    use = np.zeros(len(pool), dtype=np.float32)  # integers, so exact
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
    """Distinct contexts in random order, all or a large sample: int64 [M, size, 2] of (attribute, value)."""
    wanted = max(_POOL, 20 * count)
    everything = (
        tuple(zip(attributes, chosen, strict=True))
        for attributes in itertools.combinations(range(len(sizes)), size)
        for chosen in itertools.product(*(range(sizes[k]) for k in attributes))
    )
    contexts = list(itertools.islice(everything, 4 * wanted + 1))
    if len(contexts) > 4 * wanted:  # so many that random ones are rarely equal
        found: dict[tuple[tuple[int, int], ...], None] = {}
        while len(found) < wanted:
            attributes = np.sort(rng.choice(len(sizes), size, replace=False))
            found[tuple((int(k), int(rng.integers(sizes[k]))) for k in attributes)] = None
        contexts = list(found)
    pool = np.array(contexts, dtype=np.int64).reshape(len(contexts), size, 2)
    return pool[rng.permutation(len(pool))]


MAX_CHARACTERS = 1000
"""Of one prompt."""


class Prompt(Line):
    """A prompt for images of one group.

    Attributes:
        id: position among all prompts and a short hash of the text; safe in file names.
        y, a: the group: target class and protected value.
        contexts: contextual attribute -> value, in the order of the settings.
        target, protected: the words used for y and a.
    """

    id: str
    y: int
    a: int
    text: str
    contexts: dict[str, str]
    target: str
    protected: str


def write_prompts(settings: PromptSettings) -> list[Prompt]:
    """``settings.per_group`` prompts for each group, group (0, 0) first, then (0, 1), ...

    Prompt i of every group has the same context. A group's words for target and protected value are used in turn, so
    they are balanced and, as the order of contexts is random, independent of them.

    Raises:
        AimfairError: there are too few distinct prompts, or a prompt is repeated or unusable.
    """
    n = settings.per_group
    distinct = count_contexts(settings.contexts, settings.contexts_per_prompt)
    contexts = draw_contexts(settings.contexts, settings.contexts_per_prompt, min(n, distinct), settings.seed)
    for y, targets in enumerate(settings.targets):
        for a, protecteds in enumerate(settings.protected):
            wordings = len(targets) * len(protecteds)
            if n > distinct * wordings:
                raise AimfairError(
                    f"prompts.per_group: found {n}, expected at most {distinct * wordings}, the distinct prompts of "
                    f"group (y={y}, a={a}): {distinct} contexts of {settings.contexts_per_prompt} attributes, "
                    f"{wordings} wordings; add values to prompts.contexts or words, or lower it"
                )
    return fill_templates(settings, [(settings.template, context) for context in contexts])


def fill_templates(settings: PromptSettings, templates: Sequence[tuple[str, dict[str, str]]]) -> list[Prompt]:
    """``settings.per_group`` prompts for each group, from the same templates in turn.

    Args:
        templates: each with placeholders {target}, {protected} and, optionally, {contexts}; and its contexts.

    Raises:
        AimfairError: a prompt is repeated or unusable.
    """
    prompts: list[Prompt] = []
    for y, targets in enumerate(settings.targets):
        for a, protecteds in enumerate(settings.protected):
            for i in range(settings.per_group):
                # When a template is used again, it gets another wording.
                again, which = divmod(i, len(templates))
                late, early = divmod((which + again) % (len(targets) * len(protecteds)), len(targets))
                template, contexts = templates[which]
                prompts.append(_prompt(template, len(prompts), y, a, contexts, targets[early], protecteds[late]))
    _refuse_repeats(prompts)
    return prompts


def save_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Replaces ``path`` (JSON Lines) by ``prompts``."""
    write_text(path, as_lines(prompts))


def load_prompts(path: Path) -> list[Prompt]:
    """Reads what :func:`save_prompts` wrote.

    Raises:
        AimfairError: the file is missing or damaged.
    """
    return read_lines(path, Prompt, "aimfair prompts")


def without_contexts(settings: PromptSettings, prompts: Sequence[Prompt]) -> list[str]:
    """The text of each prompt with the same words for the two attributes and no contexts."""
    return [plain_text(settings.template, prompt.target, prompt.protected) for prompt in prompts]


def plain_text(template: str, target: str, protected: str) -> str:
    """The template with these words and without contexts, and without the commas around them."""
    return _fill(bare_template(template), target, protected, {})


def bare_template(template: str) -> str:
    """The template without contexts, and without the commas around them."""
    return re.sub(r"\s*,(\s*,)+", ",", template.replace("{contexts}", "")).strip(" ,")


def _prompt(template: str, index: int, y: int, a: int, contexts: dict[str, str], target: str, protected: str) -> Prompt:
    text = _fill(template, target, protected, contexts)
    if not text.isprintable() or not 0 < len(text) <= MAX_CHARACTERS:
        raise AimfairError(
            f"prompts: group (y={y}, a={a}): {text[:80]!r} ({len(text)} characters), expected 1 to "
            f"{MAX_CHARACTERS} printable characters on one line; fix prompts.template or the words"
        )
    name = f"{index:04d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Prompt(id=name, y=y, a=a, text=text, contexts=contexts, target=target, protected=protected)


def _fill(template: str, target: str, protected: str, contexts: dict[str, str]) -> str:
    parts = {"target": target, "protected": protected, "contexts": ", ".join(contexts.values())}
    # One pass over the template, so braces in words are kept.
    return re.sub(r"\{(target|protected|contexts)\}", lambda match: parts[match[1]], template).strip(" ,")


def _refuse_repeats(prompts: Sequence[Prompt]) -> None:
    """Refuses a repeated prompt: in two groups it would have two labels, in one group it would count twice."""
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        other = seen.setdefault(" ".join(prompt.text.casefold().split()), prompt)
        if other is not prompt:
            raise AimfairError(
                f"prompts: {prompt.text!r} occurs twice, in groups (y={other.y}, a={other.a}) and (y={prompt.y}, "
                f"a={prompt.a}), expected once; check prompts.template, and that no word or value is listed twice"
            )
