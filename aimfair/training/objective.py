"""What a training minimises, where it is not the mean loss of the images."""

from typing import Protocol

from torch import Tensor

from aimfair.training.samplers import Indices


class Objective(Protocol):
    """Weighs the losses of a batch; may have a state, which moves on with every step that is taken."""

    @property
    def depends_on(self) -> object:
        """What the weights follow from besides losses and state, as JSON can hold it."""

    def weights(self, losses: Tensor, indices: Indices) -> Tensor:
        """float32 [B]: the step minimises the sum of weight times loss, in which weights are constants.

        Asked once or more for a step; the state stays as it is until :meth:`accept`.

        Args:
            losses: float32 [B], detached. indices: of the images among the training images.
        """

    def accept(self) -> None:
        """The step that was last asked about is taken."""

    def state(self) -> list[float]:
        """For the checkpoint."""

    def restore(self, state: list[float]) -> None:
        """What :meth:`state` gave."""
