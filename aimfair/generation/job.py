"""Makes the images of a plan, batch by batch; a job that was cut off continues where it was.

First the images of a batch are on disk, then their lines in the manifest. An image is finished if its line is there and
its file holds the pixels whose digest is in its name; any other file is what a killed job left, and is removed. Batches
are cut from the plan, never from what is left of it: an image that is made again has the same neighbours in its batch,
and so the same bits.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.data.decode import ImageError, content_digest, fit, read_rgb
from aimfair.errors import AimfairError
from aimfair.files import is_temporary, replace_file, write_json
from aimfair.generation.lines import as_lines
from aimfair.generation.manifest import DIGITS, ImageRecord, Manifest, file_name, seed_of_attempt
from aimfair.generation.plan import PlannedImage
from aimfair.generation.quality import rejection
from aimfair.generation.sampler import Sampler
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.progress import SILENT, Task

IMAGES = "images"
_JOB = "job.json"
_ATTEMPTS = 5  # at one image; a model that fails so often in a row will go on failing
_THREADS = 4  # that encode or decode files
_MAX_PIXELS = 2**24  # of a file of ours


class _Made(NamedTuple):
    record: ImageRecord
    pixels: npt.NDArray[np.uint8]


class Job:
    """The images of a plan, of which some may be there already.

    Opening one looks for them; :meth:`run` makes the others.

    Args:
        folder: for the manifest and the images; made if absent. Images of another plan or recipe are removed.
        plan: numbered from 0.
        recipe: whatever else the images depend on, in JSON's types.
        image_size: larger images are reduced to this many pixels along each side.
        batch_size: images at a time.
        max_rejections: share of the plan; with more rejected images the job is given up.

    Raises:
        AimfairError: the folder holds something else, or its manifest is damaged.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[PlannedImage],
        recipe: Mapping[str, Any],
        *,
        image_size: int,
        batch_size: int,
        max_rejections: float,
    ):
        self._folder, self._plan = folder, plan
        self._image_size, self._batch_size, self._max_rejections = image_size, batch_size, max_rejections
        _settle(folder, {**recipe, "image_size": image_size, "plan": _digest(plan)})
        self._manifest = Manifest(folder)
        self._manifest.keep(_whole(folder, self._manifest.records))
        _remove_strays(folder, self._manifest.records)

    @property
    def total(self) -> int:
        return len(self._plan)

    @property
    def done(self) -> int:
        """Images that are finished."""
        return len(self._manifest.records)

    @property
    def outputs(self) -> list[Path]:
        """What the job makes."""
        return [self._folder / _JOB, self._manifest.path, self._folder / IMAGES]

    @property
    def rejected(self) -> Counter[str]:
        """Reason -> images that were made and not kept."""
        return Counter(reason for record in self._manifest.records.values() for reason in record.rejected)

    def run(self, load: Callable[[], Sampler], *, task: Task = SILENT, interrupt: Interrupt = NEVER) -> None:
        """Makes what is missing.

        Args:
            load: gives the model; called only if something is missing.
            task: advances by images.

        Raises:
            AimfairError: too many images are rejected; those that are finished stay.
            Interrupted: between two batches.
            OSError: an image or the manifest cannot be written.
        """
        starts = range(0, len(self._plan), self._batch_size)
        batches = [self._plan[start : start + self._batch_size] for start in starts]
        missing = [batch for batch in batches if any(planned.image not in self._manifest.records for planned in batch)]
        if not missing:
            return
        sampler = load()
        owners = {record.digest: image for image, record in self._manifest.records.items()}
        for batch in missing:
            interrupt.check()
            begin = time.monotonic()
            made = self._make(batch, sampler, owners)
            new = [one for one in made if one.record.image not in self._manifest.records]
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(partial(_write, self._folder), new))  # list: to raise what a thread raised
            self._manifest.append([one.record for one in new])
            self._refuse_many_rejections()
            task.advance(len(new), note=f"{len(batch) / (time.monotonic() - begin):.1f} images/s")
        self._manifest.keep(self._manifest.records)

    def _make(self, batch: Sequence[PlannedImage], sampler: Sampler, owners: dict[str, int]) -> list[_Made]:
        """Every image of the batch; rejected ones are made anew, together, until all are kept.

        Args:
            owners: digest -> number of the image that has it; kept images are added.
        """
        made: list[_Made] = []
        rejected: dict[int, list[str]] = {planned.image: [] for planned in batch}
        pending = list(batch)
        while pending:
            seeds = [seed_of_attempt(planned, len(rejected[planned.image])) for planned in pending]
            samples = sampler.sample([planned.text for planned in pending], seeds)
            again = []
            for planned, seed, pixels, finite in zip(pending, seeds, *samples, strict=True):
                image = Image.fromarray(pixels)
                if len(pixels) > self._image_size:
                    image = Image.fromarray(fit(image, self._image_size))
                digest = content_digest(image)[:DIGITS]
                reason = rejection(np.asarray(image), bool(finite), digest, owners, planned.image)
                reasons = rejected[planned.image]
                if reason is None:
                    owners[digest] = planned.image
                    record = ImageRecord(
                        **planned.model_dump(exclude={"seed"}),
                        seed=seed,
                        file=file_name(planned.image, digest),
                        attempt=len(reasons),
                        rejected=reasons,
                    )
                    made.append(_Made(record, np.asarray(image)))
                else:
                    reasons.append(reason)
                    again.append(planned)
                if len(reasons) == _ATTEMPTS:
                    raise AimfairError(
                        f"image {planned.image} ({planned.text!r}) was rejected {_ATTEMPTS} times in a row: "
                        f"{', '.join(reasons)}; try generate.dtype float32 or bfloat16, or another generate.model"
                    )
            pending = again
        return sorted(made, key=lambda one: one.record.image)

    def _refuse_many_rejections(self) -> None:
        if (count := self.rejected.total()) > self._max_rejections * len(self._plan):
            reasons = ", ".join(f"{reason} {number}" for reason, number in self.rejected.most_common())
            raise AimfairError(
                f"{count} images rejected ({reasons}), more than {self._max_rejections:.0%} of the {len(self._plan)} "
                "wanted; raise generate.max_rejections, or change generate.model, dtype or steps"
            )


