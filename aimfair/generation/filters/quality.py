"""The score of every image by which :mod:`aimfair.generation.rounds` rejects the worst of a group."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aimfair.base.errors import AimfairError
from aimfair.generation.filter_settings import QualityCheck, is_function
from aimfair.generation.filters import hooks
from aimfair.generation.filters.classifiers import Classifier, fingerprint, locate, open_model
from aimfair.generation.filters.towers import Towers
from aimfair.generation.plan import Group

_KEY = "generate.filters.quality.model"
_DIGITS = 6  # of a score that are kept


def facts(check: QualityCheck, allow_download: bool) -> dict[str, Any]:
    """What the decisions depend on.

    Raises:
        AimfairError: there is no such model or function.
    """
    if is_function(check.model):
        digest = hooks.fingerprint(check.model, _KEY)
    else:
        digest = fingerprint(locate(_KEY, check.model, allow_download))
    return {"model": digest, **check.model_dump(exclude={"model"})}


class Quality:
    """Gives images a score; more is better.

    Raises:
        AimfairError: the model cannot be used, or gives more than a number.
    """

    def __init__(self, check: QualityCheck, allow_download: bool, device: torch.device):
        if is_function(check.model):
            self._measure = _function(check.model)
            return
        path = locate(_KEY, check.model, allow_download)
        model = open_model(_KEY, path, device)
        if isinstance(model, Towers):
            if not check.texts:
                raise AimfairError("generate.filters.quality.texts: missing; CLIP and SigLIP need two")
            self._measure = _preference(model, check.texts)
        else:
            if check.texts:
                raise AimfairError(f"generate.filters.quality.texts: {path} reads no texts; leave them out")
            self._measure = _output(path, model)

    def scores(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[float]:
        """B finite numbers, for uint8 [B, H, W, 3] as generated, and the groups that they should show.

        Raises:
            AimfairError: a score is not finite.
        """
        found = self._measure(images, groups)
        if not np.isfinite(found).all():
            raise AimfairError(f"{_KEY}: a score of {found[~np.isfinite(found)][0]}, expected finite numbers")
        return [float(f"{score:.{_DIGITS}g}") for score in found.tolist()]


_Measure = Callable[[npt.NDArray[np.uint8], Sequence[Group]], npt.NDArray[np.float64]]


def _function(name: str) -> _Measure:
    function = hooks.load(name, _KEY)

    def measure(images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> npt.NDArray[np.float64]:
        try:
            found = np.asarray(function(images.copy(), list(groups)), dtype=np.float64)
        except Exception as error:  # a user's function may raise anything
            raise AimfairError(f"{_KEY}: {name}: {type(error).__name__}: {error}") from error
        if found.shape != (len(images),):
            raise AimfairError(
                f"{_KEY}: {name}: answered an array of shape {found.shape}, expected ({len(images)},), a score of each"
                " image"
            )
        return found

    return measure


def _preference(towers: Towers, texts: Sequence[str]) -> _Measure:
    """The probability of the first text."""
    directions = towers.directions([[text] for text in texts])

    def measure(images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> npt.NDArray[np.float64]:
        shares = (towers.scale * towers.cosines(images, directions)).softmax(1)
        return np.asarray(shares[:, 0], dtype=np.float64)

    return measure


def _output(path: Path, model: Classifier) -> _Measure:
    if len(model.labels) != 1:
        raise AimfairError(f"{_KEY}: {path}: {len(model.labels)} numbers for an image, expected one, its score")
    return lambda images, groups: np.asarray(model.numbers(images)[:, 0], dtype=np.float64)
