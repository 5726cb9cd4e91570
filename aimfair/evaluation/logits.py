"""What a model says of the test images, in full: a safetensors file, and probabilities from it.

Logits are kept, not probabilities: a float32 probability near 1 holds no more than seven digits, so that confident
images tie. A file has 4 * N * C bytes and a header; the same logits give the same bytes.

Shapes: N images, C classes.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file

Logits = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

_FORMAT = "aimfair test logits 1"
"""The only entry of the header: safetensors writes several in a random order."""

_NAME = "logits"


def save_logits(path: Path, logits: Logits) -> None:
    """Replaces ``path``. ``logits``: float32 [N, C], in the order of the rows of predictions.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(save({_NAME: np.ascontiguousarray(logits)}, {"format": _FORMAT}))


def load_logits(path: Path) -> Logits:
    """Reads what :func:`save_logits` wrote.

    Raises:
        AimfairError: there is no such file, or it is damaged.
    """
    try:
        return load_file(path)[_NAME]
    except (OSError, SafetensorError, KeyError) as error:
        raise AimfairError(f"{path}: no usable logits ({error}); remove it, then: aimfair evaluate") from error


def probabilities(logits: npt.ArrayLike) -> Values:
    """Softmax of logits [N, C]: float64 [N, C]."""
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_odds(logits: npt.ArrayLike) -> Values:
    """log(p / (1 - p)) of each class of logits [N, C]: float64 [N, C].

    It orders images as the probability p does, and tells apart those of which p rounds to 1. With two classes it is
    the difference of the logits.
    """
    scores = np.asarray(logits, dtype=np.float64)
    classes = scores.shape[1]
    others = [np.logaddexp.reduce(np.delete(scores, k, axis=1), axis=1) for k in range(classes)]
    return np.asarray(scores - np.stack(others, axis=1))
