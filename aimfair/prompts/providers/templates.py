"""Prompt templates from a language model: the request, the validation of replies, and the loop over both.

A template has slots for the two attributes, so all groups share it. Replies are untrusted: anything but a template as
requested is rejected.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import append_text, write_text
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lines import Line, as_lines, read_lines
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.base.settings import Record
from aimfair.prompts.grammar import MAX_CHARACTERS, count_contexts, draw_contexts
from aimfair.prompts.providers import ChatModel, Reply
from aimfair.prompts.providers.schema import schema_of
from aimfair.prompts.settings import PromptSettings


@dataclass(frozen=True)
class Brief:
    """A template to request.

    Attributes:
        number: from 0.
        contexts: the contextual attributes that it should have, each with a value from the settings as an example.
    """

    number: int
    contexts: dict[str, str]


def make_briefs(settings: PromptSettings) -> list[Brief]:
    """``settings.per_group`` briefs, with every contextual attribute and example equally often."""
    distinct = count_contexts(settings.contexts, settings.contexts_per_prompt)
    n = settings.per_group
    contexts = draw_contexts(settings.contexts, settings.contexts_per_prompt, min(n, distinct), settings.seed)
    return [Brief(number, contexts[number % len(contexts)]) for number in range(n)]


def make_message(
    settings: PromptSettings, target: str, protected: str, briefs: Sequence[Brief], faults: Counter[str]
) -> str:
    """The message that requests the templates of ``briefs``. It contains nothing from a reply.

    Args:
        target, protected: names of the two attributes.
        faults: of the last reply, reason -> count.
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


_SLOTS = ("{target}", "{protected}")
_PART_OF_WORD = r"[^\W\u2e80-\U0010ffff]"  # in scripts that put spaces between words
_TURNED = re.compile(
    rf"({_PART_OF_WORD}|-)\{{(target|protected)\}}|\{{(target|protected)\}}({_PART_OF_WORD}|-)"
    r"|\b(not?|non|never|without|hardly)( an?)? \{(target|protected)\}"
)
"""A slot that is negated or part of a word: this could turn the word for one group into that for another."""
_MARKUP = re.compile(r"[{}<>\[\]|\\`]|://")
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i apologi[sz]e|(can'?t|cannot|unable to|won'?t) (help|assist|comply|provide|fulfil))"
)
_MAX_REPLY = 1_000_000  # characters
_GRAM = 3  # words


class Template(Line):
    """A prompt with the slots {target} and {protected}.

    Attributes:
        number: of its brief.
        contexts: contextual attribute -> its value, as in the text.
    """

    number: int
    text: str
    contexts: dict[str, str]


class _Answer(Record, strict=True):
    templates: list[Any]


class Desk:
    """Validates templates, and collects one for each brief.

    Attributes:
        taken: number of the brief -> its accepted template.
    """

    def __init__(self, settings: PromptSettings, briefs: Sequence[Brief]):
        self._settings = settings
        self._briefs = {brief.number: brief for brief in briefs}
        words = [word for words in (*settings.targets, *settings.protected, settings.llm.avoid) for word in words]
        self._words = re.compile("|".join(_as_word(word) for word in words))
        self._longest = [max(_all_words(classes), key=len) for classes in (settings.targets, settings.protected)]
        self._most_words = sum(max(len(word.split()) for word in _all_words(classes)) - 1
                               for classes in (settings.targets, settings.protected))  # fmt: skip
        self._grams: list[set[tuple[str, ...]]] = []
        self.taken: dict[int, Template] = {}

    def read(self, reply: Reply) -> tuple[list[Template], Counter[str]]:
        """The accepted templates of a reply, and why others, or the whole reply, were rejected."""
        items = _items(reply)
        if isinstance(items, str):
            return [], Counter([items])
        taken, faults = [], Counter[str]()
        for item in items:
            try:
                template = Template.model_validate(item)
            except ValidationError:
                faults["not a template by the schema"] += 1
                continue
            fault = self.take(template)
            if fault:
                faults[fault] += 1
            else:
                taken.append(self.taken[template.number])
        if not items:
            faults["no templates"] += 1
        return taken, faults

    def take(self, template: Template) -> str:
        """Accepts a template, or returns why not; "" if accepted."""
        brief = self._briefs.get(template.number)
        if brief is None or template.number in self.taken:
            return "a number that was not requested"
        pieces = (template.text, *template.contexts.values())
        if not all(piece.isprintable() and piece.strip() for piece in pieces):
            return "blank, or control characters"
        text = " ".join(template.text.split())
        contexts = {name: " ".join(template.contexts[name].split()) for name in brief.contexts if name in
                    template.contexts}  # fmt: skip
        if any(text.count(slot) != 1 for slot in _SLOTS):
            return "not each slot once"
        if _TURNED.search(text.casefold()):
            return "a slot negated, or within a word"
        bare = text.replace(_SLOTS[0], " ").replace(_SLOTS[1], " ")
        if _MARKUP.search(bare):
            return "markup"
        if len(text.split()) + self._most_words > self._settings.llm.max_words or self._length(text) > MAX_CHARACTERS:
            return "too long"
        if self._words.search(_normal(bare)):
            return "words of a group outside the slots"
        if set(template.contexts) != set(brief.contexts):
            return "other contexts than requested"
        if not all(_normal(value) in _normal(bare) for value in contexts.values()):
            return "a context that is not in the text"
        grams = _grams(_normal(bare))
        if any(len(grams & other) >= self._settings.llm.similarity * len(grams | other) for other in self._grams):
            return "too similar to another"
        self._grams.append(grams)
        self.taken[template.number] = Template(number=template.number, text=text, contexts=contexts)
        return ""

    def _length(self, text: str) -> int:
        return len(text) + sum(len(word) - len(slot) for word, slot in zip(self._longest, _SLOTS, strict=True))