def recipe_of(folder: Path) -> dict[str, Any]:
    """What the images in a folder depend on; empty if there are none, or nobody knows."""
    path = folder / _JOB
    recipe = _read(path) if path.exists() else None
    return recipe if isinstance(recipe, dict) else {}


def _settle(folder: Path, job: dict[str, Any]) -> None:
    """Leaves nothing in the folder that is not of this job."""
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    path = folder / _JOB
    if path.exists() and _read(path) != job:
        folder.rename(doomed)  # at once: half of a folder could be taken for a job that was cut off
        shutil.rmtree(doomed)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if foreign := sorted(entry.name for entry in folder.iterdir() if not is_temporary(entry.name)):
            raise AimfairError(
                f"{folder}: holds {', '.join(foreign[:3])} but no {_JOB}, so it is no folder of synthetic images; "
                "move it away"
            )
        write_json(path, job)
    (folder / IMAGES).mkdir(exist_ok=True)


def _read(path: Path) -> Any:
    """None if it is damaged: what it vouched for cannot be known."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _digest(plan: Sequence[PlannedImage]) -> str:
    return hashlib.sha256(as_lines(plan).encode()).hexdigest()


def _whole(folder: Path, records: Mapping[int, ImageRecord]) -> dict[int, ImageRecord]:
    """The records whose files hold what they should."""

    def is_whole(record: ImageRecord) -> bool:
        try:
            return content_digest(read_rgb(folder / record.file, _MAX_PIXELS)).startswith(record.digest)
        except ImageError:
            return False

    with ThreadPoolExecutor(_THREADS) as threads:
        whole = threads.map(is_whole, records.values())
        return {image: record for (image, record), good in zip(records.items(), whole, strict=True) if good}


def _remove_strays(folder: Path, records: Mapping[int, ImageRecord]) -> None:
    """Removes files that no record names."""
    known = {folder / record.file for record in records.values()}
    for path in (folder / IMAGES).iterdir():
        if path not in known:
            path.unlink()


def _write(folder: Path, made: _Made) -> None:
    with replace_file(folder / made.record.file) as temporary:
        Image.fromarray(made.pixels).save(temporary, "PNG")
