"""Schedulers by the names of ``generate.scheduler``, and the settings that few-step models are made for."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

from aimfair.base.errors import AimfairError, one_line
from aimfair.diffusion.settings import TextToImageSettings

_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddim_trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler_trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Name -> class in diffusers, and what differs from the configuration of the saved scheduler."""

_TCD_NOISE = 0.3  # of each step; pipelines pass 0 by default, the authors recommend this


class Made(NamedTuple):
    """What a kind of few-step models is made for: at most so many steps, and a guidance scale up to this."""

    steps: int
    scale: float | None


_MADE_FOR = {
    "turbo": Made(10, 1.0),
    "lightning": Made(8, 1.0),
    "hyper": Made(16, None),
    "lcm": Made(8, 2.0),
    "tcd": Made(20, 2.0),
    "sprint": Made(4, None),
    "schnell": Made(4, None),
}
"""Words in the names of models and adapters, by the cards of the models; see docs/generation.md."""


def scheduler_of(diffusers: Any, name: str, saved: Any) -> Any:
    """The scheduler of this name, with the noise schedule of the saved one."""
    if name == "as_saved":
        return saved
    kind, changes = _CLASSES[name]
    return getattr(diffusers, kind).from_config(saved.config, **changes)


def scheduler_options(name: str) -> dict[str, Any]:
    """Arguments of the pipeline that a scheduler needs."""
    return {"eta": _TCD_NOISE} if name == "tcd" else {}


def require_steps(scheduler: Any, steps: int) -> None:
    """Checks ``generate.steps``.

    Raises:
        AimfairError: the scheduler does not take so many.
    """
    if steps > (most := scheduler.config.get("num_train_timesteps", steps)):
        raise AimfairError(
            f"generate.steps: found {steps}, expected at most {most}, with which generate.model was trained"
        )
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # some have limits of their own
        raise AimfairError(
            f"generate.steps: found {steps}, which the {type(scheduler).__name__} of generate.model refuses:"
            f" {one_line(error)}"
        ) from error


def advice(settings: TextToImageSettings) -> Iterator[str]:
    """Warnings: settings that are not those which a model, an adapter or a scheduler is made for, as its name says."""
    adapters = [name for lora in settings.loras for name in (lora.weights, lora.file or "")]
    names = [PurePath(name).name.lower() for name in (settings.model, *adapters)] + [settings.scheduler]
    for word, made in _MADE_FOR.items():
        name = next((name for name in names if word in name), None)
        if name is None:
            continue
        if settings.steps > made.steps:
            yield f"generate.steps: found {settings.steps}, {name} is made for {made.steps} or fewer"
        if made.scale is not None and settings.guidance_scale > made.scale:
            yield (f"generate.guidance_scale: found {settings.guidance_scale}, {name} is made for {made.scale} or less")
