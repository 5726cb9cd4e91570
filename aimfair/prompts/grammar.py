"""Contextual prompts from lists of words: the same contexts in every group, every word and context equally often."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.lines import Line, as_lines, read_lines
from aimfair.prompts.contexts import count_contexts, draw_contexts
from aimfair.prompts.settings import PromptSettings

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
    """The template with these words and without contexts, nor the comma that parted them from the rest."""
    return _fill(bare_template(template), target, protected, {})


def bare_template(template: str) -> str:
    """The template without contexts, nor the comma that parted them from the rest."""
    return re.sub(r"\s*,(\s*,)+", ",", template.replace("{contexts}", "")).strip(" ,")


def _prompt(template: str, index: int, y: int, a: int, contexts: dict[str, str], target: str, protected: str) -> Prompt:
    text = _fill(template, target, protected, contexts)
    if not text.isprintable() or not 0 < len(text) <= MAX_CHARACTERS:
        raise AimfairError(
            f"prompts: group (y={y}, a={a}): {text[:80]!r} ({len(text)} characters), expected a text of 1 to "
            f"{MAX_CHARACTERS} printable characters in one line; mend prompts.template or the words"
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
