"""Asks a language model until there is a template for every brief, or it is clear that there will not be."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import append_text, write_text
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lines import as_lines, read_lines
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.prompts.providers.chat import ChatModel
from aimfair.prompts.providers.message import Brief, make_briefs, make_message
from aimfair.prompts.providers.replies import Desk, Template
from aimfair.prompts.settings import PromptSettings


class _Kept(Template):
    """A template that was accepted; ``key`` tells for which request."""

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
    """``settings.per_group`` different templates, in the order of their briefs.

    Every one is in ``cache`` (JSON Lines) as soon as it is accepted: what is there already for the same settings is not
    asked for again. Each reply is an event in the log, with its tokens and the reasons for what was refused.

    Args:
        target, protected: names of the two attributes.

    Raises:
        AimfairError: ``settings.llm.max_fruitless`` replies in a row had no usable template; with counts by reason.
        Interrupted: a signal came.
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
            reply = model.ask(make_message(settings, target, protected, asked, last))
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
                    f"tokens in, {tokens_out} out), and none usable in the last {fruitless}; refused: {reasons}. Take "
                    "another prompts.llm.model or mend prompts.llm; what was accepted is kept"
                )
            # What was not answered well comes last, so that one brief that cannot be met does not hold up the others.
            rest = open_briefs[len(asked) :] + asked
            open_briefs = [brief for brief in rest if brief.number not in desk.taken]
    log("prompts model", replies=replies, tokens_in=tokens_in, tokens_out=tokens_out, refused=dict(every))
    return [desk.taken[brief.number] for brief in briefs]


class _Store:
    """A file of accepted templates, each line on disk when :meth:`append` returns."""

    def __init__(self, path: Path, key: str):
        self._path, self._key = path, key

    def read(self) -> list[_Kept]:
        """Those for the same request. A half line that a killed process left is dropped."""
        lines = read_lines(self._path, _Kept, appended=True) if self._path.exists() else []
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
    """Digest of who was asked for what."""
    asked = make_message(settings, target, protected, briefs, Counter())
    text = json.dumps([settings.provider, settings.llm.model, settings.llm.temperature, asked])
    return hashlib.sha256(text.encode()).hexdigest()
