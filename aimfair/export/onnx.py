"""model.onnx: normalised images in, logits out; and its difference from PyTorch."""

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
"""Largest difference of a logit, relative to the larger of 1 and the largest logit. Another summation order makes some
1e-6 in small models and 1e-5 in large ones; a different formula, such as of an activation, exceeds this."""

_INSIDE = 1_900_000_000
"""Most bytes of weights in one Protocol Buffers file, which is limited to 2 GiB."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of the file with PyTorch.

    Attributes:
        opset: of the file.
        difference: largest absolute difference of a logit.
        images: number compared at each batch size.
        batches: the batch sizes.
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
    """Raises AimfairError unless every package that an export needs is installed."""
    from aimfair.diffusion.engines.export import missing_exporters

    missing = missing_exporters()
    if find_spec("onnxruntime") is None:
        missing.append("onnxruntime")
    if missing:
        raise AimfairError(
            f"{' and '.join(missing)} not installed; {FILE} needs: pip install 'aimfair[onnx]'; or skip it: --no-onnx"
        )


@torch.no_grad()  # the exporter cannot trace in inference mode
def export(model: nn.Module, x: Tensor, folder: Path) -> Agreement:
    """Writes :data:`FILE` with its weights inside, and compares it with the model on ``x``.

    Args:
        model: in evaluation mode, float32 on the CPU.
        x: float32 [N, 3, H, W], normalized real images: noise may hide a difference.

    Raises:
        AimfairError: a package is missing, the model cannot be expressed or is too large for one file, or the file
            disagrees with the model.
        OSError: the file cannot be written.
    """
    from aimfair.diffusion.engines.export import OPSET, NotExportable, write
    from aimfair.diffusion.engines.onnx_runtime import open_file

    require_packages()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _INSIDE:
        raise AimfairError(
            f"{FILE}: the weights have {size / 1e9:.1f} GB, expected at most {_INSIDE / 1e9:.1f} in one file; skip"
            " it: --no-onnx"
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
        raise AimfairError(f"{FILE}: the model cannot be exported: {error}; skip it: --no-onnx") from error
    return compare(model, open_file(folder / FILE), x, OPSET)


@torch.no_grad()
def compare(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, opset: int) -> Agreement:
    """Compares ``run`` with the model on images, in batches of each size of :data:`BATCHES`.

    Raises:
        AimfairError: a logit differs by more than :data:`TOLERANCE` or is not finite.
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
                f" {TOLERANCE * scale:.3g}; skip it: --no-onnx, or try another version: pip install --upgrade onnx"
                " onnxscript onnxruntime"
            )
        largest = max(largest, difference)
    return Agreement(opset, largest, len(x), BATCHES)
