"""Settings of the prompts."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.errors import ConfigError
from aimfair.base.settings import FolderOrName, Problem, Settings, require_words


class LanguageModelSettings(Settings):
    """The language model that writes prompts; base URL and key of an endpoint come from the environment."""

    model: FolderOrName = Field(
        "",
        description="openai: its name at the endpoint; transformers: a model folder (beginning with /, ./, ../ or ~/)",
    )
    per_request: int = Field(10, ge=1, le=200, description="prompts per request")
    temperature: float | None = Field(None, ge=0, le=2, description="sampling temperature; null: the model's default")
    max_tokens: int | None = Field(
        None, ge=1, description="limit of a reply; null: the endpoint's default, 2048 for transformers"
    )
    json_mode: bool = Field(True, description="openai: request JSON by response_format; false if the endpoint lacks it")
    json_schema: bool = Field(
        True,
        description="openai: with json_mode, request JSON by a schema, which leaves no other form; an endpoint that"
        " refuses it is asked for any JSON",
    )
    max_words: int = Field(40, ge=1, description="words of a prompt; longer ones are rejected")
    avoid: list[str] = Field([], description="further words to reject because they reveal a group, such as he or beard")
    similarity: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Jaccard similarity of word trigrams from which a prompt is rejected as too similar",
    )
    max_fruitless: int = Field(5, ge=1, description="consecutive replies without a usable prompt before giving up")
    timeout: float = Field(120.0, gt=0, description="openai: seconds for a complete answer")
    retries: int = Field(5, ge=0, description="openai: retries after a timeout, 429 or 5xx")
    max_wait: float = Field(300.0, gt=0, description="openai: longest Retry-After to honour, in seconds")


class PromptSettings(Settings):
    """Contextual prompts: the same contexts in every group (y, a)."""

    provider: Literal["grammar", "openai", "transformers"] = Field(
        "grammar",
        description="what writes the prompts; grammar: the word lists below; openai: an OpenAI-compatible endpoint;"
        " transformers: a local chat model",
    )
    vocabulary: FolderOrName | None = Field(
        None,
        description="defaults for the words below: the name of an included vocabulary, or a .yaml file"
        " (beginning with /, ./, ../ or ~/)",
    )
    per_group: int = Field(50, ge=1, description="prompts of each group")
    template: str = Field(
        "a handwritten {target} in {protected} ink, {contexts}",
        description="the prompt, with placeholders {target}, {protected} and {contexts}",
    )
    targets: list[list[str]] = Field(description="for each target class its words, used in turn")
    protected: list[list[str]] = Field(description="for each protected value its words, used in turn")
    contexts: dict[str, list[str]] = Field({}, description="contextual attribute -> its values")
    contexts_per_prompt: int = Field(3, ge=0, description="contextual attributes in one prompt")
    seed: int = Field(0, ge=0, description="seed of the choice of contexts")
    llm: LanguageModelSettings = LanguageModelSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, classes in (("targets", self.targets), ("protected", self.protected)):
            if len(classes) < 2:
                raise Problem((name,), f"found {len(classes)} lists of words, expected at least 2")
            for index, words in enumerate(classes):
                require_words((name, index), words)
        return self

    def check_writing(self) -> None:
        """Checks what only the writing of prompts uses: words, template and language model.

        Raises:
            Problem: they do not go together.
        """
        if self.vocabulary is not None and "template" not in self.model_fields_set:
            raise Problem(("template",), f"missing; the vocabulary {self.vocabulary!r} has none; add one there or here")
        for attribute, values in self.contexts.items():
            require_words(("contexts", attribute), values)
            if len(set(values)) < len(values):
                raise Problem(("contexts", attribute), "a value occurs twice")
        if self.contexts_per_prompt > len(self.contexts):
            raise Problem(
                ("contexts_per_prompt",),
                f"found {self.contexts_per_prompt}, expected at most {len(self.contexts)}, the number of contexts",
            )
        self._check_template()
        if self.provider == "openai" and not self.llm.model:
            raise Problem(("llm", "model"), "missing; openai needs the name of a model at the endpoint")
        if self.provider == "transformers" and not Path(self.llm.model).is_absolute():
            raise Problem(
                ("llm", "model"),
                f"found {self.llm.model!r}, expected the folder of a chat model, beginning with /, ./, ../ or ~/",
            )
        if self.llm.avoid:
            require_words(("llm", "avoid"), self.llm.avoid)

    def require_groups(self, targets: Sequence[str], protected: Sequence[str]) -> None:
        """Checks that there are words for every group; the groups of a table are known only from its rows.

        Args:
            targets, protected: names of the classes and of the protected values.

        Raises:
            ConfigError: the number of lists differs.
        """
        for key, words, names in (("targets", self.targets, targets), ("protected", self.protected, protected)):
            if len(words) != len(names):
                raise ConfigError(
                    f"prompts.{key}: found {len(words)} lists of words, expected {len(names)}, one for each of"
                    f" {', '.join(map(repr, names))}"
                )

    def _check_template(self) -> None:
        expected = {"target", "protected"} | ({"contexts"} if self.contexts_per_prompt else set())
        shown = " ".join(f"{{{name}}}" for name in sorted(expected))
        try:
            fields = [field for field in string.Formatter().parse(self.template) if field[1] is not None]
        except ValueError as error:
            raise Problem(("template",), f"{error}; expected {shown}, and no other braces") from error
        found = [f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                 for _, name, spec, conversion in fields]  # fmt: skip
        if sorted(found) != sorted(f"{{{name}}}" for name in expected):
            raise Problem(("template",), f"found {' '.join(found) or 'no placeholders'}, expected each of {shown} once")
