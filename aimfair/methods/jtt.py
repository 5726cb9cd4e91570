"""Just train twice (Liu et al., ICML 2021, arXiv 2107.09044)."""

import json
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_json
from aimfair.data.images import ImageSet
from aimfair.methods.work import Trained, Work
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.feed import Normalize
from aimfair.training.loop import Training
from aimfair.training.predict import predict_logits
from aimfair.training.samplers import Indices, Repeated

ERROR_SET = "error_set.json"
"""The file beside the model: which training images the first model got wrong."""

_FIRST = "first"  # folder of the first model's checkpoint


def jtt(work: Work) -> Trained:
    """Trains a first model as usual but stops it after a few epochs, then a second one from the same start, for which
    the training images that the first got wrong come ``upweight`` times in an epoch.

    The first model's learning rates are those of the whole training, as Algorithm 1 stops an ordinary one at epoch T.
    Its predictions are those without augmentation, after its last epoch. No group labels are read; the
    publication reads those of validation images to choose its settings.

    Raises:
        AimfairError: the first model is to have more epochs than the training has.
    """
    if work.method.first_epochs > work.settings.epochs:
        raise AimfairError(
            f"{work.name}: first_epochs is {work.method.first_epochs}, expected at most {work.settings.epochs}, the"
            " epochs of the training that is stopped there"
        )
    train = work.splits().train
    errors = _error_set(work)
    if not len(errors):
        work.log.warn(
            f"{work.name}: the first model gets every image right: nothing is weighted up; fewer first_epochs"
        )
    times = np.ones(len(train), dtype=np.int64)
    times[errors] = work.method.upweight
    model, history = work.fit(work.training(work.initial(), train, sampler=Repeated(times)), "second model")
    history.notes["images in the error set"] = len(errors)
    return model, history


def _error_set(work: Work) -> Indices:
    """int64, ascending: recorded once, so that a second training that was cut off goes on with the same."""
    train, file, folder = work.splits().train, work.folder / ERROR_SET, work.folder / _FIRST
    settings = work.settings.model_copy(update={"keep": "last"})
    checkpoint = Checkpoint(folder, work.checkpoint_seconds, work.inputs)
    training = work.training(
        work.initial(), train, settings=settings, checkpoint=checkpoint, stop_after=work.method.first_epochs
    )
    identity = training.identity()
    if (recorded := _read(file, identity)) is not None:
        return recorded
    work.fit(training, "first model")
    errors = _wrong(training, train)
    work.folder.mkdir(parents=True, exist_ok=True)
    record = {"training": identity, "images": len(train), "ids": [train.ids[index] for index in errors]}
    write_json(file, {**record, "indices": errors.tolist()})
    checkpoint.remove()
    if folder.exists():
        folder.rmdir()
    return errors


def _wrong(training: Training, images: ImageSet) -> Indices:
    device = next(training.model.parameters()).device
    normalize = Normalize(training.preprocessing, device)
    scores = predict_logits(training.model, images, normalize, training.settings.batch_size)
    return np.flatnonzero(scores.argmax(1).numpy() != images.target)


def _read(file: Path, identity: str) -> Indices | None:
    """What was recorded of this first training; None if nothing was."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["training"] != identity:
            return None
        return np.array(record["indices"], dtype=np.int64)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{file}: not a usable error set: {error}; remove it and begin the method again") from error
