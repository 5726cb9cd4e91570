"""Quantised denoisers: nodes in the exported file that round inputs and weights of its large operations.

The nodes are ONNX's QuantizeLinear and DequantizeLinear, which ONNX Runtime and TensorRT turn into kernels of 8 bits.
Ranges are the smallest and largest values at inputs of a calibration. Attention, whose matrices are both computed,
stays as it is: its softmax loses most from rounding, and gains little.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.libraries import optional
from aimfair.diffusion.engines.engine import Source
from aimfair.diffusion.engines.export import path_of

PART = "denoiser"
TOLERANCE = 0.3
"""Accepted difference from eager, as in :mod:`agreement`: rounding changes a denoiser by 0.02 to 0.1 of its largest
value, a wrong scale by 1."""

_OPERATIONS = ["Conv", "MatMul", "Gemm"]
_INT8_MOST, _FP8_MOST = 127, 448  # the largest values of int8 and of float8 e4m3
_POSITIONS = 1024  # of latents: from this size on the calibration runs row by row, since it keeps attention scores


def quantize(source: Source, folder: Path, *, symmetric: bool) -> None:
    """Replaces the exported denoiser in the folder, if ``source.quantization`` says so, by a quantised one.

    Args:
        symmetric: activations around zero, as TensorRT needs them, in place of unsigned ones, which are faster on CPUs.

    Raises:
        AimfairError: onnxruntime is missing, or cannot quantise the model.
        OSError: the file cannot be written.
    """
    if source.quantization is None:
        return
    onnx, tools = _libraries()
    path = path_of(folder, PART)
    part = next(part for part in source.parts if part.name == PART)
    calls = [dict(zip(part.inputs, inputs, strict=True)) for inputs in source.quantization.examples()]
    integers = tools.QuantType.QInt8
    fp8 = source.quantization.kind == "fp8"
    for_tensorrt = {
        "ActivationSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": _OPERATIONS,
        "AddQDQPairToWeight": fp8,  # its weights are rounded by TensorRT
    }
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rounded = Path(place) / path.name
        try:
            with _quiet():
                tools.quantize_static(
                    path,
                    rounded,
                    _Reader(calls),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=_OPERATIONS,
                    nodes_to_exclude=_between_activations(onnx.load(path, load_external_data=False)),
                    per_channel=True,
                    activation_type=integers if symmetric else tools.QuantType.QUInt8,
                    weight_type=integers,
                    use_external_data_format=True,
                    extra_options={"WeightSymmetric": True, **(for_tensorrt if symmetric else {})},
                )
            model = onnx.load(rounded)
        except Exception as error:  # the tools raise errors of all kinds
            raise AimfairError(
                f"generate.quantization: {source.quantization.kind} of {source.folder} failed: {one_line(error)}; do"
                " without, or use other versions: pip install --upgrade onnxruntime onnx"
            ) from error
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise AimfairError(f"generate.quantization: {source.folder} has nothing to quantise; leave it out")
    if fp8:
        _to_fp8(onnx, model)
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # the library appends
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=weights.name)


class _Reader:
    """Inputs of a calibration, as the tools want them."""

    def __init__(self, calls: Sequence[Mapping[str, Tensor]]):
        self._rows = iter(list(_pieces(calls)))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows


def _pieces(calls: Sequence[Mapping[str, Tensor]]) -> Iterator[dict[str, Any]]:
    for call in calls:
        arrays = {name: tensor.cpu().numpy() for name, tensor in call.items()}
        first = next(iter(arrays.values()))
        rows = len(first) if np.prod(first.shape[2:]) < _POSITIONS and first.ndim == 4 else 1
        for start in range(0, len(first), rows):
            yield {name: array[start : start + rows] for name, array in arrays.items()}


def _between_activations(model: Any) -> list[str]:
    """The names of products of two computed matrices."""
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and not known & set(node.input)]


def _to_fp8(onnx: Any, model: Any) -> None:
    """Turns symmetric int8 into float8 e4m3: the same ranges, scaled to its largest value."""
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales, zeros = {node.input[1] for node in nodes}, {node.input[2] for node in nodes}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            scale = onnx.numpy_helper.to_array(tensor)
            ratio = scale.dtype.type(_INT8_MOST / _FP8_MOST)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale * ratio, tensor.name))
        elif tensor.name in zeros:
            kind = onnx.TensorProto.FLOAT8E4M3FN
            nothing = bytes(int(np.prod(tensor.dims, dtype=int)))
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, kind, tensor.dims, nothing, raw=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools advise on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _libraries() -> tuple[Any, Any]:
    with optional("generate.quantization", "onnx onnxscript onnxruntime"):
        import onnx
        from onnxruntime import quantization
    return onnx, quantization


def version() -> str:
    """Of the library that quantises."""
    with optional("generate.quantization", "onnx onnxscript onnxruntime"):
        import onnxruntime
    return str(onnxruntime.__version__)
