"""Last-layer retraining on group-balanced images, after deep feature reweighting (Kirichenko et al., ICLR 2023,
arXiv 2204.02937)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aimfair.methods.base import FinetuneMethod, synthetic_images
from aimfair.training.settings import FinetuneSettings, OptimizerSettings

if TYPE_CHECKING:
    from torch import nn

    from aimfair.methods.work import Trained, Work
    from aimfair.selective.mask import ParameterMask


class LastLayerRetrain(FinetuneMethod):
    """Retrains the head of the biased model from zero weights, sampling every group equally often.

    On real validation images (as DFR-Val, which reads their group labels) or on the balanced synthetic ones. It is not
    DFR proper, which fits L1-regularised logistic regressions on embeddings and averages those of ten balanced
    subsets: here the head goes through the training loop of all methods, with its augmentation and checkpoints; weight
    decay replaces the penalty, and a new balanced subset in each epoch the average.
    """

    kind: Literal["last_layer_retrain"] = Field(
        "last_layer_retrain", description="the last layer of the biased model, on group-balanced images"
    )
    balanced_from: Literal["real", "synthetic"] = Field(
        "real", description="last_layer_retrain: its images: the validation set balanced by group, or synthetic ones"
    )
    head: str | None = Field(
        None, description="head_only, last_layer_retrain: name of the last layer; null: what computes the logits"
    )

    @property
    def uses_synthetic(self) -> bool:
        return self.balanced_from == "synthetic"

    @property
    def reads_groups(self) -> bool:
        return self.balanced_from == "real"

    @property
    def trains_on_validation(self) -> bool:
        return self.balanced_from == "real"

    def training_settings(self, train: OptimizerSettings, finetune: FinetuneSettings) -> FinetuneSettings:
        """BatchNorm is frozen unless the method says otherwise. Validation images that train the head do not choose
        its epoch: the last is kept."""
        own: dict[str, object] = {"batchnorm": self.batchnorm or "freeze"}
        if self.balanced_from == "real":
            own["keep"] = "last"
        return super().training_settings(train, finetune).model_copy(update=own)

    def run(self, work: "Work") -> "Trained":
        from aimfair.training.samplers import EqualGroups

        model = work.biased()
        images = work.splits().validation if self.balanced_from == "real" else work.balanced()
        mask = self._head_mask(work.name, model, images.images.shape[1])
        _clear(model, mask)
        return work.fit(work.training(model, images, mask=mask, sampler=EqualGroups(work.groups(images)[0])))

    def summary(self, density: float | None = None, images: int = 0) -> str:
        real = "real validation images, balanced by group"
        return (
            f"retrains the last layer of the biased model on {real if self.reads_groups else synthetic_images(images)}"
        )

    def _head_mask(self, name: str, model: "nn.Module", image_size: int) -> "ParameterMask":
        """Selects the last layer: the one that the method names, or the one that computes the logits.

        Raises:
            AimfairError: there is no layer of that name, or without a name the layer cannot be found.
        """
        from aimfair.base.errors import AimfairError
        from aimfair.selective.mask import ParameterMask
        from aimfair.selective.selection import names_under
        from aimfair.training.head import head_names

        if self.head is None:
            return ParameterMask.from_names(model, head_names(model, image_size, name))
        try:
            return ParameterMask.from_names(model, names_under(ParameterMask.full(model).names, [self.head]))
        except ValueError as error:
            raise AimfairError(f"{name}: head: {error}") from error


def _clear(model: "nn.Module", mask: "ParameterMask") -> None:
    """Sets the selected tensors to zero: the cross-entropy of a linear layer is convex, so any start will do."""
    import torch

    selected = dict(zip(mask.names, mask.nnz_per_tensor, strict=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if selected.get(name):
                parameter.zero_()
