"""What a language model is asked for: templates with slots for the two attributes, so that all groups share them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aimfair.prompts.contexts import count_contexts, draw_contexts
from aimfair.prompts.settings import PromptSettings


@dataclass(frozen=True)
class Brief:
    """One template that is wanted.

    Attributes:
        number: which of all, from 0.
        contexts: the contextual attributes that it is to have, each with a value from the settings as an example.
    """

    number: int
    contexts: dict[str, str]


def make_briefs(settings: PromptSettings) -> list[Brief]:
    """One for each of ``settings.per_group`` templates; every contextual attribute and example equally often."""
    distinct = count_contexts(settings.contexts, settings.contexts_per_prompt)
    n = settings.per_group
    contexts = draw_contexts(settings.contexts, settings.contexts_per_prompt, min(n, distinct), settings.seed)
    return [Brief(number, contexts[number % len(contexts)]) for number in range(n)]


def make_message(
    settings: PromptSettings, target: str, protected: str, briefs: Sequence[Brief], faults: Counter[str]
) -> str:
    """The message that asks for the templates of ``briefs``.

    Nothing in it comes from a reply.

    Args:
        target, protected: names of the two attributes.
        faults: of the last reply, reason -> how many.
    """
    avoid = [word for words in (*settings.targets, *settings.protected) for word in words] + settings.llm.avoid
    example = {
        "templates": [
            {"number": brief.number, "text": "...", "contexts": dict.fromkeys(brief.contexts, "...")}
            for brief in briefs[:1]
        ]
    }
    manner = settings.template.replace("{contexts}", "...")
    wanted = [{"number": brief.number, "contexts": brief.contexts} for brief in briefs]
    lines = [
        "Write templates of prompts for a text-to-image model. The images will make a classifier fair.",
        f"Task of the classifier: tell {_words(settings.targets)} (target attribute: {target}), whatever the protected "
        f"attribute {protected} is: {_words(settings.protected)}.",
        "Each template is used for every combination of the two attributes: {target} will be replaced by a word for "
        "the target attribute, {protected} by a word for the protected attribute. So a template",
        "- holds {target} once and {protected} once, in a sentence that is right with each of their words;",
        "- has each as a word of its own, and never negated;",
        "- says nothing else about the two attributes, and nothing that would fit one combination better than "
        f"another: never these words: {', '.join(dict.fromkeys(avoid))};",
        f"- is one line of at most {settings.llm.max_words} plain words, in the manner of: {manner}",
        *(["- has exactly the contexts that are listed for it below, and no other attribute of them."]
          if settings.contexts_per_prompt else []),
    ]  # fmt: skip
    if settings.contexts_per_prompt:
        names = ", ".join(settings.contexts)
        lines.append(
            f"Contexts vary over: {names}. The values below are examples: find others of the same kind, as varied "
            'and concrete as photographs are, or keep one. The value in "contexts" is copied letter by letter '
            "from the text."
        )
    lines += [
        "No two templates may be alike. Answer with JSON alone, without any other word, of this form:",
        json.dumps(example, ensure_ascii=False),
        f"Wanted are {len(briefs)} templates:",
        json.dumps(wanted, ensure_ascii=False),
    ]
    if faults:
        lines.append(f"Faults of the last answer: {', '.join(f'{name} ({n})' for name, n in faults.most_common())}.")
    return "\n".join(lines)


def _words(classes: Sequence[Sequence[str]]) -> str:
    return " from ".join("/".join(words) for words in classes)
