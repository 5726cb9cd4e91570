"""The processes that train one model together, as torchrun starts them."""

from dataclasses import dataclass

import torch

from aimfair.base.interrupt import Interrupt
from aimfair.base.ranks import ALONE, Ranks
from aimfair.training.settings import DistributedSettings

_DEFAULTS = DistributedSettings()


@dataclass(frozen=True)
class Processes:
    """Those that call a function of this folder together, and how they share its work."""

    ranks: Ranks = ALONE
    settings: DistributedSettings = _DEFAULTS

    @property
    def several(self) -> bool:
        return self.ranks.size > 1

    def agreed(self, interrupt: Interrupt) -> Interrupt:
        """The signals that have come to any of the processes; every process calls this, and gets the same."""
        if not self.several:
            return interrupt
        signals = self.ranks.concatenate(torch.tensor([interrupt.signal]), [1] * self.ranks.size)
        result = Interrupt()
        if number := int(signals.max()):
            result.request(number)
        return result


ONE = Processes()
