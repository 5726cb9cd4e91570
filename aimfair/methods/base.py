"""What every method has, and what stages and reports ask of it."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from aimfair.base.settings import Settings
from aimfair.training.settings import FinetuneSettings, OptimizerSettings

if TYPE_CHECKING:
    from aimfair.methods.work import Trained, Work

BIASED = "biased"
"""The name, beside those of methods, of the model that no method has touched."""

OF_TRAINING = ("lr", "epochs", "weight_decay", "batchnorm")
"""What a method may set in place of the settings ``train`` or ``finetune``."""


class MethodSettings(Settings):
    """A method: by default a new model, trained with the settings ``train`` from the biased model's initial weights.

    Subclasses declare ``kind`` as a Literal with a default.
    """

    kind: str
    lr: float | None = Field(None, gt=0, description="instead of finetune.lr, or of train.lr for a new model")
    epochs: int | None = Field(None, ge=1, le=10**6, description="instead of finetune.epochs, or of train.epochs")
    weight_decay: float | None = Field(None, ge=0, description="instead of finetune's, or of train's")

    from_biased: ClassVar[bool] = False
    """Whether it starts from the biased model, else from the initial weights."""
    records: ClassVar[tuple[str, ...]] = ()
    """Files that it leaves beside the model and its history."""

    @property
    def uses_synthetic(self) -> bool:
        """Whether it trains on the balanced synthetic images."""
        return False

    @property
    def trains_on_real(self) -> bool:
        """Whether the biased real images train the model, after the biased one."""
        return not self.from_biased

    @property
    def reads_groups(self) -> bool:
        """Whether it uses group labels of real images, of training or validation."""
        return False

    @property
    def trains_on_validation(self) -> bool:
        """Whether real validation images train the model."""
        return False

    @property
    def least_epochs(self) -> int:
        """Epochs that its training must have."""
        return 1

    @property
    def own(self) -> dict[str, Any]:
        """What the result depends on besides the settings of its training and outputs of other steps."""
        return self.model_dump(exclude=set(OF_TRAINING))

    def upstream(self, seed: int, name: str) -> list[str]:
        """The steps of a run whose outputs it reads, under the name ``name``."""
        steps = ["generate"] if self.uses_synthetic else []
        return [*steps, f"train/{seed}"] if self.from_biased else steps

    def training_settings(self, train: OptimizerSettings, finetune: FinetuneSettings) -> OptimizerSettings:
        """The settings of its training: the node ``train`` or ``finetune`` with what the method sets itself."""
        common = finetune if self.from_biased else train
        return common.model_copy(update=self.model_dump(include=set(OF_TRAINING), exclude_none=True))

    @abstractmethod
    def run(self, work: "Work") -> "Trained":
        """Trains the model."""

    @abstractmethod
    def summary(self, density: float | None = None, images: int = 0) -> str:
        """What it does, to follow its name: what it trains, from which weights, on which images.

        Args:
            density: selected share of the weights; None: nothing is selected, or it is unknown.
            images: in the balanced synthetic set; 0: unknown.
        """

    def model_card(self, settings: str, density: float | None = None, images: int = 0) -> str:
        """The section on the method in a model card.

        Args:
            settings: those given, formatted. others: as :meth:`summary`.
        """
        summary = self.summary(density, images)
        return f"Kind `{self.kind}`, a baseline from the literature ({settings}): it {summary}. {self.group_labels}"

    @property
    def group_labels(self) -> str:
        if self.reads_groups:
            return "Its training reads the protected attribute of real images."
        return "No step of its training reads the protected attribute of a real image."


class FinetuneMethod(MethodSettings):
    """A method that starts from the biased model, with the settings ``finetune``."""

    batchnorm: Literal["freeze", "adapt"] | None = Field(None, description="instead of finetune.batchnorm")

    from_biased: ClassVar[bool] = True

    def training_settings(self, train: OptimizerSettings, finetune: FinetuneSettings) -> FinetuneSettings:
        settings = super().training_settings(train, finetune)
        assert isinstance(settings, FinetuneSettings)
        return settings


def synthetic_images(count: int) -> str:
    """For example "1,200 balanced synthetic images"; 0: their number is unknown."""
    return f"{count:,} balanced synthetic images" if count else "balanced synthetic images"