def _items(reply: Reply) -> list[Any] | str:
    """The unvalidated templates, or why there are none."""
    if reply.end != "done":
        return reply.end
    text = reply.text.rpartition("</think>")[2]  # a reasoning model's thoughts come first
    first, last = text.find("{"), text.rfind("}")
    if first < 0 or len(text) > _MAX_REPLY:
        said = text[:1000].casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return "refusal" if _REFUSAL.search(said) else "not JSON"
    try:
        return _Answer.model_validate_json(text[first : last + 1]).templates
    except ValidationError as error:
        return "not JSON" if error.errors()[0]["type"] == "json_invalid" else "JSON of the wrong form"


def _normal(text: str) -> str:
    """A normal form in which texts that look alike are equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _as_word(word: str) -> str:
    """A pattern that matches a whole word; in scripts without spaces between words, also part of one."""
    word = _normal(word)
    pattern = re.escape(word)
    return pattern if max(word) >= "\u2e80" else rf"(?<!\w){pattern}(?!\w)"


def _all_words(classes: Sequence[Sequence[str]]) -> list[str]:
    return [word for words in classes for word in words]


def _grams(text: str) -> set[tuple[str, ...]]:
    """The word trigrams of a text; all words together if there are fewer."""
    words = re.findall(r"\w+", text)
    return {tuple(words[k : k + _GRAM]) for k in range(max(len(words) - _GRAM, 0) + 1)}


class _Kept(Template):
    """An accepted template; ``key`` identifies the request."""

    key: str


def ask_for_templates(
    model: ChatModel,
    settings: PromptSettings,
    target: str,
    protected: str,
    cache: Path,
    *,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> list[Template]:
    """``settings.per_group`` distinct templates, in the order of their briefs.

    Accepted templates are written to ``cache`` (JSON Lines) at once; those that are there for the same settings are not
    requested again. Each reply is an event in the log, with its tokens and the reasons for rejections.

    Args:
        target, protected: names of the two attributes.

    Raises:
        AimfairError: ``settings.llm.max_fruitless`` consecutive replies had no usable template.
        Interrupted: by a signal.
    """
    briefs = make_briefs(settings)
    desk = Desk(settings, briefs)
    store = _Store(cache, _key(settings, target, protected, briefs))
    store.keep([desk.taken[old.number] for old in store.read() if not desk.take(_template(old))])
    open_briefs = [brief for brief in briefs if brief.number not in desk.taken]
    every, last = Counter[str](), Counter[str]()
    replies = fruitless = tokens_in = tokens_out = 0
    with (progress or Progress(quiet=True)).task("prompts", len(briefs), len(desk.taken)) as task:
        while open_briefs:
            interrupt.check()
            asked = open_briefs[: settings.llm.per_request]
            reply = model.ask(make_message(settings, target, protected, asked, last), schema_of(asked))
            taken, last = desk.read(reply)
            store.append(taken)
            log("prompts reply", accepted=len(taken), refused=dict(last),
                tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)  # fmt: skip
            every += last
            replies, tokens_in, tokens_out = replies + 1, tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
            task.advance(len(taken), f"{tokens_in:,} tokens in, {tokens_out:,} out")
            fruitless = 0 if taken else fruitless + 1
            if fruitless == settings.llm.max_fruitless:
                reasons = ", ".join(f"{reason} {count}" for reason, count in every.most_common())
                raise AimfairError(
                    f"prompts: {len(desk.taken)} of {len(briefs)} templates after {replies} replies ({tokens_in} "
                    f"tokens in, {tokens_out} out), none usable in the last {fruitless}; refused: {reasons}; use "
                    "another prompts.llm.model or change prompts.llm; accepted templates are kept"
                )
            # Unanswered briefs go to the end, so an impossible one does not block the others.
            rest = open_briefs[len(asked) :] + asked
            open_briefs = [brief for brief in rest if brief.number not in desk.taken]
    log("prompts model", replies=replies, tokens_in=tokens_in, tokens_out=tokens_out, refused=dict(every))
    return [desk.taken[brief.number] for brief in briefs]


class _Store:
    """A file of accepted templates, each line on disk when :meth:`append` returns."""

    def __init__(self, path: Path, key: str):
        self._path, self._key = path, key

    def read(self) -> list[_Kept]:
        """The templates for the same request, without a partial line left by a killed process."""
        lines = read_lines(self._path, _Kept, "aimfair prompts", appended=True) if self._path.exists() else []
        return [line for line in lines if line.key == self._key]

    def keep(self, templates: Sequence[Template]) -> None:
        """Replaces the file."""
        write_text(self._path, self._lines(templates))

    def append(self, templates: Sequence[Template]) -> None:
        if templates:
            append_text(self._path, self._lines(templates))

    def _lines(self, templates: Sequence[Template]) -> str:
        return as_lines([_Kept(key=self._key, **template.model_dump()) for template in templates])


def _template(kept: _Kept) -> Template:
    return Template(number=kept.number, text=kept.text, contexts=kept.contexts)


def _key(settings: PromptSettings, target: str, protected: str, briefs: Sequence[Brief]) -> str:
    """Digest of model and request."""
    asked = make_message(settings, target, protected, briefs, Counter())
    text = json.dumps([settings.provider, settings.llm.model, settings.llm.temperature, asked])
    return hashlib.sha256(text.encode()).hexdigest()
