"""The largest batch that is worth its memory, found by trying and remembered per model, engine and device."""

import gc
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_json
from aimfair.base.interrupt import Interrupt
from aimfair.base.log import SILENT, Log
from aimfair.diffusion.engines import store
from aimfair.diffusion.engines.registry import engine_facts
from aimfair.diffusion.families.registry import index_of, is_known
from aimfair.diffusion.lora import lora_facts
from aimfair.diffusion.model import decoder_fingerprint, decoder_folder, fingerprint
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.diffusion.text_to_image import Diffusion

MOST = {"cuda": 512, "cpu": 64}  # on a CPU, a system without memory kills the process
_GAIN = 1.03  # of images per second; a larger batch that gains less only takes memory
_STEPS = 2
_DECISIVE = {
    "render_size", "dtype", "channels_last", "quantization", "step_cache", "step_cache_interval", "guidance_scale",
}  # fmt: skip
"""Settings that change memory or the best size; from which scale on there is guidance is the family's to say."""

_BUILT = ("compile", "torch-tensorrt", "tensorrt", "tensorrt-rtx")


def find_batch_size(
    folder: Path,
    settings: TextToImageSettings,
    device: torch.device,
    prompts: Sequence[str],
    log: Log,
    interrupt: Interrupt,
) -> int:
    """The batch size for ``generate.batch_size`` auto.

    Sizes are doubled from 1 until one does not fit, two in a row gain less than 3% of speed, or 512 is reached (64 on a
    CPU). Engines that are built for a batch size are tried as eager, which takes no less memory. 1 for a model of no
    known family, whose images are made one by one.

    Args:
        folder: of the model.
        settings: with an engine other than auto.
        prompts: of the run.

    Raises:
        AimfairError: a single image does not fit, or as :class:`Diffusion`.
        Interrupted: between two sizes.
    """
    if not is_known(folder):
        log.tell(f"batch size: 1, since a {index_of(folder)['_class_name']} is of no known family: one image at a time")
        return 1
    path = store.folder() / f"batch-{_digest(folder, settings, device)}.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["batch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not known, or not readable: tried again
    changes: dict[str, Any] = {"batch_size": 1, "steps": min(settings.steps, _STEPS), "guidance_interval": (0.0, 1.0)}
    if settings.engine in _BUILT:
        changes |= {"engine": "eager", "quantization": None, "compile_regions": False}
    tried = Diffusion(folder, settings.model_copy(update=changes), device, SILENT, interrupt, prompts)
    found, speeds = _try(tried, MOST[device.type], prompts[0], interrupt)
    del tried
    gc.collect()  # diffusers' hooks are in reference cycles with the modules that they are on
    if not speeds:
        raise AimfairError(
            "generate.batch_size: a single image does not fit into memory; choose another generate.dtype, a smaller"
            " generate.render_size, another model or another device"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"batch_size": found, "images_per_s": {str(one): speed for one, speed in speeds.items()}})
    log("batch size", batch_size=found, images_per_s=speeds)
    log.tell(f"batch size: {found} (tried up to {max(speeds)}; remembered in {path})")
    return found


def _try(diffusion: Diffusion, most: int, prompt: str, interrupt: Interrupt) -> tuple[int, dict[int, float]]:
    """The size, and images per second by size; none if a single image does not fit."""
    found, speeds = 1, dict[int, float]()
    size = 1
    while size <= most:
        interrupt.check()
        speed = diffusion.speed_of(size, prompt)
        if speed is None:
            break
        speeds[size] = speed
        if speed >= _GAIN * speeds[found]:
            found = size
        elif size >= 4 * found:
            break
        size *= 2
    return found, speeds


def _digest(folder: Path, settings: TextToImageSettings, device: torch.device) -> str:
    """Of what decides the size."""
    machine: list[Any] = [device.type, os.cpu_count(), torch.get_num_threads()]
    if device.type == "cuda":
        machine = [torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory]
    small = decoder_folder(settings.decoder, settings.allow_download)
    facts = {
        "model": fingerprint(folder),
        "engine": engine_facts(settings.engine, settings.quantization) or settings.engine,
        "torch": torch.__version__,
        "settings": settings.model_dump(mode="json", include=_DECISIVE),
        "decoder": None if small is None else decoder_fingerprint(small),
        "loras": lora_facts(settings),
        "machine": machine,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
