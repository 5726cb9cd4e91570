"""The weights of a run's model, in the format in which the run keeps them, with the names of the classes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_json
from aimfair.training.models import CONFIG, WEIGHTS

_OF_THIS_MACHINE = ("_name_or_path", "name_or_path")
"""Where a model came from: it may be a folder of the user's, which is nobody's business."""


def copy_model(source: Path, to: Path, names: Sequence[str]) -> bool:
    """Copies the model in ``source``; the configuration says the names of the classes. Whether it is transformers'.

    Args:
        names: of the classes, by number.

    Raises:
        AimfairError: the configuration is damaged, or for another number of classes.
    """
    path = source / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        of_transformers = isinstance(config.get("model_type"), str)
    except (ValueError, AttributeError) as error:
        raise AimfairError(f"{path}: not a usable model configuration: {error}") from error
    if of_transformers:
        known = config.get("id2label") or {}
        if len(known) != len(names):
            raise AimfairError(f"{path}: found {len(known)} labels, expected {len(names)}, one for each class")
        config = {key: value for key, value in config.items() if key not in _OF_THIS_MACHINE}
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    write_json(to / CONFIG, config)
    shutil.copyfile(source / WEIGHTS, to / WEIGHTS)
    return of_transformers
