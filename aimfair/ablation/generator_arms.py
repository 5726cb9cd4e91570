"""The arms of the ablation of generators, from ``--values``: settings of generate that are tried beside the run's."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from aimfair.ablation.plan import Fact
from aimfair.base.errors import ConfigError
from aimfair.config import Config, strict_yaml
from aimfair.config import load as config_file
from aimfair.generation.settings import GenerateSettings

EXAMPLE = "'steps=4;steps=8,guidance_scale=1.5'"

_FLAG, _NODE = "--values", "generate."

_CLOSED_BY = {"[": "]", "{": "}"}
_BEFORE_VALUES = ("", "=", ",", ";", ":", "[", "{")

_SAME_FOR_ALL = {
    "folder", "emoji", "pairs", "balanced_per_group", "biased_total", "minority_ratio", "disjoint", "image_format",
    "storage", "images_per_shard",
}  # fmt: skip
"""Settings of generate that say which images are made, not how."""

_VARIED = sorted(GenerateSettings.model_fields.keys() - _SAME_FOR_ALL)


@dataclass(frozen=True)
class GeneratorArm:
    """
    Attributes:
        label: its settings, as "steps=8,guidance_scale=1.5".
        config: the settings of its run.
        keys: dotted keys in generate that it sets.
    """

    label: str
    config: Config
    keys: tuple[str, ...]

    @property
    def is_redraw(self) -> bool:
        """Whether it is the run itself with other noise."""
        return self.keys == ("seed",)

    @property
    def group(self) -> str:
        """The name of its run: equal settings find their images again."""
        return re.sub(r"[^A-Za-z0-9_,=+-]", lambda found: "." if found[0] == "." else f"%{ord(found[0]):x}", self.label)


def read_arms(typed: str | None, config: Config) -> tuple[list[GeneratorArm], list[str]]:
    """The arms besides the run itself, and the labels of those that are the run itself.

    Args:
        typed: arms separated by semicolons, settings of an arm by commas; None: a quarter, half and twice the steps.

    Raises:
        ConfigError: naming the arm.
    """
    if typed is None:
        own = config.generate.steps
        typed = ";".join(f"steps={steps}" for steps in sorted({max(1, own // 4), max(1, own // 2), 2 * own} - {own}))
    arms: list[GeneratorArm] = []
    same: list[str] = []
    for text in _split(typed, ";"):
        arm = _arm(text, config)
        if arm.config == config:
            same.append(arm.label)
            continue
        if twin := next((one.label for one in arms if one.config == arm.config), None):
            raise ConfigError(f"{_FLAG}: the arms {twin!r} and {arm.label!r} have the same settings; drop one")
        arms.append(arm)
    if not arms:
        found = f"{', '.join(map(repr, same))}, the settings of the run itself" if same else repr(typed)
        raise ConfigError(f"{_FLAG}: found {found}; expected arms to compare with the run, as in {EXAMPLE}")
    for arm in arms:
        if len(arm.group) > 200:
            raise ConfigError(f"{_FLAG}: arm {arm.label!r} has {len(arm.label)} characters, expected at most 200")
    return arms, same


def facts_of(config: Config, arms: Sequence[GeneratorArm]) -> Mapping[str, Fact]:
    """Every key that an arm sets -> its value in ``config``."""
    tree = config.generate.model_dump(mode="json")
    return {key: _fact(tree, key) for arm in arms for key in arm.keys}


def _arm(text: str, config: Config) -> GeneratorArm:
    overrides: dict[str, str] = {}
    for setting in _split(text, ","):
        key, equals, value = (part.strip() for part in setting.partition("="))
        key = key.removeprefix(_NODE)
        if not (equals and key and value):
            raise ConfigError(f"{_FLAG}: arm {text!r}: found {setting!r}, expected key=value, as in {EXAMPLE}")
        if key in overrides:
            raise ConfigError(f"{_FLAG}: arm {text!r} sets {key} twice")
        if key.partition(".")[0] in _SAME_FOR_ALL:
            raise ConfigError(
                f"{_FLAG}: arm {text!r}: {_NODE}{key} is the same for all arms; expected one of {', '.join(_VARIED)}"
            )
        overrides[key] = _unquoted(value)
    label = ",".join(f"{key}={value}" for key, value in overrides.items())
    try:
        changed = config_file.changed(config, {_NODE + key: value for key, value in overrides.items()})
    except ConfigError as error:
        fault = str(error).splitlines()[0].removeprefix(f"--{_NODE}")
        raise ConfigError(f"{_FLAG}: arm {text!r}: {fault}") from error
    return GeneratorArm(label, changed, tuple(overrides))


def _split(text: str, at: str) -> list[str]:
    """Parts without space around them, empty ones left out; what is in brackets or quotes is not split.

    A quote begins, as in YAML, only where a value does: an apostrophe within a word is none.

    Raises:
        ConfigError: a bracket or quote has no partner.
    """
    parts, begin, brackets, quote, before = list[str](), 0, list[str](), "", ""
    for place, letter in enumerate(text):
        if quote:
            if letter == quote and not (quote == '"' and before == "\\"):
                quote = ""
            before = "" if before == "\\" else letter  # an escaped backslash escapes nothing
            continue
        if letter in "'\"" and (before in _BEFORE_VALUES or before == letter):  # '' within quotes is one quote
            quote = letter
        elif letter in _CLOSED_BY:
            brackets.append(letter)
        elif letter in _CLOSED_BY.values():
            if not brackets or _CLOSED_BY[brackets.pop()] != letter:
                raise ConfigError(f"{_FLAG}: {text!r}: found {letter!r} without the bracket that opens it")
        elif letter == at and not brackets:
            parts.append(text[begin:place])
            begin = place + 1
        if not letter.isspace():
            before = letter
    if quote or brackets:
        raise ConfigError(f"{_FLAG}: {text!r}: found {quote or brackets[-1]!r} that is not closed")
    return [part.strip() for part in (*parts, text[begin:]) if part.strip()]


def _unquoted(value: str) -> str:
    """A quoted value as YAML reads it; others unchanged."""
    if value[0] not in "'\"":
        return value
    try:
        return str(strict_yaml.parse(value)[0])
    except yaml.YAMLError as error:
        raise ConfigError(f"{_FLAG}: {value} is not YAML: {strict_yaml.reason(error)}") from error


def _fact(tree: Any, key: str) -> Fact:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, str | int | float) else json.dumps(tree)  # null, too, is a value
