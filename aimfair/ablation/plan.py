"""What an ablation compares: arms, each a method in a variant of the parent run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.config.errors import explain
from aimfair.generation.manifest import Manifest
from aimfair.generation.plan import HELD_OUT
from aimfair.methods import MethodSettings, Tune
from aimfair.run.directory import Run

Fact = str | float | int | None

ONLY_GROUP = "arms"
"""The run of ablations whose arms differ only in their methods."""

FOLDER = "generate.folder"
"""The setting of where a run copies synthetic images from; given as a flag, it overrides the parent's images."""


@dataclass(frozen=True)
class Parent:
    """The run that is varied.

    Attributes:
        run: open; prompts, images, biased models and sensitivity are finished.
        config: the base of its variants: its own settings with the flags applied.
        flags: keys of those flags.
        folder: of the ablation, which contains its variants.
        overwrite: whether variants with other settings may be replaced. quiet: whether they hide their progress.
    """

    run: Run
    config: Config
    flags: frozenset[str]
    folder: Path
    overwrite: bool = False
    quiet: bool = True


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        label: on pages and in tables.
        group: the run it is in. method: its name there.
        x: position on the axis of the sweep; None: it has none.
        facts: column -> what distinguishes it.
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
        notes: caveats, such as what was left out and why.

    Raises:
        ConfigError: two arms have the same label, because their values are almost equal.
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
                f"{self.title}: two arms have the label {twice!r}, because their values are too close; drop one"
            )


def variant(config: Config, methods: Mapping[str, MethodSettings], default: str, **changes: Any) -> Config:
    """The settings of a run with these methods.

    Args:
        changes: node -> key -> value of further changes: ``generate={"minority_ratio": 0.5}``.

    Raises:
        ConfigError: they are invalid.
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
    """Names for methods of a variant. A method of the parent keeps its name, so that none of its work is repeated."""

    def __init__(self, config: Config):
        self._config = config
        self.methods: dict[str, MethodSettings] = {}

    def add(self, wish: str, method: MethodSettings) -> str:
        """Adds a method if it is new; returns its name."""
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
    """Full fine-tuning as the parent has it, else with the settings of finetune."""
    tuned = (method for method in config.methods.values() if isinstance(method, Tune) and method.rule == "all")
    return next((method for method in tuned if not method.freeze), Tune(rule="all"))


def available_images(parent: Parent) -> npt.NDArray[np.int64]:
    """int64 [Y, A]: synthetic images of each group that the parent has, in any set but held-out pairs."""
    targets, protected = len(parent.config.prompts.targets), len(parent.config.prompts.protected)
    counts = np.zeros((targets, protected), dtype=np.int64)
    for record in Manifest(parent.run.synthetic).records.values():
        if HELD_OUT not in record.sets:
            counts[record.group] += 1
    return counts


def from_parent(parent: Parent, **settings: Any) -> Mapping[str, Any]:
    """Settings of ``generate`` for a variant that draws from the parent's images instead of generating new ones.

    These have passed the parent's filters; what it made in pairs is drawn one by one.
    """
    if FOLDER in parent.flags:
        return settings
    drawn: dict[str, Any] = {"folder": str(parent.run.synthetic.resolve()), "emoji": None, "pairs": None, "filters": {}}
    return {**drawn, **settings}
