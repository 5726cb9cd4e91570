"""Settings of the classifier."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from aimfair.config.node import FolderOrName, Problem, Settings


class ModelSettings(Settings):
    """The classifier."""

    pretrained: FolderOrName | None = Field(
        None,
        description="an image classifier or backbone: of transformers a folder (beginning with /, ./, ../ or ~/) or an"
        " id on the hub, with or without hf: before it; or timm:<name>; or torchvision:<name>",
    )
    factory: str | None = Field(
        None,
        description="instead of pretrained: what makes a model with random weights, or its own: timm:<name>,"
        " torchvision:<name> or module:function of yours",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of factory; without one those of a transformers configuration, with model_type",
    )
    allow_download: bool = Field(False, description="may fetch pretrained from the hub")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="subtracted from red, green, blue in [0, 1]")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="divides them then")

    autocast: Literal["bfloat16"] | None = Field(
        None, description="type that matrix products and convolutions are computed in; weights stay float32"
    )
    channels_last: bool = Field(True, description="images and activations channels last in memory")
    compile: bool = Field(False, description="run the model through torch.compile")
    checkpointing: bool = Field(
        False, description="compute activations a second time in the backward pass instead of keeping them"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is not None:
            for name in ("factory", "config"):
                if getattr(self, name):
                    raise Problem((name,), "model.pretrained is given too; give one of the two")
        if self.config and self.factory is None and not isinstance(self.config.get("model_type"), str):
            raise Problem(("config",), "model_type is missing, for example model_type: resnet")
        if min(self.std) <= 0:
            raise Problem(("std",), f"found {list(self.std)}, expected numbers above 0")
        return self
