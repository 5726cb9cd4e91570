"""What models predict for the test images, on disk: logits as safetensors, predicted classes as predictions.csv.

Logits are kept, not probabilities: a float32 probability near 1 has no more than seven digits, so that confident
predictions tie. The same logits give the same bytes.

Shapes: N images, C classes, S seeds.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import replace_file, way_out
from aimfair.data.images import ImageSet
from aimfair.evaluation.metrics import Integers
from aimfair.selective.storage import check_header

Logits = npt.NDArray[np.float32]

LABELS = ("id", "target", "protected")
"""The first columns of predictions.csv. Further attributes follow as ``attribute NAME``, then the methods."""

_FORMAT = "aimfair test logits 1"
"""The only metadata entry: safetensors writes several in random order."""

_NAME = "logits"


def save_logits(path: Path, logits: Logits) -> None:
    """Replaces ``path``. ``logits``: float32 [N, C], in the order of the rows of predictions.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(save({_NAME: np.ascontiguousarray(logits)}, {"format": _FORMAT}))


def load_logits(path: Path) -> Logits:
    """Reads what :func:`save_logits` wrote.

    Raises:
        AimfairError: the file is missing or damaged.
    """
    try:
        check_header(path)
        return load_file(path)[_NAME]
    except FileNotFoundError:
        raise AimfairError(f"{path}: no such file; do: aimfair evaluate") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise AimfairError(
            f"{path}: no usable logits ({one_line(error)}); remove it and do: aimfair evaluate"
        ) from error


def column(method: str) -> str:
    """The header of a method's predictions: its name, with a prefix for the names of :data:`LABELS`.

    Names of methods hold no spaces, so that they collide neither with attributes nor with a prefixed name.
    """
    return f"method {method}" if method in LABELS else method


def write_predictions(path: Path, test: ImageSet, predicted: Mapping[str, Sequence[int] | Integers]) -> None:
    """One row per test image: id, target, protected, further attributes, and the class each method predicts."""
    attributes = {f"attribute {name}": values for name, values in test.attributes.items()}
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*LABELS, *attributes, *map(column, predicted)])
        writer.writerows(
            zip(test.ids, test.target, test.protected, *attributes.values(), *predicted.values(), strict=True)
        )


@dataclass(frozen=True)
class Predictions:
    """Predictions of one method.

    Attributes:
        ids: of the N images. target, protected: int64 [N].
        predicted: int64 [S, N].
    """

    ids: tuple[str, ...]
    target: Integers
    protected: Integers
    predicted: Integers

    @classmethod
    def load(cls, run: Path, seeds: Sequence[int], method: str) -> "Predictions":
        """Reads predictions.csv of each seed of a run directory.

        Raises:
            AimfairError: a file is missing or lacks the method.
        """
        ids: tuple[str, ...] = ()
        labels: list[Integers] = []
        predicted: list[Integers] = []
        for seed in seeds:
            path = run / "seeds" / str(seed) / "predictions.csv"
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [[row[name] for name in (*LABELS, column(method))] for row in csv.DictReader(file)]
                ids, *columns = zip(*rows, strict=True)
                *labels, of_seed = np.array(columns, dtype=np.int64)
            except (FileNotFoundError, KeyError, ValueError) as error:
                raise AimfairError(
                    f"{path}: no predictions of {method!r} ({type(error).__name__});"
                    f" {way_out(path, f'do: aimfair evaluate --run {run}')}"
                ) from error
            predicted.append(of_seed)
        return cls(ids, labels[0], labels[1], np.stack(predicted))
