"""What of a reply is used. A reply is data of unknown origin: what is not a template as asked for is refused."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aimfair.base.lines import Line
from aimfair.prompts.grammar import MAX_CHARACTERS
from aimfair.prompts.providers.chat import Reply
from aimfair.prompts.providers.message import Brief
from aimfair.prompts.settings import PromptSettings

_SLOTS = ("{target}", "{protected}")
_PART_OF_WORD = r"[^\W\u2e80-\U0010ffff]"  # in scripts that put spaces between words
_TURNED = re.compile(
    rf"({_PART_OF_WORD}|-)\{{(target|protected)\}}|\{{(target|protected)\}}({_PART_OF_WORD}|-)"
    r"|\b(not?|non|never|without|hardly)( an?)? \{(target|protected)\}"
)
"""A slot within a word, or negated: the word for one group could become that for another."""
_MARKUP = re.compile(r"[{}<>\[\]|\\`]|://")
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i apologi[sz]e|(can'?t|cannot|unable to|won'?t) (help|assist|comply|provide|fulfil))"
)
_MAX_REPLY = 1_000_000  # characters
_GRAM = 3  # words


class Template(Line):
    """A text with {target} and {protected} where a group's words go.

    Attributes:
        number: of its brief.
        contexts: contextual attribute -> the words of the text that are its value.
    """

    number: int
    text: str
    contexts: dict[str, str]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    templates: list[Any]


class Desk:
    """Takes templates in, each of them once, and remembers which.

    Attributes:
        taken: number of the brief -> its template.
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
        """The templates that were taken in, and the reasons why others were not, or the reply as a whole."""
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
        """Takes it in, or says why not."""
        brief = self._briefs.get(template.number)
        if brief is None or template.number in self.taken:
            return "a number that is not wanted"
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
            return "other contexts than asked for"
        if not all(_normal(value) in _normal(bare) for value in contexts.values()):
            return "a context that is not in the text"
        grams = _grams(_normal(bare))
        if any(len(grams & other) >= self._settings.llm.similarity * len(grams | other) for other in self._grams):
            return "too like another"
        self._grams.append(grams)
        self.taken[template.number] = Template(number=template.number, text=text, contexts=contexts)
        return ""

    def _length(self, text: str) -> int:
        return len(text) + sum(len(word) - len(slot) for word, slot in zip(self._longest, _SLOTS, strict=True))


def _items(reply: Reply) -> list[Any] | str:
    """The templates as JSON has them, not looked at yet; or why there are none."""
    if reply.end != "done":
        return reply.end
    text = reply.text.rpartition("</think>")[2]  # what a model says to itself before it answers
    first, last = text.find("{"), text.rfind("}")
    if first < 0 or len(text) > _MAX_REPLY:
        said = text[:1000].casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return "refusal" if _REFUSAL.search(said) else "not JSON"
    try:
        return _Answer.model_validate_json(text[first : last + 1]).templates
    except ValidationError as error:
        return "not JSON" if error.errors()[0]["type"] == "json_invalid" else "JSON of another form"


def _normal(text: str) -> str:
    """What two texts share that look the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _as_word(word: str) -> str:
    """A pattern that finds it as a word; within others, too, in scripts that put no spaces between words."""
    word = _normal(word)
    pattern = re.escape(word)
    return pattern if max(word) >= "\u2e80" else rf"(?<!\w){pattern}(?!\w)"


def _all_words(classes: Sequence[Sequence[str]]) -> list[str]:
    return [word for words in classes for word in words]


def _grams(text: str) -> set[tuple[str, ...]]:
    """Neighbouring words, so many together; of a text of fewer, all."""
    words = re.findall(r"\w+", text)
    return {tuple(words[k : k + _GRAM]) for k in range(max(len(words) - _GRAM, 0) + 1)}
