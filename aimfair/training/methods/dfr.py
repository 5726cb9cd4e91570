"""Deep feature reweighting (Kirichenko et al., arXiv 2204.02937): the last layer anew, on images of balanced groups."""

import torch
from torch import nn

from aimfair.selective.mask import ParameterMask
from aimfair.selective.rules import head_names
from aimfair.training.methods.work import Trained, Work
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
    mask = ParameterMask.from_names(model, head_names(ParameterMask.full(model).names))
    clear_head(model, mask)
    return work.tune(model, mask, images, EqualGroups(work.groups(images)[0]))


@torch.no_grad()
def clear_head(model: nn.Module, mask: ParameterMask) -> None:
    """Sets the selected tensors to zero: cross-entropy of a linear layer is convex, so that any start will do."""
    selected = dict(zip(mask.names, mask.nnz_per_tensor, strict=True))
    for name, parameter in model.named_parameters():
        if selected.get(name):
            parameter.zero_()
