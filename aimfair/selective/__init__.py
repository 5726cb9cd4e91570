"""Selective tuning: measure gradient sensitivity, select elements, step only those. Knows nothing of any task."""

from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW, MaskedSGD
from aimfair.selective.sensitivity import Sensitivity

__all__ = ["MaskedAdamW", "MaskedSGD", "ParameterMask", "Sensitivity"]
