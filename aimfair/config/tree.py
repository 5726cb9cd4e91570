"""The settings of a run, assembled from the nodes that each part owns."""

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from aimfair.base.settings import Problem, Settings
from aimfair.cluster.settings import ClusterSettings
from aimfair.config.run_settings import RunSettings
from aimfair.data.settings import DataSettings
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.methods import BIASED, Method, Tune
from aimfair.prompts.settings import PromptSettings
from aimfair.training.settings import (
    KEPT_FOR,
    DistributedSettings,
    FinetuneSettings,
    ModelSettings,
    OptimizerSettings,
    SensitivitySettings,
)
from aimfair.tuning.settings import TuneSettings
from aimfair.tuning.space import Space, space_of

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")


class Config(Settings):
    """The settings of a run."""

    title: str = Field("aimfair run", description="heading of the report")
    seeds: list[int] = Field([100, 200, 300], min_length=1, description="one baseline and one of each method for each")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto: cuda where there is one")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null: torch's own choice")
    checkpoint_seconds: float = Field(30.0, ge=0, description="between checkpoints of a training")
    data: DataSettings = DataSettings()
    prompts: PromptSettings
    generate: GenerateSettings = GenerateSettings()
    model: ModelSettings
    train: OptimizerSettings = OptimizerSettings()
    sensitivity: SensitivitySettings = SensitivitySettings()
    finetune: FinetuneSettings = FinetuneSettings()
    methods: dict[str, Method] = Field(description="name -> how it selects; the biased model is always there")
    default_method: str = Field(description="the method of the report's headline")
    tune: TuneSettings = TuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    distributed: DistributedSettings = DistributedSettings()
    cluster: ClusterSettings = ClusterSettings()
    run: RunSettings = RunSettings()

    @property
    def tuned(self) -> list[str]:
        """The methods whose settings are tuned."""
        return [name for name in self.tune.methods or self.methods if self.tune.trials]

    def space(self, name: str) -> Space:
        """What is searched for a method."""
        method = self.methods[name]
        given = method.training_settings(self.train, self.finetune)
        return space_of(name, method, given, self.sensitivity.statistics, self.tune)

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not _DEVICE.fullmatch(device):
            raise Problem((), f"found {device!r}, expected auto, cpu, cuda or cuda:N")
        return device

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise Problem(("seeds",), f"found {self.seeds}, expected different numbers, none below 0")
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if not (self.model.pretrained or self.model.factory or self.model.config):
            raise Problem(("model",), "give model.pretrained, model.factory or model.config")
        return self

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if self.generate.in_use:
            try:
                self.prompts.check_writing()
            except Problem as problem:
                raise Problem(("prompts", *problem.key), str(problem)) from None
        return self

    @model_validator(mode="after")
    def _check_emoji(self) -> Self:
        if self.generate.emoji is not None and self.data.kind != "emoji":
            raise Problem(("generate", "emoji"), f"needs data.kind emoji, found {self.data.kind!r}; leave it out")
        return self

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        """Data and prompts must have the same numbers of classes and protected values."""
        targets, protected = len(self.prompts.targets), len(self.prompts.protected)
        shape = self.data.group_shape() or (targets, protected)  # the groups of a table are in its rows
        for key, found, expected, each in (
            ("targets", targets, shape[0], "class"),
            ("protected", protected, shape[1], "value"),
        ):
            if found != expected:
                raise Problem(
                    ("prompts", key), f"found {found} lists of words, expected {expected}, one for each {each}"
                )
        for attribute, check in self.generate.filters.attributes.items():
            values = targets if attribute == "target" else protected
            if check.labels and len(check.labels) != values:
                raise Problem(
                    ("generate", "filters", attribute, "labels"),
                    f"found {len(check.labels)} lists, expected {values}, one for each value",
                )
        majority = self.data.majority
        if len(majority) != targets:
            expected_here = f"expected {targets}, one for each of prompts.targets"
            raise Problem(("data", "majority"), f"found {len(majority)} numbers, {expected_here}")
        if not all(0 <= value < protected for value in majority):
            raise Problem(("data", "majority"), f"found {majority}, expected numbers from 0 to {protected - 1}")
        return self

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        """Sensitivity must keep what the criterion of each method reads."""
        kept = self.sensitivity.statistics
        for name, method in self.methods.items():
            if not isinstance(method, Tune) or not method.uses_gradients:
                continue
            for criterion in (method.criterion, method.domain_criterion or "difference"):
                if kept not in KEPT_FOR[criterion]:
                    raise Problem(
                        ("sensitivity", "statistics"),
                        f"found {kept!r}, but criterion {criterion!r} of methods.{name} needs"
                        f" {' or '.join(repr(needed) for needed in KEPT_FOR[criterion])}",
                    )
        return self

    @model_validator(mode="after")
    def _check_steps_in_backward(self) -> Self:
        for node in ("train", "finetune"):
            if self.model.compile and getattr(self, node).step_in_backward:
                raise Problem(
                    (node, "step_in_backward"),
                    "saves nothing with model.compile: all gradients of a compiled model are complete at the end of the"
                    " backward pass; give one of the two",
                )
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.model.compile and self.distributed.strategy == "fsdp2":
            raise Problem(("model", "compile"), "not with distributed.strategy fsdp2; set it to false, or take ddp")
        return self

    @model_validator(mode="after")
    def _check_epochs(self) -> Self:
        for name, method in self.methods.items():
            epochs = method.training_settings(self.train, self.finetune).epochs
            if epochs < method.least_epochs:
                raise Problem(
                    ("methods", name, "first_epochs"),
                    f"found {method.least_epochs}, expected at most {epochs}, the epochs of the training that is"
                    " stopped there",
                )
        return self

    @model_validator(mode="after")
    def _check_tune(self) -> Self:
        known = f"expected some of methods: {', '.join(self.methods) or 'none'}"
        for key, names in (("methods", self.tune.methods or []), ("fixed", list(self.tune.fixed))):
            if unknown := [name for name in names if name not in self.methods]:
                raise Problem(("tune", key), f"found {unknown[0]!r}, {known}")
        if self.tune.trials and self.tune.seeds > len(self.seeds):
            raise Problem(
                ("tune", "seeds"), f"found {self.tune.seeds}, expected at most {len(self.seeds)}, the number of seeds"
            )
        for name in self.tuned:
            self.space(name)
        if self.tuned and self.generate.folder is None:
            for node, key in ((self.prompts, "prompts.per_group"), (self.generate, "generate.balanced_per_group")):
                if (found := getattr(node, key.partition(".")[2])) < 2:
                    raise Problem(
                        tuple(key.split(".")),
                        f"found {found}, expected at least 2: tuning judges by prompts that do not train",
                    )
        return self

    @model_validator(mode="after")
    def _check_shifts(self) -> Self:
        size = self.data.image_size
        for key, settings in (("train", self.train), ("finetune", self.finetune)):
            if (shift := settings.augment.shift) >= size:
                raise Problem((key, "augment", "shift"), f"found {shift}, expected less than data.image_size, {size}")
        return self

    @model_validator(mode="after")
    def _check_method_names(self) -> Self:
        folders: dict[str, str] = {}  # some disks tell no case
        for name in self.methods:
            if name.lower() == BIASED or not _FILE_NAME.fullmatch(name):
                raise Problem(
                    ("methods", name),
                    f"expected a name of letters, digits, - and _, at most 64, and not {BIASED!r}",
                )
            if (other := folders.setdefault(name.lower(), name)) != name:
                raise Problem(("methods", name), f"differs from {other!r} only by case; give one of them another name")
        if self.default_method not in self.methods:
            raise Problem(
                ("default_method",),
                f"found {self.default_method!r}, expected one of methods: {', '.join(self.methods) or 'none'}",
            )
        return self
