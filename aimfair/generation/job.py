"""Generates the images of a plan, in rounds of batches; an interrupted job resumes.

The files of a batch are on disk before its lines are in a shard, and all images before the manifest. An image is
finished if it has a line and its file holds the pixels whose digest is in its name; any other file was left by a killed
job and is removed. Batch i of a round belongs to process i modulo their number. Rounds follow from the outcomes alone
(``rounds.py``), so neither kills nor the number of processes change a byte.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from pathlib import Path

from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lines import as_line, as_lines
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import SILENT, Task
from aimfair.base.ranks import ALONE, Ranks
from aimfair.diffusion.clock import PARTS
from aimfair.diffusion.sampler import Comparison, Sampler
from aimfair.generation import image_folder
from aimfair.generation.estimate import LONG, Estimator
from aimfair.generation.filters import ImageFilter, Scorer
from aimfair.generation.manifest import (
    IMAGES,
    MANIFEST,
    ImageRecord,
    Outcome,
    Shards,
    image_name,
    known_outcomes,
    seed_of_attempt,
    write_manifest,
)
from aimfair.generation.plan import PlannedImage
from aimfair.generation.provenance import Provenance
from aimfair.generation.recovery import recover
from aimfair.generation.rounds import Rounds, refuse_only_rejections
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.store import open_store
from aimfair.generation.summary import GenerationSummary, Speed
from aimfair.generation.worker import Worker


class Job:
    """The images of a plan, some of which may be there already.

    Opening a job looks for them; :meth:`run` makes the others. With several processes each opens the same job at the
    same time, and rank 0 alone changes existing files.

    Args:
        folder: for the manifest and the images; made if absent.
        plan: numbered from 0.
        provenance: what the images depend on besides plan, size and format.
        image_size: larger images are reduced to this many pixels along each side.
        ranks: the processes that share the job.
        overwrite: whether images of another plan or provenance may be removed.
        finished: summary of the job if it has ended before: with it, a damaged manifest is made again from the images.

    Attributes:
        speed: of the last :meth:`run`; None if there was nothing to make.
        comparison: for the summary; set by the caller, unless the images are made elsewhere.
        damage: what was damaged and is made again, in a line; None: nothing.

    Raises:
        AimfairError: the folder holds something else, or images that may not be removed.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[PlannedImage],
        provenance: Provenance,
        settings: GenerateSettings,
        image_size: int,
        *,
        ranks: Ranks = ALONE,
        overwrite: bool = False,
        finished: GenerationSummary | None = None,
    ):
        self.plan = plan
        self.speed: Speed | None = None
        self.comparison: Comparison | None = None
        self.damage: str | None = None
        self._folder, self._settings, self._image_size, self._ranks = folder, settings, image_size, ranks
        self._shards = Shards(folder)
        self._store = open_store(folder, settings, ranks.rank)
        outcomes: list[Outcome] = []
        if ranks.rank == 0:
            digest = hashlib.sha256()
            for planned in plan:
                digest.update(as_line(planned).encode())
            whole = provenance.with_facts(
                image_size=image_size,
                image_format=settings.image_format,
                plan=digest.hexdigest(),
                **settings.stored_as,
            )
            image_folder.settle(folder, whole, overwrite=overwrite)
            outcomes = self._find(finished)
        self._rounds = Rounds(self.plan, self._settings)
        self._rounds.add(outcomes if ranks.size == 1 else _parse(ranks.gather(as_lines(outcomes))[0]))

    @property
    def done(self) -> int:
        """Images that are finished."""
        return self._rounds.finished

    @property
    def rejected(self) -> Counter[str]:
        """Reason -> images that were made and not kept."""
        return Counter(reason for _, reason in self._rounds.rejections)

    @property
    def summary(self) -> GenerationSummary:
        """Of a job that has ended."""
        rejected = [(planned.group, reason) for planned, reason in self._rounds.rejections]
        kept = [planned.group for planned in self.plan]
        checked = list(self._settings.filters.attributes)
        return GenerationSummary.of(kept, rejected, checked, speed=self.speed, comparison=self.comparison)

    def run(
        self,
        load: Callable[[], Sampler],
        load_filters: Callable[[], Sequence[ImageFilter | Scorer]] = tuple,
        *,
        task: Task = SILENT,
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
        elsewhere: "Elsewhere | None" = None,
    ) -> None:
        """Makes what is missing, and writes the manifest.

        Args:
            load, load_filters: give the model and the filters; called only if an image is missing.
            task: advances by images, those of all processes.
            log: for an estimate of the time left, which the user sees if it is long.
            elsewhere: makes the images of a round in other processes, in place of this one and ``ranks``.

        Raises:
            AimfairError: too many images are rejected; the finished ones stay. Or another process failed.
            Interrupted: between two batches.
            OSError: an image, a shard or the manifest cannot be written.
        """
        record = partial(self._shards.append, self._ranks.rank)
        worker = Worker(self._store, self._settings, self._image_size, load, load_filters, record, interrupt)
        shown = _Shown(task, self._ranks, worker, self.done)
        estimator = Estimator(self._settings, self._ranks.size)
        while self._rounds.wanted:
            if elsewhere is not None:
                self._rounds.add(self._make_elsewhere(elsewhere))
            else:
                made = self._make_share(worker, shown, estimator, log)
                self._rounds.add(self._of_all(made, shown))
            shown.show(self.done)
            self._rounds.refuse_stubborn_images()
            self._rounds.refuse_many_rejections(self.rejected)  # all processes fail here, or none
        if elsewhere is None:
            self.speed = self._measure(worker, estimator)
        else:
            self.comparison = self._shards.comparison()
        if self._ranks.rank == 0:
            self._finish()

    def _of_all(self, made: list[Outcome], shown: "_Shown") -> Iterable[Outcome]:
        """The outcomes of all processes, each of which calls this with its own."""
        if self._ranks.size == 1:
            return made
        lines = self._ranks.gather(as_lines(made), lambda: shown.add(0))
        return (outcome for text in lines for outcome in _parse(text))

    def _make_share(self, worker: Worker, shown: "_Shown", estimator: Estimator, log: Log) -> list[Outcome]:
        """This process's share of what is missing in the current round."""
        rounds, ranks = self._rounds, self._ranks
        share = rounds.batches()[ranks.rank :: ranks.size]
        share = [batch for batch in share if any(map(rounds.is_missing, batch))]
        made: list[Outcome] = []
        before, rejected = self.rejected, Counter[str]()

        def note(outcomes: Sequence[Outcome]) -> None:
            made.extend(outcomes)
            reasons = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
            rejected.update(reasons)
            shown.add(len(outcomes) - reasons.total())
            parts = {**(worker.parts or {"sampler": worker.sampling}), "filters": worker.filtering}
            left, small = len(self.plan) - shown.done, worker.small_decoders
            if estimate := estimator.note(worker.images, left, parts, worker.stalled, small_decoders=small):
                log("estimate", **estimate.model_dump())
                if estimate.seconds_left >= LONG:
                    shown.hint = f"half the time with {estimate.halving}"
                    log.tell(str(estimate))
            rounds.refuse_many_rejections(before + rejected, made)
            if rounds.attempt == 0:
                refuse_only_rejections(rejected, len(made))

        shown.begin_round(rounds.attempt)
        worker.make(share, rounds.attempt, rounds.is_missing, note)
        return made

    def _make_elsewhere(self, elsewhere: "Elsewhere") -> list[Outcome]:
        """What is missing in the current round, by other processes."""
        rounds = self._rounds
        batches = [batch for batch in rounds.batches() if any(map(rounds.is_missing, batch))]
        missing = {planned.image for batch in batches for planned in batch if rounds.is_missing(planned)}
        start = time.monotonic()
        elsewhere(rounds.attempt, batches, missing)
        seconds = time.monotonic() - start + (self.speed.seconds if self.speed else 0)
        images = len(missing) + (self.speed.images if self.speed else 0)
        self.speed = Speed(images=images, seconds=seconds, sampling=0, filters=0, stalled=0, processes=1)
        return self._shards.read()[0]

    def _find(self, finished: GenerationSummary | None) -> list[Outcome]:
        """The outcomes of an earlier call, with the decisions of its rounds; files without an outcome are removed."""
        before = Rounds(self.plan, self._settings)
        before.add(self._known(finished))
        outcomes = before.decided()
        intact = self._store.intact([self._name(one) for one in outcomes if one.digest is not None])
        outcomes = [one for one in outcomes if one.digest is None or self._name(one) in intact]
        if self._shards.exist():
            self._shards.replace(outcomes)
        self._store.keep(intact)
        return outcomes

    def _known(self, finished: GenerationSummary | None) -> list[Outcome]:
        """The outcomes in manifest and shards, and those of lost lines that the images themselves tell."""
        of_manifest, damaged = known_outcomes(self._folder)
        of_shards, damaged_in_shards = self._shards.read()
        planned = {planned.image for planned in self.plan}
        known = [one for one in (*of_manifest, *of_shards) if one.image in planned]
        lost = []
        if not self._shards.exist():
            lost = recover(self._store, self.plan, known, finished, self._settings)
        if damaged + damaged_in_shards + len(lost):
            path = self._folder / MANIFEST if damaged + len(lost) else self._shards.folder
            self.damage = f"{path}: damaged; {len(lost):,} lines are recovered, images without a line are made again"
        return known + lost

    def _finish(self) -> None:
        """Puts the images where they stay, and the manifest in place of the shards."""
        names = [self._name(self._rounds.kept[planned.image]) for planned in self.plan]
        write_manifest(self._folder, self._store.finish(names, map(self._record, self.plan, names)))
        self._shards.remove()
        self._store.keep(names)

    def _record(self, planned: PlannedImage, name: str) -> ImageRecord:
        outcome = self._rounds.kept[planned.image]
        return ImageRecord(
            **planned.model_dump(exclude={"seed"}),
            seed=seed_of_attempt(planned, outcome.attempt),
            file=f"{IMAGES}/{name}",
            attempt=outcome.attempt,
            rejected=self._rounds.reasons_of(planned.image),
            hash=outcome.hash,
            score=outcome.score,
            measured=self._rounds.measured_of(planned.image) if self._settings.filters.by_share else None,
        )

    def _name(self, outcome: Outcome) -> str:
        return image_name(outcome.image, outcome.digest or "", self._settings.image_format)

    def _measure(self, worker: Worker, estimator: Estimator) -> Speed | None:
        """Over all processes, each of which calls this."""
        own = [worker.images, worker.seconds, worker.sampling, worker.filtering, worker.stalled, worker.encoding]
        of_processes = [json.loads(text) for text in self._ranks.gather(json.dumps([own, worker.parts]))]
        made, seconds, *means = zip(*(figures for figures, _ in of_processes), strict=True)
        if not sum(made):
            return None
        size = self._ranks.size
        sampling, filters, stalled, encoding = (sum(values) / size for values in means)
        parts = Counter[str]()
        for _, of_process in of_processes:
            parts.update(of_process)
        return Speed(
            images=sum(made),
            seconds=max(seconds),
            sampling=sampling,
            filters=filters,
            stalled=stalled,
            processes=size,
            parts={part: parts[part] / size for part in PARTS if part in parts},
            encoding=encoding,
            estimate=estimator.estimate,
        )


