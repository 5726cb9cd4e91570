"""The settings of a training with what a method says instead."""

from aimfair.methods.method_settings import MethodSettings
from aimfair.training.settings import FinetuneSettings, OptimizerSettings

OWN = ("lr", "epochs", "weight_decay")
"""What every method may set for itself."""


def train_settings(common: OptimizerSettings, method: MethodSettings) -> OptimizerSettings:
    """Of a method that trains a model anew; ``common`` is how the biased model was trained."""
    return common.model_copy(update=method.model_dump(include=set(OWN), exclude_none=True))


def finetune_settings(common: FinetuneSettings, method: MethodSettings) -> FinetuneSettings:
    """Of a method that starts from the biased model.

    Of ``dfr`` running statistics stay as they are unless it says otherwise: it is about the last layer. Where its
    training images are those that would choose the epoch, the last is kept.
    """
    instead = method.model_dump(include={*OWN, "batchnorm"}, exclude_none=True)
    if method.kind == "dfr":
        instead.setdefault("batchnorm", "freeze")
        if method.balanced_from == "real":
            instead["keep"] = "last"
    return common.model_copy(update=instead)
