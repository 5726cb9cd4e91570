"""What a pipeline calls in the place of its modules, when an engine runs them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.interface import Engine


class StandIn(nn.Module):
    """Has the configuration of a module, none of its weights, and an engine.

    Args:
        module: whose place it takes.
        part: the part of the engine that is run instead.
    """

    def __init__(self, module: Any, engine: Engine, part: str):
        super().__init__()
        self.config, self.dtype, self.device = module.config, module.dtype, module.device
        self._engine, self._part = engine, part

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the part."""
        return self._engine.run(self._part, inputs)

    def steps(self, timestep: Tensor, batch: int) -> Tensor:
        """Timesteps, one or [B], as float32 [B] on the device."""
        return timestep.to(self.device, torch.float32).expand(batch)

    def cache_context(self, _: str) -> AbstractContextManager[None]:
        """Pipelines enter it around each call; it is for caches of activations, which engines do not have."""
        return nullcontext()

    def refuse(self, others: dict[str, Any]) -> None:
        """Of the arguments that are left, any that says something.

        Raises:
            AimfairError: there is one.
        """
        if unknown := [name for name, value in others.items() if name != "return_dict" and value not in (None, {})]:
            raise AimfairError(f"generate.model needs {', '.join(unknown)}, which only --generate.engine eager takes")
