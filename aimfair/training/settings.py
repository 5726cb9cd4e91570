"""Settings of trainings and of gradients."""

from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import Problem, Settings


class AugmentSettings(Settings):
    """Random changes of training images."""

    shift: int = Field(0, ge=0, description="pixels, at most, along each axis")
    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="least and greatest area of a random resized crop")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="least and greatest width over height of it")
    flip: bool = Field(False, description="left to right, half of the images")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, (low, high), limit in (("crop_scale", self.crop_scale, 1.0), ("crop_ratio", self.crop_ratio, 100.0)):
            if not 0 < low <= high <= limit:
                raise Problem((name,), f"found [{low}, {high}], expected 0 < least <= greatest <= {limit:g}")
        return self


class OptimizerSettings(Settings):
    """One training."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="which optimizer")
    lr: float = Field(1e-3, gt=0, description="learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, coupled for sgd")
    epochs: int = Field(15, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images in one step; kept when memory forces smaller parts")
    schedule: Literal["constant", "step", "cosine"] = Field("constant", description="course of the learning rate")
    step_epochs: int = Field(10, ge=1, description="step only: epochs between divisions of lr by 10")
    keep: Literal["last", "best_validation"] = Field("last", description="which epoch's weights are kept")
    augment: AugmentSettings = AugmentSettings()


class FinetuneSettings(OptimizerSettings):
    """Fine-tuning on balanced synthetic images."""

    batchnorm: Literal["freeze", "adapt"] = Field(
        "freeze", description="running statistics: as the biased model has them, or following the synthetic images"
    )
    state: Literal["dense", "compact"] = Field(
        "compact", description="optimizer state of all weights, or of the selected ones"
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
