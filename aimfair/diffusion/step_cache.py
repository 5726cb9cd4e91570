"""Caches of activations between steps: in some steps most of the denoiser is not run, and its last results stand in.

Both kinds follow a fixed schedule, so an image does not depend on its neighbours in the batch. Caches that compare
activations (FirstBlockCache, SeaCache) decide for whole batches, so they are left out.
"""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from aimfair.base.errors import AimfairError

_WARM_UP = 3  # steps that are computed in full at first, for the slopes of TaylorSeer


class StepCache(Protocol):
    """A cache that is installed in a denoiser."""

    def begin(self) -> None:
        """Forgets everything; call this before each batch."""


class DeepCache:
    """A UNet runs its outermost blocks in every step, and those inside only in every ``interval``-th.

    Ma et al., DeepCache: Accelerating Diffusion Models for Free, 2023 (arXiv 2312.00858), with whole blocks as branch.

    Args:
        unet: a UNet2DConditionModel; its blocks are changed.
        interval: 1: all steps are computed in full, and results are the bits of the plain model.

    Raises:
        AimfairError: it has a single level, so nothing is inside.
    """

    def __init__(self, unet: Any, interval: int):
        if len(unet.up_blocks) < 2:
            raise AimfairError("generate.step_cache: deep needs a UNet of two levels or more; leave it out")
        self._interval, self._step = interval, -1
        self._kept: dict[int, Any] = {}
        inside = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
        for place, block in enumerate(block for block in inside if block is not None):
            block.forward = self._remembering(place, block)
        unet.register_forward_pre_hook(self._advance)

    def begin(self) -> None:
        self._step = -1
        self._kept.clear()

    def _advance(self, *_: Any) -> None:
        self._step += 1

    def _remembering(self, place: int, block: Any) -> Callable[..., Any]:
        forward, this = type(block).forward, weakref.ref(block)  # which holds what is returned

        def run(*args: Any, **options: Any) -> Any:
            if self._step % self._interval == 0:
                self._kept[place] = forward(this(), *args, **options)
            return self._kept[place]

        return run


class TaylorSeer:
    """A transformer computes every ``interval``-th step and extrapolates its attention linearly in the others.

    Liu et al., From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers, 2025 (arXiv 2503.06923), by
    the hooks of diffusers. The first three steps are computed.

    Args:
        transformer: with diffusers' CacheMixin; its modules are changed.
    """

    def __init__(self, transformer: Any, interval: int, make: Callable[..., Any]):
        self._transformer = transformer
        dtype = transformer.dtype if transformer.dtype != torch.float16 else torch.float32  # slopes may overflow
        transformer.enable_cache(
            make(
                cache_interval=interval,
                disable_cache_before_step=_WARM_UP,
                max_order=1,
                taylor_factors_dtype=dtype,
            )
        )

    def begin(self) -> None:
        self._transformer._reset_stateful_cache()


def install(kind: str, interval: int, denoiser: nn.Module, taylor_seer: Callable[..., Any]) -> StepCache:
    """Installs a cache in a denoiser.

    Args:
        kind: of ``generate.step_cache``.
        denoiser: of a pipeline.
        taylor_seer: makes the configuration of diffusers' TaylorSeer.

    Raises:
        AimfairError: the denoiser does not support it.
    """
    is_unet = hasattr(denoiser, "up_blocks")
    if kind == "deep" and is_unet:
        return DeepCache(denoiser, interval)
    if kind == "taylorseer" and hasattr(denoiser, "enable_cache"):
        return TaylorSeer(denoiser, interval, taylor_seer)
    supported = "deep" if is_unet else "taylorseer" if hasattr(denoiser, "enable_cache") else "null"
    raise AimfairError(
        f"generate.step_cache: found {kind}, expected {supported} for this generate.model, a {type(denoiser).__name__}"
    )
