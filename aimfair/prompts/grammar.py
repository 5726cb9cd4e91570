"""Contextual prompts from lists of words: the same contexts in every group, every word and context equally often."""

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


MAX_CHARACTERS = 1000
"""Of one prompt."""


class Prompt(Line):
    """A text for the images of one group.

    Attributes:
        id: position among all prompts and a short hash of the text; safe as part of a file name.
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
    that they are balanced, and know nothing of the contexts, whose order is random.

    Raises:
        AimfairError: there are not so many different prompts, two are the same, or one cannot be used as a text.
    """
    n = settings.per_group
    distinct = count_contexts(settings.contexts, settings.contexts_per_prompt)
    contexts = draw_contexts(settings.contexts, settings.contexts_per_prompt, min(n, distinct), settings.seed)
    for y, targets in enumerate(settings.targets):
        for a, protecteds in enumerate(settings.protected):
            wordings = len(targets) * len(protecteds)
            if n > distinct * wordings:
                raise AimfairError(
                    f"prompts.per_group: {n} wanted, but group (y={y}, a={a}) has {distinct * wordings} different "
                    f"prompts ({distinct} contexts of {settings.contexts_per_prompt} attributes, {wordings} wordings); "
                    "add values to prompts.contexts, add words, or ask for fewer"
                )
    return fill_templates(settings, [(settings.template, context) for context in contexts])


def fill_templates(settings: PromptSettings, templates: Sequence[tuple[str, dict[str, str]]]) -> list[Prompt]:
    """``settings.per_group`` prompts for each group, the templates in turn, in every group the same.

    Args:
        templates: texts with {target} and {protected} where a group's words go, and the contexts of each, which go
            where {contexts} stands, if it does.

    Raises:
        AimfairError: two prompts are the same, or one cannot be used as a text.
    """
    prompts: list[Prompt] = []
    for y, targets in enumerate(settings.targets):
        for a, protecteds in enumerate(settings.protected):
            for i in range(settings.per_group):
                # A template that returns in a later round meets another wording there.
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
    """What :func:`save_prompts` wrote.

    Raises:
        AimfairError: the file is missing or damaged.
    """
    return read_lines(path, Prompt)


def without_contexts(settings: PromptSettings, prompts: Sequence[Prompt]) -> list[str]:
    """For each prompt the text that says the two attributes alone, in the same words."""
    return [plain_text(settings.template, prompt.target, prompt.protected) for prompt in prompts]


def plain_text(template: str, target: str, protected: str) -> str:
    """The template with these words and without contexts, nor the comma that separated them from the rest."""
    return _fill(bare_template(template), target, protected, {})


def bare_template(template: str) -> str:
    """The template without contexts, nor the comma that separated them from the rest."""
    return re.sub(r"\s*,(\s*,)+", ",", template.replace("{contexts}", "")).strip(" ,")


def _prompt(template: str, index: int, y: int, a: int, contexts: dict[str, str], target: str, protected: str) -> Prompt:
    text = _fill(template, target, protected, contexts)
    if not text.isprintable() or not 0 < len(text) <= MAX_CHARACTERS:
        raise AimfairError(
            f"prompts: group (y={y}, a={a}): {text[:80]!r} ({len(text)} characters), expected a text of 1 to "
            f"{MAX_CHARACTERS} printable characters in one line; fix prompts.template or the words"
        )
    name = f"{index:04d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Prompt(id=name, y=y, a=a, text=text, contexts=contexts, target=target, protected=protected)


def _fill(template: str, target: str, protected: str, contexts: dict[str, str]) -> str:
    parts = {"target": target, "protected": protected, "contexts": ", ".join(contexts.values())}
    # One pass over the template: braces within words are left alone.
    return re.sub(r"\{(target|protected|contexts)\}", lambda match: parts[match[1]], template).strip(" ,")


def _refuse_repeats(prompts: Sequence[Prompt]) -> None:
    """One text in two groups would have two labels; twice in one group, it would count twice."""
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        other = seen.setdefault(" ".join(prompt.text.casefold().split()), prompt)
        if other is not prompt:
            raise AimfairError(
                f"prompts: {prompt.text!r} twice, in groups (y={other.y}, a={other.a}) and (y={prompt.y}, "
                f"a={prompt.a}), expected once; check prompts.template, and that no word or value is listed twice"
            )
