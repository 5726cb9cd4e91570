"""Makes the images of a plan, in rounds of batches; a job that was cut off continues where it was.

First the files of a batch are on disk, then its lines in a shard, then, when all images are there, the manifest. An
image is finished if its line is there and its file holds the pixels whose digest is in its name; any other file is what
a killed job left, and is removed. Batch i of a round belongs to process i modulo their number. What a round is made of
is decided in ``rounds.py`` by what came of the images, so neither kills nor the number of processes change a byte.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lines import as_lines
from aimfair.base.progress import SILENT, Task
from aimfair.data.decode import content_digest, fit
from aimfair.data.dhash import dhash
from aimfair.diffusion.sampler import Sampler
from aimfair.generation.encode import write_image
from aimfair.generation.filters import pixels as visible
from aimfair.generation.filters.interface import ImageFilter
from aimfair.generation.job_folder import IMAGES, JOB, settle, whole
from aimfair.generation.manifest import (
    DIGITS,
    Format,
    ImageRecord,
    Manifest,
    Outcome,
    Shards,
    file_name,
    seed_of_attempt,
)
from aimfair.generation.plan import PlannedImage
from aimfair.generation.ranks import ALONE, Ranks
from aimfair.generation.rounds import Rounds
from aimfair.generation.writer import Writer

_BROKEN = visible.REASONS | {"duplicate"}  # what a model that works hardly ever makes
_BROKEN_ATTEMPTS = 5  # at an image; a model that fails so often in a row will go on failing
_ATTEMPTS = 50  # with filters; where they take two of three away, one of a billion images comes so far
_HOPELESS = 5  # batches without a good image, the first of a process


class Speed(BaseModel):
    """How long the images took that one call of :meth:`Job.run` made.

    Attributes:
        images: made, rejected ones too, by all processes.
        seconds: from beginning to end, without the loading of models.
        sampling, filters: seconds in the sampler, and in filters that run beside it; mean over the processes.
        stalled: seconds that samplers waited for files; mean over the processes.
        processes: their number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    seconds: float
    sampling: float
    filters: float
    stalled: float
    processes: int


