"""Settings of the classifier, of its training and of its gradients."""

import os
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from aimfair.base.settings import FolderOrName, Problem, Settings, is_url
from aimfair.data.settings import AugmentSettings

_LIBRARIES = ("timm", "torchvision")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ModelSettings(Settings):
    """The classifier."""

    pretrained: FolderOrName | None = Field(
        None,
        description="an image classifier or backbone: of transformers a folder (beginning with /, ./, ../ or ~/) or an"
        " id on the hub, with or without hf: before it; or timm:<name>; or torchvision:<name>, followed by /<weights>"
        " for others than its default ones; a folder may also be one of timm's or a model of a run",
    )
    factory: str | None = Field(
        None,
        description="instead of pretrained: what makes a model with random weights, or its own: timm:<name>,"
        " torchvision:<name> or module:function of yours, which is called as function(num_classes=..., **config)",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of factory; without one those of a transformers configuration, with model_type",
    )
    allow_download: bool = Field(False, description="may fetch pretrained from the hub")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="subtracted from red, green, blue in [0, 1]")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="divides them after that")

    autocast: Literal["bfloat16"] | None = Field(
        None, description="dtype of matrix products and convolutions; weights stay float32"
    )
    channels_last: bool = Field(True, description="images and activations channels last in memory")
    compile: bool = Field(False, description="run the model through torch.compile")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass instead of keeping them")

    @property
    def source(self) -> tuple[str, str]:
        """Library and name of ``pretrained``, or of ``factory``: hf, folder, timm, torchvision or own.

        Raises:
            ValueError: the model is one of ``config`` alone.
        """
        text = self.pretrained or self.factory
        if text is None:
            raise ValueError("neither model.pretrained nor model.factory is given")
        library, _, name = text.partition(":")
        if library in _LIBRARIES:
            return library, name
        if self.pretrained is None:
            return "own", text
        return ("folder" if os.path.isabs(text) or is_url(text) else "hf"), text

    @property
    def label(self) -> str:
        """The setting that names the model, and its value, for errors."""
        if self.pretrained or self.factory:
            key = "pretrained" if self.pretrained else "factory"
            return f"model.{key}: {getattr(self, key)}"
        return f"model.config: {self.config.get('model_type')}"

    @property
    def of_training(self) -> dict[str, Any]:
        """What a training from the initial weights depends on."""
        return self.model_dump(mode="json", exclude={"allow_download", "checkpointing"})

    @property
    def computation(self) -> dict[str, Any]:
        """What decides the logits besides the weights."""
        return self.model_dump(mode="json", include={"mean", "std", "autocast", "channels_last", "compile"})

    @field_validator("pretrained", mode="before")
    @classmethod
    def _without_prefix(cls, value: Any) -> Any:
        return value.removeprefix("hf:") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, text in (("pretrained", self.pretrained), ("factory", self.factory)):
            if text is None:
                continue
            library, colon, name = text.partition(":")
            if key == "factory" and library not in _LIBRARIES and not _FUNCTION.fullmatch(text):
                raise Problem((key,), f"found {text!r}, expected timm:<name>, torchvision:<name> or module:function")
            if (
                key == "pretrained"
                and colon
                and library not in _LIBRARIES
                and not (os.path.isabs(text) or is_url(text))
            ):
                raise Problem((key,), f"found {text!r}, expected hf:, timm: or torchvision: before the colon")
            if library in _LIBRARIES and (not name or name.startswith((".", "/", "~"))):
                raise Problem((key,), f"found {text!r}, expected a name after {library}:; a folder goes without it")
        if self.compile and self.checkpointing:
            raise Problem(("checkpointing",), "torch.compile decides itself what to recompute; give one of the two")
        if self.pretrained is not None:
            for name in ("factory", "config"):
                if getattr(self, name):
                    raise Problem((name,), "model.pretrained is given too; give one of the two")
        if self.config and self.factory is None and not isinstance(self.config.get("model_type"), str):
            raise Problem(("config",), "model_type is missing, for example model_type: resnet")
        if min(self.std) <= 0:
            raise Problem(("std",), f"found {list(self.std)}, expected numbers above 0")
        return self


class OptimizerSettings(Settings):
    """One training."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="which optimizer")
    lr: float = Field(1e-3, gt=0, description="learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, coupled for sgd")
    epochs: int = Field(15, ge=1, le=10**6, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images in one step; kept when memory forces smaller parts")
    schedule: Literal["constant", "step", "cosine"] = Field("constant", description="course of the learning rate")
    step_epochs: int = Field(10, ge=1, description="step only: epochs between divisions of lr by 10")
    keep: Literal["last", "best_validation"] = Field("last", description="which epoch's weights are kept")
    augment: AugmentSettings = AugmentSettings()
    step_in_backward: bool = Field(
        False,
        description="step every tensor as soon as its gradient is complete, which is then freed: the same weights with"
        " up to 4 bytes less per weight, but not with ddp; a step that is not finite ends the training",
    )

    @property
    def of_result(self) -> dict[str, Any]:
        """What the result depends on."""
        return self.model_dump(mode="json", exclude={"step_in_backward", "offload"})


class FinetuneSettings(OptimizerSettings):
    """Fine-tuning on balanced synthetic images."""

    batchnorm: Literal["freeze", "adapt"] = Field(
        "freeze", description="running statistics: as the biased model has them, or following the synthetic images"
    )
    state: Literal["dense", "compact"] = Field(
        "compact", description="optimizer state of all weights, or of the selected ones"
    )
    offload: bool = Field(
        False, description="on a GPU, with compact: optimizer state in pinned host memory, copied for every step"
    )

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        if self.offload and self.state != "compact":
            raise Problem(("offload",), f"needs state: compact, found {self.state}; leave one of the two out")
        return self


class DistributedSettings(Settings):
    """Several processes, as torchrun starts them; without it these settings have no effect."""

    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp: every process holds the whole model; fsdp2: a part of every tensor, for large models"
    )
    batchnorm: Literal["synchronised", "local"] = Field(
        "synchronised",
        description="statistics in training mode: of the whole batch, as in one process, or of each process's share of"
        " it; running statistics are then averaged after each step",
    )
    timeout: float = Field(
        10.0, gt=0, description="minutes after which a process that does not join a common operation ends the job"
    )


KEPT_FOR = {
    "difference": ("all", "sum", "signed"),
    "relative_difference": ("all", "sum"),
    "cosine": ("all", "sum"),
    "magnitude": ("all", "sum"),
    "norm_ratio": ("all",),
    "fisher": ("all",),
}
"""Criterion -> what ``sensitivity.statistics`` may be for it."""


class SensitivitySettings(Settings):
    """Gradients of the biased model on real biased, synthetic biased and synthetic fair images."""

    batch_size: int = Field(64, ge=1, description="images whose mean loss gives one gradient")
    batches: int | None = Field(None, ge=1, description="of each source, at most; null: all of the smallest source")
    statistics: Literal["all", "sum", "signed"] = Field(
        "all",
        description="kept of every weight: all: sums and squares, 24 bytes; sum: sums, 12 bytes, for difference,"
        " relative_difference, cosine and magnitude; signed: two differences, 8 bytes, for difference",
    )
    train_mode: bool = Field(
        False, description="gradients with BatchNorm and dropout in training mode, as the paper takes them"
    )
