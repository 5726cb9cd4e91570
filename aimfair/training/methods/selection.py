"""The masks of methods that tune."""

from aimfair.config import MethodSettings
from aimfair.errors import AimfairError
from aimfair.seeds import derive_seed
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity

FAIR = "synthetic_fair"
"""The source of criteria that look at one, unless a method names another."""

SELECTION = (
    "rule", "criterion", "domain_criterion", "granularity", "density", "k", "bias", "domain", "source", "head",
    "blocks", "freeze",
)  # fmt: skip
"""The settings of a method that decide its mask."""


def select_mask(sensitivity: Sensitivity, name: str, method: MethodSettings, seed: int) -> ParameterMask:
    """The mask of one method.

    Args:
        name: of the method, for errors.
        seed: of the rule ``random``.

    Raises:
        AimfairError: settings that do not go together, or select nothing.
    """
    arguments = method.model_dump(include=set(SELECTION), exclude_none=True)
    if method.criterion in ("fisher", "magnitude"):
        arguments.setdefault("source", FAIR)
    try:
        mask = sensitivity.select(**arguments, seed=derive_seed(seed, "random mask"))
    except (ValueError, FloatingPointError) as error:
        raise AimfairError(f"methods.{name}: {error}") from error
    if mask.nnz == 0:
        raise AimfairError(f"methods.{name}: the rule {method.rule} selects nothing; raise its density or shares")
    return mask
