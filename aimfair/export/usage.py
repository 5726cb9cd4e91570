"""How to use an export without aimfair: examples in Python, which the tests run.

The code contains no user-provided strings: class names are read from the exported files.
"""

from aimfair.data.settings import DataSettings
from aimfair.export.model_files import Difference
from aimfair.export.onnx import FILE, INPUT, TOLERANCE, Agreement
from aimfair.training.settings import ModelSettings

_TRANSFORMERS = """\
import sys

from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

folder, photo = sys.argv[1:]
classify = pipeline(
    "image-classification",
    model=AutoModelForImageClassification.from_pretrained(folder),
    image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
)
for answer in classify(photo, top_k=None):
    print(answer["label"], answer["score"])
"""
"""Arguments: the folder and a file."""

_ONNX = """\
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, photo = sys.argv[1:]
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
{fit}
pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32({mean})) / np.float32({std})
session = onnxruntime.InferenceSession(f"{{folder}}/{file}")
(logits,) = session.run(None, {{"{input}": pixels.transpose(2, 0, 1)[None]}})
scores = np.exp(logits[0] - logits[0].max())
for label, score in zip(json.load(open(f"{{folder}}/export.json"))["labels"], scores / scores.sum()):
    print(label, score)
"""

_CROP = """\
side = min(image.size)
left, top = (image.width - side) / 2, (image.height - side) / 2
box = (left, top, left + side, top + side)
image = image.resize(({size}, {size}), Image.Resampling.LANCZOS, box=box)"""

_STRETCH = "image = image.resize(({size}, {size}), Image.Resampling.BILINEAR)"


def section(
    data: DataSettings,
    model: ModelSettings,
    classes: int,
    preprocessing: Difference | None,
    agreement: Agreement | None,
) -> str:
    """How to use the export, in Markdown.

    Args:
        preprocessing: of transformers; None: the model is of another library.
        agreement: of the ONNX file; None: there is none.
    """
    parts = []
    if preprocessing is not None:
        parts += [
            "With transformers, Pillow and torch (`python classify.py FOLDER PHOTO`):",
            _code(_TRANSFORMERS),
            _preprocessing(preprocessing),
        ]
    if agreement is not None:
        parts += [
            f"`{FILE}` (opset {agreement.opset}, weights inside) takes `pixel_values`, float32 [N, 3,"
            f" {data.image_size}, {data.image_size}], normalized, any N, and returns `logits`, float32 [N, {classes}]."
            f" On {agreement.images} test images, in batches of {', '.join(map(str, agreement.batches))}, its logits"
            f" differ from PyTorch's by at most {agreement.difference:.1e} (the tolerance is {TOLERANCE:.0e}). With"
            " ONNX Runtime, NumPy and Pillow:",
            _code(_onnx(data, model)),
        ]
    if not parts:
        parts.append("`model.safetensors` contains the weights by name, in the format of the backbone's own library.")
    return "\n\n".join(parts)


def _preprocessing(difference: Difference) -> str:
    if difference.pixels < 1e-3 and difference.classes == 0:
        said = "gives the same pixels as aimfair"
    else:
        said = (
            f"differs from aimfair by at most {difference.pixels:.0f} of 255 grey levels and"
            f" {difference.probability:.4f} in class probabilities, and in the predicted class of {difference.classes}"
        )
    return (
        f'On {difference.images} test images this {said}. `backend="pil"` is required: the other one resizes'
        " differently. Transparent images differ: aimfair composites them on white, transformers does not."
    )


def _onnx(data: DataSettings, model: ModelSettings) -> str:
    """With only ONNX Runtime, NumPy and Pillow. Arguments: the folder and a file."""
    fit = (_CROP if data.fit == "crop" else _STRETCH).format(size=data.image_size)
    return _ONNX.format(fit=fit, mean=list(model.mean), std=list(model.std), file=FILE, input=INPUT)


def _code(text: str) -> str:
    return f"```python\n{text}```"
