"""Just train twice (Liu et al., ICML 2021, arXiv 2107.09044)."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from aimfair.base.errors import AimfairError, one_line
from aimfair.methods.base import MethodSettings

if TYPE_CHECKING:
    from aimfair.methods.work import Trained, Work
    from aimfair.training.loop import Training
    from aimfair.training.samplers import Indices

ERROR_SET = "error_set.json"
"""The file beside the model: which training images the first model got wrong."""

_FIRST = "first"  # folder of the first model's checkpoint


class Jtt(MethodSettings):
    """Trains a first model that is stopped after a few epochs, then a second one from the same start, in whose epochs
    the training images that the first misclassified occur ``upweight`` times.

    The first model's learning rates are those of the whole training, as Algorithm 1 stops an ordinary one at epoch T.
    Its predictions are those without augmentation, after its last epoch. No group labels are read; the publication
    reads those of validation images to choose its settings.
    """

    records: ClassVar[tuple[str, ...]] = (ERROR_SET,)

    kind: Literal["jtt"] = Field("jtt", description="two new models; the second repeats what the first got wrong")
    first_epochs: int = Field(1, ge=1, description="jtt: epochs after which the first training is stopped")
    upweight: int = Field(20, ge=1, le=1000, description="jtt: how often a misclassified image occurs in an epoch")

    @property
    def least_epochs(self) -> int:
        return self.first_epochs  # the first training is one of all epochs that is stopped

    def run(self, work: "Work") -> "Trained":
        from aimfair.training.samplers import Repeated

        train = work.splits().train
        errors = self._error_set(work)
        if not len(errors):
            work.log.warn(
                f"{work.name}: the first model classifies every image correctly, so nothing is weighted up; lower"
                " first_epochs"
            )
        times = np.ones(len(train), dtype=np.int64)
        times[errors] = self.upweight
        model, history = work.fit(work.training(work.initial(), train, sampler=Repeated(times)), "second model")
        history.notes["images in the error set"] = len(errors)
        return model, history

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return (
            "trains a new model from the initial weights on real images, repeating those that a first model"
            " misclassified"
        )

    def _error_set(self, work: "Work") -> "Indices":
        """int64, ascending: recorded once, so that an interrupted second training resumes with the same."""
        from aimfair.base.files import write_json

        train, file, folder = work.splits().train, work.folder / ERROR_SET, work.folder / _FIRST
        settings = work.settings.model_copy(update={"keep": "last"})
        training = work.training(
            work.initial(), train, settings=settings, checkpoint=work.checkpoint(folder), stop_after=self.first_epochs
        )
        identity = training.identity()
        if (recorded := _read(file, identity, len(train))) is not None:
            return recorded
        work.fit(training, "first model")
        errors = _misclassified(training)
        if work.processes.ranks.leads:
            work.folder.mkdir(parents=True, exist_ok=True)
            record = {"training": identity, "images": len(train), "ids": [train.ids[index] for index in errors]}
            write_json(file, {**record, "indices": errors.tolist()})
            shutil.rmtree(folder, ignore_errors=True)
        return errors


def _misclassified(training: "Training") -> "Indices":
    """Which of its training images the model gets wrong."""
    from aimfair.training.feed import Normalize
    from aimfair.training.predict import predict_logits

    images, device = training.train, next(training.model.parameters()).device
    normalize = Normalize(training.preprocessing, device)
    ranks = training.processes.ranks
    scores = predict_logits(training.model, images, normalize, training.settings.batch_size, ranks=ranks)
    return np.flatnonzero(scores.argmax(1).numpy() != images.target)


def _read(file: Path, identity: str, images: int) -> "Indices | None":
    """The recorded error set of this first training, of so many images; None if there is none."""
    from aimfair.training.checkpoint import same_training

    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not same_training(str(record["training"]), identity):
            return None
        indices = np.array(record["indices"], dtype=np.int64)
        if indices.ndim != 1 or not np.isin(indices, np.arange(images)).all():
            raise ValueError(f"expected indices of {images} images")
        return indices
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise AimfairError(
            f"{file}: not a usable error set: {one_line(error)}; remove it to start the method again"
        ) from error
