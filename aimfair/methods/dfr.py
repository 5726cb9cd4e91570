"""Deep feature reweighting (Kirichenko et al., arXiv 2204.02937): the last layer anew, on images of balanced groups."""

import torch
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.methods.work import Trained, Work
from aimfair.selective.mask import ParameterMask
from aimfair.selective.rules import names_under
from aimfair.training.head import head_names
from aimfair.training.samplers import EqualGroups


def dfr(work: Work) -> Trained:
    """Trains the head of the biased model, from zero weights, with every group equally often.

    On the real validation images (DFR-Val, which reads their group labels) or on the balanced synthetic ones. The
    publication fits a logistic regression with an L1 penalty on embeddings, and averages it over ten balanced subsets;
    here the head goes through the loop of all methods, for its augmentation, checkpoints and settings: weight decay
    stands in for the penalty, and balanced subsets drawn anew in each epoch for the average. All other weights stay.
    """
    model = work.biased()
    images = work.splits().validation if work.method.balanced_from == "real" else work.balanced()
    mask = head_mask(work, model, images.images.shape[1])
    clear_head(model, mask)
    return work.tune(model, mask, images, EqualGroups(work.groups(images)[0]))


def head_mask(work: Work, model: nn.Module, image_size: int) -> ParameterMask:
    """The last layer: what the method names as its head, or what the logits come from.

    Raises:
        AimfairError: nothing has that name, or without one the layer cannot be told.
    """
    if work.method.head is None:
        return ParameterMask.from_names(model, head_names(model, image_size, work.name))
    try:
        return ParameterMask.from_names(model, names_under(ParameterMask.full(model).names, [work.method.head]))
    except ValueError as error:
        raise AimfairError(f"{work.name}: head: {error}") from error


@torch.no_grad()
def clear_head(model: nn.Module, mask: ParameterMask) -> None:
    """Sets the selected tensors to zero: cross-entropy of a linear layer is convex, so that any start will do."""
    selected = dict(zip(mask.names, mask.nnz_per_tensor, strict=True))
    for name, parameter in model.named_parameters():
        if selected.get(name):
            parameter.zero_()
