"""Vocabularies: files with the words of prompts, which several configs share.

A vocabulary gives any of the keys of :data:`PLACES`, and may include other vocabularies. It fills in what a config does
not give itself. The resulting settings hold the words themselves, so a run detects a changed vocabulary and no longer
needs the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from aimfair.base.errors import ConfigError
from aimfair.base.settings import Settings, require_words
from aimfair.config import strict_yaml
from aimfair.config.errors import Key, explain

BUNDLED = Path(__file__).parents[1] / "configs" / "vocabularies"

PLACES: dict[str, tuple[str, ...]] = {
    "template": ("prompts", "template"),
    "targets": ("prompts", "targets"),
    "protected": ("prompts", "protected"),
    "contexts": ("prompts", "contexts"),
    "contexts_per_prompt": ("prompts", "contexts_per_prompt"),
    "avoid": ("prompts", "llm", "avoid"),
}
"""Key of a vocabulary -> the setting that it gives."""


class Vocabulary(Settings):
    """One file; ``aimfair.prompts.settings.PromptSettings`` validates the words."""

    include: list[str] = Field([], description="other vocabularies; their contexts and words to avoid are added")
    template: str = Field("", description="see prompts.template")
    targets: list[list[str]] = Field([], description="see prompts.targets")
    protected: list[list[str]] = Field([], description="see prompts.protected")
    contexts: dict[str, list[str]] = Field({}, description="see prompts.contexts")
    contexts_per_prompt: int = Field(0, description="see prompts.contexts_per_prompt")
    avoid: list[str] = Field([], description="see prompts.llm.avoid")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "avoid" in self.model_fields_set:  # here, because the words of several files become one list
            require_words(("avoid",), self.avoid)
        return self


def add(tree: dict[str, Any], origins: dict[Key, str], named: str | None) -> None:
    """Fills in settings that are missing from the vocabulary.

    Args:
        tree: the unvalidated settings of a file; changed.
        origins: key -> file and line; changed.
        named: the vocabulary of a flag, which replaces the words in ``tree``; None: the one that ``tree`` names.

    Raises:
        ConfigError: there is no such vocabulary, or it cannot be used; with file and line.
    """
    prompts = tree.setdefault("prompts", {}) if named is not None else tree.get("prompts")
    if not isinstance(prompts, dict) or named == "null":
        return  # the validation refuses what is missing or not a mapping
    if named is not None:
        for place in PLACES.values():
            _remove(tree, place)
    name = prompts.get("vocabulary") if named is None else named
    wanted = {key: place for key, place in PLACES.items() if not _is_there(tree, place)}
    if not isinstance(name, str) or not wanted:  # a run's own settings hold all the words
        return
    where = origins.get(("prompts", "vocabulary"), "") if named is None else "--prompts.vocabulary"
    words, found = _read(_find(name, Path(), where), ())
    for key, place in wanted.items():
        if key in words:
            put(tree, place, words[key])
            origins |= {(*place, *rest): origin for (first, *rest), origin in found.items() if first == key}


def names() -> list[str]:
    """The vocabularies that come with aimfair."""
    return sorted(file.stem for file in BUNDLED.glob("*.yaml"))


def _read(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Key, str]]:
    """The words of a file and of those it includes, and the origin, "file:line", of each key and item.

    Args:
        above: the files that include this one.
    """
    tree, lines = strict_yaml.read(path)
    origins: dict[Key, str] = {key: f"{path}:{line}" for key, line in lines.items()}
    try:
        own = Vocabulary.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        faults = error.errors()
        raise ConfigError(
            "\n".join(explain(fault, tree, {(): str(path)} | origins, _known) for fault in faults)
        ) from error
    words = own.model_dump(exclude_unset=True, exclude={"include"})
    for index, name in enumerate(own.include):
        where = origins["include", index]
        file = _find(name, path.parent, where)
        if file in (path, *above):
            raise ConfigError(f"{where}: include: {name} includes this file, expected no cycle")
        theirs, their_origins = _read(file, (path, *above))
        for key, value in theirs.items():
            if key == "contexts":
                new = {name: values for name, values in value.items() if name not in words.get(key, {})}
                origins |= {place: o for place, o in their_origins.items() if place[0] == key and place[1:2] and
                            place[1] in new}  # fmt: skip
                words[key] = {**words.get(key, {}), **new}
            elif key == "avoid":
                words[key] = list(dict.fromkeys([*words.get(key, []), *value]))
            elif key not in words:
                words[key] = value
                origins |= {place: origin for place, origin in their_origins.items() if place[0] == key}
    return words, origins


def _find(name: str, folder: Path, where: str) -> Path:
    """The file of a vocabulary.

    Args:
        name: a path if it begins as one, otherwise the name of a bundled vocabulary.
        folder: base of relative paths.
        where: origin of the name, for the error.
    """
    if name.startswith(("/", "./", "../", "~/")):
        file = (folder / Path(name).expanduser()).resolve()
        if not file.is_file():
            raise ConfigError(f"{where}: found {name!r}, expected a vocabulary; there is no file {file}")
        return file
    if name not in names():
        raise ConfigError(
            f"{where}: found {name!r}, expected the path of a vocabulary, beginning with /, ./, ../ or ~/, or one of "
            f"those that come with aimfair: {', '.join(names())}"
        )
    return BUNDLED / f"{name}.yaml"


def _known(_: str) -> str:
    return f"; expected one of {', '.join(Vocabulary.model_fields)}"


def _is_there(tree: Any, place: tuple[str, ...]) -> bool:
    for part in place:
        if not isinstance(tree, dict):
            return True  # another value is in the way; the validation refuses it
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _remove(tree: Any, place: tuple[str, ...]) -> None:
    for part in place[:-1]:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(place[-1], None)


def put(tree: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Sets a value in nested dicts; a value of the file that is in the way stays and is refused by the validation."""
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            return
    tree[key[-1]] = value