class Job:
    """The images of a plan, of which some may be there already.

    Opening one looks for them; :meth:`run` makes the others. Of several processes, each opens the same one, at the same
    time, and rank 0 alone changes what was there.

    Args:
        folder: for the manifest and the images; made if absent.
        plan: numbered from 0.
        recipe: whatever else the images depend on, in JSON's types.
        image_size: larger images are reduced to this many pixels along each side.
        batch_size: images at a time.
        max_rejections: rejected images over wanted ones; with more the job is given up.
        image_format: of the files.
        near_duplicates: as in :class:`Rounds`.
        ranks: the processes that share the job.
        overwrite: whether images of another plan or recipe may be removed.

    Raises:
        AimfairError: the folder holds something else, or images that may not be removed, or its manifest or a shard is
            damaged.
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
        image_format: Format = "png",
        near_duplicates: int | None = None,
        ranks: Ranks = ALONE,
        overwrite: bool = False,
    ):
        self.plan = plan
        self._folder, self._ranks = folder, ranks
        self._image_size, self._batch_size, self._max_rejections = image_size, batch_size, max_rejections
        self._format, self._near_duplicates = image_format, near_duplicates
        self._shards = Shards(folder)
        outcomes: list[Outcome] = []
        if ranks.rank == 0:
            job = {**recipe, "image_size": image_size, "image_format": image_format, "plan": _digest(plan)}
            settle(folder, job, overwrite=overwrite)
            outcomes = self._find()
        self._rounds = Rounds(plan, near_duplicates)
        self._rounds.add(_parse(ranks.gather(as_lines(outcomes))[0]))
        self._speed: Speed | None = None

    @property
    def total(self) -> int:
        return len(self.plan)

    @property
    def done(self) -> int:
        """Images that are finished."""
        return self._rounds.finished

    @property
    def outputs(self) -> list[Path]:
        """What the job makes."""
        return [self._folder / JOB, Manifest(self._folder).path, self._folder / IMAGES]

    @property
    def rejected(self) -> Counter[str]:
        """Reason -> images that were made and not kept."""
        return Counter(reason for _, reason in self._rounds.rejections)

    @property
    def rejections(self) -> list[tuple[PlannedImage, str]]:
        """What was made and not kept, and why."""
        return self._rounds.rejections

    @property
    def speed(self) -> Speed | None:
        """Of the last :meth:`run`; None if there was nothing to make."""
        return self._speed

    def run(
        self,
        load: Callable[[], Sampler],
        load_filters: Callable[[], Sequence[ImageFilter]] = tuple,
        *,
        task: Task = SILENT,
        interrupt: Interrupt = NEVER,
    ) -> None:
        """Makes what is missing, and writes the manifest.

        Args:
            load, load_filters: give the model, and what looks at its images; called only if something is missing.
            task: advances by images, those of all processes.

        Raises:
            AimfairError: too many images are rejected; those that are finished stay. Or another process failed.
            Interrupted: between two batches.
            OSError: an image, a shard or the manifest cannot be written.
        """
        work = _Work(task, interrupt, self.done)
        while self._rounds.wanted:
            missing = {planned.image for planned in self._rounds.missing()}
            batches = self._rounds.batches(self._batch_size)[self._ranks.rank :: self._ranks.size]
            batches = [batch for batch in batches if any(planned.image in missing for planned in batch)]
            if batches and work.sampler is None:
                work.sampler, work.filters = load(), load_filters()
            made = self._make(batches, work)
            texts = self._ranks.gather(as_lines(made), lambda: self._show(work))
            self._rounds.add(outcome for text in texts for outcome in _parse(text))
            work.show(self.done)
            self._refuse_stubborn_images()
            self._refuse_many_rejections(self.rejected)
        self._speed = self._measure(work)
        if self._ranks.rank == 0:
            self._finish()

    def _make(self, batches: Sequence[Sequence[PlannedImage]], work: "_Work") -> list[Outcome]:
        """What is missing of these batches of the present round; recorded when this returns."""
        attempt, rejected = self._rounds.attempt, self.rejected
        good = 0
        made: list[Outcome] = []
        work.begin_round(attempt)

        def note(outcomes: Sequence[Outcome]) -> None:
            nonlocal good
            made.extend(outcomes)
            reasons = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
            rejected.update(reasons)
            good += (new := len(outcomes) - reasons.total())
            work.made += len(outcomes)
            work.batches += 1
            self._show(work, good, new)
            self._refuse_many_rejections(rejected)
            if work.batches == _HOPELESS and not good and attempt == 0:
                raise AimfairError(f"the first {work.made} images were all rejected ({_counted(rejected)}); {_MEND}")

        if batches:
            self._shards.folder.mkdir(exist_ok=True)
        with Writer(partial(self._shards.append, self._ranks.rank), note) as writer:
            for batch in batches:
                work.interrupt.check()
                writer.put(self._sample(batch, attempt, work))
        work.stalled += writer.stalled
        return made

    def _sample(self, batch: Sequence[PlannedImage], attempt: int, work: "_Work") -> list[Callable[[], Outcome]]:
        """A batch from the sampler, as what is still to be done with each image that is missing."""
        assert work.sampler is not None
        begin = time.monotonic()
        seeds = [seed_of_attempt(planned, attempt) for planned in batch]
        samples = work.sampler.sample([planned.text for planned in batch], seeds)
        sampled = time.monotonic()
        reasons: list[str | None] = [None] * len(batch)
        for one in work.filters:
            found = one.reasons(samples.images, [(planned.y, planned.a) for planned in batch])
            reasons = [first or second for first, second in zip(reasons, found, strict=True)]
        work.sampling += sampled - begin
        work.filtering += time.monotonic() - sampled
        return [
            partial(self._complete, planned, attempt, pixels, bool(finite), reason)
            for planned, pixels, finite, reason in zip(batch, *samples, reasons, strict=True)
            if (planned.image, attempt) not in self._rounds.outcomes
        ]

    def _complete(
        self, planned: PlannedImage, attempt: int, pixels: npt.NDArray[np.uint8], finite: bool, reason: str | None
    ) -> Outcome:
        """Reduces, judges and writes an image."""
        image = Image.fromarray(pixels)
        if len(pixels) > self._image_size:
            image = Image.fromarray(fit(image, self._image_size))
        reason = visible.rejection(np.asarray(image), finite) or reason
        if reason is not None:
            return Outcome(image=planned.image, attempt=attempt, digest=None, hash=None, reason=reason)
        digest = content_digest(image)[:DIGITS]
        write_image(self._folder / file_name(planned.image, digest, self._format), np.asarray(image), self._format)
        near = dhash(image) if self._near_duplicates is not None else None
        return Outcome(image=planned.image, attempt=attempt, digest=digest, hash=near, reason=None)

    def _show(self, work: "_Work", here: int | None = None, new: int = 0) -> None:
        """Progress of all processes: ``here`` images of this round are good, ``new`` of them since the last call."""
        elsewhere = self._ranks.advance(work.round, new)
        if self._ranks.size > 1:
            work.show(work.before + elsewhere)
        elif here is not None:
            work.show(work.before + here)

    def _refuse_stubborn_images(self) -> None:
        for planned in self._rounds.wanted:
            reasons = self._rounds.rejected[planned.image]
            broken = sum(reason in _BROKEN for reason in reasons)
            if broken >= _BROKEN_ATTEMPTS or len(reasons) >= _ATTEMPTS:
                raise AimfairError(
                    f"image {planned.image} ({planned.text!r}) was rejected {len(reasons)} times in a row "
                    f"({_counted(Counter(reasons))}); {_MEND}"
                )

    def _refuse_many_rejections(self, rejected: Counter[str]) -> None:
        """With too many, all processes fail here: after a round they know what the others made."""
        if (count := rejected.total()) > self._max_rejections * len(self.plan):
            raise AimfairError(
                f"{count} images rejected ({_counted(rejected)}), more than {self._max_rejections:.0%} of the "
                f"{len(self.plan)} wanted; raise generate.max_rejections, or {_MEND}"
            )

    def _find(self) -> list[Outcome]:
        """What was made before, with decisions of earlier rounds; all that vouches for nothing is removed."""
        before = Rounds(self.plan, self._near_duplicates)
        before.add([*Manifest(self._folder).outcomes(), *self._shards.read()])
        outcomes = before.decided()
        intact = whole(self._folder, [(one.key, self._file(one)) for one in outcomes if one.digest is not None])
        outcomes = [one for one in outcomes if one.digest is None or one.key in intact]
        if self._shards.exist():
            self._shards.replace(outcomes)
        self._remove_strays(outcomes)
        return outcomes

    def _finish(self) -> None:
        """Puts the manifest in place of the shards."""
        records = {}
        for planned in self.plan:
            outcome = self._rounds.kept[planned.image]
            records[planned.image] = ImageRecord(
                **planned.model_dump(exclude={"seed"}),
                seed=seed_of_attempt(planned, outcome.attempt),
                file=self._file(outcome),
                attempt=outcome.attempt,
                rejected=self._rounds.rejected[planned.image],
                hash=outcome.hash,
            )
        Manifest(self._folder).keep(records)
        self._shards.remove()
        self._remove_strays(list(self._rounds.kept.values()))

    def _file(self, outcome: Outcome) -> str:
        return file_name(outcome.image, outcome.digest or "", self._format)

    def _remove_strays(self, outcomes: Sequence[Outcome]) -> None:
        """Removes files that none of these is about."""
        known = {self._folder / self._file(outcome) for outcome in outcomes if outcome.digest is not None}
        for path in (self._folder / IMAGES).iterdir():
            if path not in known and not path.is_dir():
                path.unlink()

    def _measure(self, work: "_Work") -> Speed | None:
        """All processes come here; the sums over them."""
        mine = [work.made, work.seconds(), work.sampling, work.filtering, work.stalled]
        made, seconds, sampling, filters, stalled = zip(
            *(json.loads(text) for text in self._ranks.gather(json.dumps(mine))), strict=True
        )
        size = self._ranks.size
        if not sum(made):
            return None
        return Speed(
            images=sum(made),
            seconds=max(seconds),
            sampling=sum(sampling) / size,
            filters=sum(filters) / size,
            stalled=sum(stalled) / size,
            processes=size,
        )


_MEND = (
    "try generate.dtype float32 or bfloat16, another generate.model or more steps, or, if a filter rejects them, "
    "looser generate.filters"
)


class _Work:
    """What one call of :meth:`Job.run` is about: its models, its clock, and how far a person is told it has come."""

    def __init__(self, task: Task, interrupt: Interrupt, done: int):
        self.interrupt = interrupt
        self.sampler: Sampler | None = None
        self.filters: Sequence[ImageFilter] = ()
        self.made = self.batches = 0
        self.sampling = self.filtering = self.stalled = 0.0
        self.before, self.round = done, 0
        self._task, self._shown = task, done
        self._start: float | None = None

    def begin_round(self, number: int) -> None:
        self.before, self.round = self._shown, number
        if self._start is None and self.sampler is not None:
            self._start = time.monotonic()

    def show(self, done: int) -> None:
        speed = f"{self.made / self.seconds():.1f} images/s" if self.made else ""
        self._task.advance(done - self._shown, note=speed)
        self._shown = done

    def seconds(self) -> float:
        return 0.0 if self._start is None else time.monotonic() - self._start


def _digest(plan: Sequence[PlannedImage]) -> str:
    return hashlib.sha256(as_lines(plan).encode()).hexdigest()


def _parse(text: str) -> list[Outcome]:
    return [Outcome.model_validate_json(line) for line in text.splitlines()]


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
