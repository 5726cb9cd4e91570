"""The processes that train one model together, as torchrun starts them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt
from aimfair.base.ranks import ALONE, Ranks
from aimfair.data.images import ImageSet
from aimfair.training.checkpoint import Checkpoint
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

    @property
    def sharded(self) -> bool:
        """Whether each holds a part of the model."""
        return self.several and self.settings.strategy == "fsdp2"

    def agreed(self, interrupt: Interrupt, due: bool = False) -> tuple[Interrupt, bool]:
        """The signals that have come to any of the processes, and ``due`` of process 0; every process calls this, and
        gets the same."""
        if not self.several:
            return interrupt, due
        values = self.ranks.concatenate(torch.tensor([[interrupt.signal, int(due)]]), [1] * self.ranks.size)
        result = Interrupt()
        if number := int(values[:, 0].max()):
            result.request(number)
        return result, bool(values[0, 1])

    def checkpoint(self, folder: Path, seconds: float, inputs: str = "") -> Checkpoint:
        """That of a training of these processes."""
        if not self.sharded:
            return Checkpoint(folder, seconds, inputs)
        from aimfair.training.sharded_checkpoint import ShardedCheckpoint

        return ShardedCheckpoint(folder, seconds, inputs)


def require_same_images(ranks: Ranks, sets: Mapping[str, ImageSet]) -> None:
    """Called by every process, before they share work on these images.

    Args:
        sets: by name; see :meth:`ImageSet.digest_of_some` for what is compared.

    Raises:
        AimfairError: in every process, with the first set that differs.
    """
    if ranks.size > 1:
        digests = {name: images.digest_of_some() for name, images in sets.items()}
        ranks.require_same(digests, "all need the same files and data")


@contextmanager
def out_of_memory(ranks: Ranks, doing: str, advice: str = "") -> Iterator[None]:
    """Names the process that runs out of memory inside, and what helps.

    Args:
        doing: to follow "out of memory". advice: to precede what always helps.

    Raises:
        AimfairError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AimfairError(
            f"process {ranks.rank}: out of memory {doing}; {advice}start more processes, or set model.checkpointing to"
            " true"
        ) from error


ONE = Processes()
