"""A user's own model: what ``module:function`` of the settings returns."""

import importlib
from typing import Any

from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.training.backbones.origin import Origin, one_line, require_arguments, set_origin


def make(name: str, arguments: dict[str, Any], classes: int) -> nn.Module:
    """``function(num_classes=classes, **arguments)``.

    Args:
        name: ``module:function``, of the user's own settings: importing a module runs it.

    Raises:
        AimfairError: naming ``model.factory``: it cannot be imported, fails, or returns no module with weights.
    """
    require_arguments(arguments, "model.config")
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # it is a program
        raise AimfairError(
            f"model.factory: {name}: cannot be imported: {one_line(error)}; its folder must be on PYTHONPATH"
        ) from error
    try:
        model = function(num_classes=classes, **arguments)
    except Exception as error:
        raise AimfairError(f"model.factory: {name}: failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise AimfairError(
            f"model.factory: {name}: returned {type(model).__name__}, expected a torch.nn.Module with parameters"
        )
    set_origin(model, Origin("own", name, arguments, classes))
    return model
