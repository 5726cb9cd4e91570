"""Methods: what each trains, on which images, and with which optimizer. ``choose`` knows them all by their kind."""

from aimfair.training.methods.optimizer import build_optimizer
from aimfair.training.methods.selection import select_mask
from aimfair.training.methods.settings import finetune_settings, train_settings

__all__ = ["build_optimizer", "finetune_settings", "select_mask", "train_settings"]
