"""What an ablation compares: arms, each a method in a run that varies the one it began with."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.config.errors import explain
from aimfair.methods import MethodSettings, Tune
from aimfair.run.directory import Run

Fact = str | float | int | None

ONLY_GROUP = "arms"
"""The run of ablations whose arms differ in methods alone."""


@dataclass(frozen=True)
class Parent:
    """The run that is varied.

    Attributes:
        run: open; prompts, images, biased models and sensitivity are finished.
        config: what its variants begin with: its own settings under the flags.
        flags: keys of those flags.
        folder: of the ablation; its variants lie within.
        overwrite: whether variants of other settings may be replaced. quiet: whether they show their progress.
    """

    run: Run
    config: Config
    flags: frozenset[str]
    folder: Path
    overwrite: bool = False
    quiet: bool = True


@dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        label: what people read.
        group: the run it is in. method: its name there.
        x: where it stands on an axis; None: it stands on none.
        facts: column -> what is particular to it.
    """

    label: str
    method: str
    group: str = ONLY_GROUP
    x: float | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        question: a sentence on what is compared and how.
        groups: name -> settings of the run.
        arms: in the order of the table.
        reference: label of the arm that the others are compared with; None: the biased model.
        notes: what the reader must know, such as what was left out and why.

    Raises:
        ConfigError: two arms have one label, as their values are almost the same.
    """

    title: str
    question: str
    groups: Mapping[str, Config]
    arms: list[Arm]
    reference: str | None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        if twice := next((label for i, label in enumerate(labels) if label in labels[:i]), None):
            raise ConfigError(
                f"{self.title}: two arms are called {twice!r}, as their values are too near; leave one out"
            )


def variant(config: Config, methods: Mapping[str, MethodSettings], default: str, **changes: Any) -> Config:
    """The settings of a run with these methods.

    Args:
        changes: node -> key -> value, of what else differs: ``generate={"bias": 0.5}``.

    Raises:
        ConfigError: they cannot be used.
    """
    tree = config.model_dump(mode="json")
    for node, values in changes.items():
        tree[node] |= values
    tree["methods"] = {name: method.model_dump(mode="json") for name, method in methods.items()}
    tree["default_method"] = default
    try:
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(explain(error.errors()[0], tree, {(): "ablate"}, lambda _: "")) from error


class Names:
    """Names for methods of a run. One that the parent has, too, keeps its name, so that nothing of it is done again."""

    def __init__(self, config: Config):
        self._config = config
        self.methods: dict[str, MethodSettings] = {}

    def add(self, wish: str, method: MethodSettings) -> str:
        """Takes a method in, if it is new; the name it has."""
        for name, known in [*self.methods.items(), *self._config.methods.items()]:
            if known == method:
                self.methods[name] = method
                return name
        stem = re.sub(r"[^A-Za-z0-9-]+", "_", wish).strip("_-")[:56] or "arm"
        taken = self.methods.keys() | self._config.methods.keys()
        name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(2, 1000))) if name not in taken)
        self.methods[name] = method
        return name


def full_method(config: Config) -> Tune:
    """Full fine-tuning, as the parent has it, or with the settings of finetune."""
    tuned = (method for method in config.methods.values() if isinstance(method, Tune) and method.rule == "all")
    return next((method for method in tuned if not method.freeze), Tune(rule="all"))