Elsewhere = Callable[[int, Sequence[Sequence[PlannedImage]], Set[int]], None]
"""Makes batches in other processes with :func:`make_range`: the attempt, the batches, and the images in them that are
missing; all are recorded when it returns."""


def make_range(
    folder: Path,
    settings: GenerateSettings,
    image_size: int,
    shard: int,
    attempt: int,
    batches: Sequence[Sequence[PlannedImage]],
    missing: Set[int],
    load: Callable[[], tuple[Sampler, Comparison | None]],
    load_filters: Callable[[], Sequence[ImageFilter | Scorer]] = tuple,
    *,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
) -> None:
    """Makes these images of a job that another process runs; what an earlier call has made of them is kept.

    Args:
        shard: number of the file of outcomes, of this range alone.
        load: gives the model, and a comparison with the plain one for the summary of the job.
        others: as :class:`Job` and :meth:`Job.run`.

    Raises:
        AimfairError: the first images of all are rejected without exception.
    """
    shards = Shards(folder)
    known = {one.key for one in shards.resume(shard)}
    made: list[Outcome] = []

    def note(outcomes: Sequence[Outcome]) -> None:
        made.extend(outcomes)
        task.advance(len(outcomes))
        if attempt == shard == 0:
            refuse_only_rejections(Counter(one.reason for one in made if one.reason is not None), len(made))

    def is_missing(planned: PlannedImage) -> bool:
        return planned.image in missing and (planned.image, attempt) not in known

    def load_model() -> Sampler:
        sampler, comparison = load()
        if comparison is not None:
            shards.compared(comparison)
        return sampler

    store = open_store(folder, settings, shard)
    worker = Worker(store, settings, image_size, load_model, load_filters, partial(shards.append, shard), interrupt)
    worker.make([batch for batch in batches if any(map(is_missing, batch))], attempt, is_missing, note)


class _Shown:
    """The progress of all processes, as the user sees it.

    Attributes:
        hint: shown beside the speed.
    """

    def __init__(self, task: Task, ranks: Ranks, worker: Worker, done: int):
        self._task, self._ranks, self._worker = task, ranks, worker
        self._shown = self._before = done
        self._round = self._good = 0
        self.hint = ""

    @property
    def done(self) -> int:
        """Images that are finished, as far as this process knows."""
        return self._shown

    def begin_round(self, number: int) -> None:
        self._before, self._round, self._good = self._shown, number, 0

    def add(self, good: int) -> None:
        """So many more good images of this process in this round."""
        self._good += good
        self.show(self._before + (self._ranks.advance(self._round, good) if self._ranks.size > 1 else self._good))

    def show(self, done: int) -> None:
        worker = self._worker
        speed = f"{worker.images / worker.seconds:.1f} images/s" if worker.images else ""
        self._task.advance(done - self._shown, note="; ".join(filter(None, (speed, self.hint))))
        self._shown = done


def _parse(text: str) -> list[Outcome]:
    return [Outcome.model_validate_json(line) for line in text.splitlines()]
