"""model.onnx: normalised images in, logits out; and how far it is from PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.training.execution import logits

FILE = "model.onnx"
INPUT, OUTPUT = "pixel_values", "logits"

BATCHES = (1, 3, 8)
"""Sizes at which the file is compared: one image, an odd number, and more than the exporter saw."""

TOLERANCE = 1e-3
"""Largest difference of a logit, over 1 or the largest logit, whichever is larger. Other orders of the same sums make
some 1e-6 in small models and 1e-5 in large ones; another formula, of an activation say, makes more than this."""

_INSIDE = 1_900_000_000
"""Bytes of weights that one file of Protocol Buffers, which holds 2 GiB, has room for."""


@dataclass(frozen=True)
class Agreement:
    """Of the file with PyTorch.

    Attributes:
        opset: of the file.
        difference: largest absolute one of a logit.
        images: how many were compared, at each of the batch sizes.
        batches: those sizes.
    """

    opset: int
    difference: float
    images: int
    batches: tuple[int, ...]


class _Logits(nn.Module):
    """A classifier as a function from tensor to tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.model, x)


def require_packages() -> None:
    """Raises AimfairError unless all that an export needs is installed."""
    from aimfair.diffusion.engines.export import missing_exporters

    missing = missing_exporters()
    if find_spec("onnxruntime") is None:
        missing.append("onnxruntime")
    if missing:
        raise AimfairError(
            f"{' and '.join(missing)} not installed; {FILE} needs: pip install 'aimfair[onnx]'; or leave it out:"
            " --no-onnx"
        )


@torch.no_grad()  # the exporter cannot trace in inference mode
def export(model: nn.Module, x: Tensor, folder: Path) -> Agreement:
    """Writes :data:`FILE` with its weights inside, and compares it with the model on ``x``.

    Args:
        model: in evaluation mode, float32 on the CPU.
        x: float32 [N, 3, H, W], normalised images, real ones: of noise a file may say the same that has lost something.

    Raises:
        AimfairError: a package is missing, the model cannot be expressed or is too large for one file, or the file says
            something else than the model.
        OSError: the file cannot be written.
    """
    from aimfair.diffusion.engines.export import OPSET, NotExportable, write
    from aimfair.diffusion.engines.onnx_runtime import open_file

    require_packages()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _INSIDE:
        raise AimfairError(
            f"{FILE}: the weights have {size / 1e9:.1f} GB, expected at most {_INSIDE / 1e9:.1f} in one file;"
            " leave it out: --no-onnx"
        )
    try:
        write(
            _Logits(model).eval(),
            (torch.zeros(2, *x.shape[1:]),),
            folder / FILE,
            [INPUT],
            [OUTPUT],
            weights_beside=False,
        )
    except NotExportable as error:
        raise AimfairError(f"{FILE}: the model cannot be exported: {error}; leave it out: --no-onnx") from error
    return compare(model, open_file(folder / FILE), x, OPSET)


@torch.no_grad()
def compare(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, opset: int) -> Agreement:
    """What ``run`` makes of images, beside what the model does, in batches of each of :data:`BATCHES`.

    Raises:
        AimfairError: a logit is further off than :data:`TOLERANCE` or not finite.
    """
    expected = logits(model, x).float()
    scale = max(1.0, float(expected.abs().max()))
    largest = 0.0
    for size in BATCHES:
        found = torch.cat([run(part) for part in x.split(size)])  # type: ignore[no-untyped-call]
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * scale:  # NaN is not
            raise AimfairError(
                f"{FILE}: in batches of {size} a logit differs by {difference:.3g} from PyTorch's, expected at most"
                f" {TOLERANCE * scale:.3g}; leave it out: --no-onnx, or try another version: pip install --upgrade onnx"
                " onnxscript onnxruntime"
            )
        largest = max(largest, difference)
    return Agreement(opset, largest, len(x), BATCHES)
