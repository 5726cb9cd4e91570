"""Methods: each file holds the settings of one, what it trains, and the sentence that reports say of it.

:data:`Method` is the list of them. Importing it does not import torch.
"""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, TypeAdapter

from aimfair.base.settings import Problem
from aimfair.methods.balanced_resampling import BalancedResampling
from aimfair.methods.base import BIASED, MethodSettings
from aimfair.methods.controls import Erm, RealAndSynthetic, SyntheticOnly
from aimfair.methods.group_dro import GroupDro
from aimfair.methods.jtt import Jtt
from aimfair.methods.last_layer_retrain import LastLayerRetrain
from aimfair.methods.tune import Tune

__all__ = ["BIASED", "KINDS", "AnyMethod", "Method", "MethodSettings", "Tune", "read_method"]

AnyMethod = Tune | Erm | SyntheticOnly | RealAndSynthetic | BalancedResampling | GroupDro | Jtt | LastLayerRetrain

KINDS: dict[str, type[MethodSettings]] = {method.model_fields["kind"].default: method for method in get_args(AnyMethod)}
"""Kind -> its settings."""

RENAMED = {"dfr": "last_layer_retrain"}
"""Old name of a kind -> its name."""


def _of_its_kind(value: Any) -> Any:
    """Settings with their kind, by default ``tune``.

    Raises:
        Problem: there is no such kind, or a key belongs to another one.
    """
    if not isinstance(value, dict):
        return value
    kind = value.get("kind", "tune")
    if not isinstance(kind, str) or kind not in {**KINDS, **RENAMED}:
        raise Problem(("kind",), f"found {kind!r}, expected one of {', '.join(KINDS)}")
    if kind in RENAMED:
        warnings.warn(f"method kind {kind!r} is now called {RENAMED[kind]!r}; rename it", FutureWarning, stacklevel=2)
        kind = RENAMED[kind]
    valid = KINDS[kind].model_fields
    for key in value:
        others = [other for other, method in KINDS.items() if key in method.model_fields]
        if key not in valid and others:
            raise Problem(
                (key,), f"not valid for kind {kind!r}, only for {' and '.join(others)}; {kind} takes {', '.join(valid)}"
            )
    return {**value, "kind": kind}


Method = Annotated[AnyMethod, Field(discriminator="kind"), BeforeValidator(_of_its_kind)]
"""The settings of one method; ``kind`` says of which."""


def read_method(settings: Mapping[str, object]) -> AnyMethod:
    """The method that these settings describe.

    Raises:
        pydantic.ValidationError: they do not go together.
    """
    method: AnyMethod = TypeAdapter(Method).validate_python(dict(settings))
    return method
