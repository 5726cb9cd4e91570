"""The masks of methods that tune."""

from collections.abc import Callable, Sequence
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.base.seeds import derive_seed
from aimfair.methods.method_settings import SELECTION, MethodSettings
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.units import number_of_units, unit_counts

FAIR = "synthetic_fair"
"""The source of criteria that look at one, unless a method names another."""


def select_mask(
    sensitivity: Sensitivity,
    name: str,
    method: MethodSettings,
    seed: int,
    *,
    head: Callable[[], Sequence[str]] | None = None,
) -> ParameterMask:
    """The mask of one method.

    Args:
        name: of the method, for errors.
        seed: of the rule ``random``.
        head: finds the parameters of the model's last layer, asked for the rule ``head_only`` if the method names none;
            None: they are those of the module that was set up last.

    Raises:
        AimfairError: settings that do not go together, or select nothing.
    """
    arguments = method.model_dump(include=set(SELECTION) - {"density_of"}, exclude_none=True)
    arguments["seed"] = derive_seed(seed, "random mask")
    if method.criterion in ("fisher", "magnitude"):
        arguments.setdefault("source", FAIR)
    counts_units = method.granularity != "element" and method.rule in ("top_k", "ratio", "random")
    if method.rule == "head_only" and method.head is None and head is not None:
        arguments["head"] = head()
    try:
        if method.density_of == "weights" and counts_units:
            arguments["k"] = _fewest_units(sensitivity, arguments, arguments.pop("density"))
        mask = sensitivity.select(**arguments)
    except (ValueError, FloatingPointError) as error:
        raise AimfairError(f"methods.{name}: {error}") from error
    if mask.nnz == 0:
        raise AimfairError(f"methods.{name}: the rule {method.rule} selects nothing; raise its density or shares")
    return mask


def _fewest_units(sensitivity: Sensitivity, arguments: dict[str, Any], density: float) -> int:
    """The smallest k whose selection holds ``round(density * weights)`` weights, before ``freeze`` takes some away.

    Selections of top_k, ratio and random grow with k, one unit at a time, so that it is found by bisection.
    """
    arguments = {**arguments, "freeze": []}
    first = sensitivity.select(**arguments, k=1)
    target = number_of_units(float(density), first.numel, "density")
    low, high = 1, sum(unit_counts(first.shapes, arguments["granularity"]))
    while low < high:
        middle = (low + high) // 2
        if sensitivity.select(**arguments, k=middle).nnz >= target:
            high = middle
        else:
            low = middle + 1
    return high
