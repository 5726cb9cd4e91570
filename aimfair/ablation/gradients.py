"""The gradients that a run has accumulated."""

from aimfair.errors import AimfairError
from aimfair.run.directory import Run
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.models import load_model


def sensitivity_of(run: Run, seed: int) -> Sensitivity:
    """That of one seed, on the CPU.

    Raises:
        AimfairError: the file is damaged or for another model.
    """
    try:
        return Sensitivity.load(run.sensitivity(seed), load_model(run.baseline(seed)))
    except ValueError as error:
        raise AimfairError(f"{error}; remove it and do: aimfair sensitivity --run {run.path}") from error
