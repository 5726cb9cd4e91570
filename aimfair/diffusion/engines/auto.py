"""``generate.engine auto``: which engine that is, and why."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch

from aimfair.diffusion.settings import TextToImageSettings

AUTO = "auto"
_ONNX = ("onnx", "onnxscript", "onnxruntime")


class Choice(NamedTuple):
    """An engine and, in words, the reason for it."""

    engine: str
    reason: str


def choose_engine(
    settings: TextToImageSettings, device: Callable[[], torch.device], made_with: str | None = None
) -> Choice:
    """What ``settings.engine`` asks for; for ``auto`` what a user would most likely want.

    Images that exist decide first: the others of a set are to be made as they were. On a GPU nobody waits minutes for
    an engine unasked.

    Args:
        device: tells where the model will run; not asked where it does not matter.
        made_with: the engine of images that are there already, if there are any.
    """
    if settings.engine != AUTO:
        return Choice(settings.engine, "it was asked for")
    if made_with is not None:
        return Choice(made_with, "it made the images that are there")
    if device().type == "cuda":
        return Choice("eager", "the others take minutes to build; --generate.engine tensorrt is made for GPUs")
    if settings.dtype != "float32":
        return Choice("eager", f"onnxruntime is slow in {settings.dtype} on a CPU")
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        return Choice("eager", f"not installed: {' '.join(missing)}; with them onnxruntime is faster on a CPU")
    return Choice("onnxruntime", "the fastest on a CPU")
