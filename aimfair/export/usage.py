"""Python examples of using an export without aimfair; the tests run them.

The code contains no user-provided strings: class names are read from the exported files.
"""

from aimfair.data.settings import DataSettings
from aimfair.export.onnx import FILE, INPUT
from aimfair.training.settings import ModelSettings

TRANSFORMERS = """\
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


def onnx(data: DataSettings, model: ModelSettings) -> str:
    """With only ONNX Runtime, NumPy and Pillow. Arguments: the folder and a file."""
    fit = (_CROP if data.fit == "crop" else _STRETCH).format(size=data.image_size)
    return _ONNX.format(fit=fit, mean=list(model.mean), std=list(model.std), file=FILE, input=INPUT)
