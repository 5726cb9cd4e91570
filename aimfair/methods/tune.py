"""Selective tuning (arXiv 2503.05665): of the biased model a mask's weights move, on balanced synthetic images."""

from aimfair.methods.work import Trained, Work


def tune(work: Work) -> Trained:
    """By whatever rule the mask was selected: linear probe, full fine-tuning and single blocks are masks, too."""
    model = work.biased()
    return work.tune(model, work.mask(model), work.balanced())
