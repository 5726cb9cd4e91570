"""One process's part of a job: batches go from the sampler through the filters to files and records."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.interrupt import Interrupt
from aimfair.data.decode import content_digest, dhash, fit
from aimfair.diffusion.sampler import Editor, Sampler, Samples
from aimfair.generation.filters import ImageFilter, Scorer
from aimfair.generation.filters.pixels import blank
from aimfair.generation.manifest import DIGITS, Outcome, image_name, seed_of_attempt
from aimfair.generation.plan import PlannedImage
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.store import ImageStore
from aimfair.generation.writer import Writer, encode

Note = Callable[[Sequence[Outcome]], None]


class Worker:
    """Makes images, and measures the time.

    Args:
        store: takes the images; closed after every :meth:`make`.
        image_size: larger images are reduced to this many pixels along each side.
        load, load_filters: give the model and the filters; called before the first batch.
        record: called with the outcomes of a batch once its files are on disk, by a separate thread.
        interrupt: checked between two batches.

    Attributes:
        images, batches: made so far.
        sampling, filtering, stalled: seconds in the sampler, in the filters, and waiting for files.
        encoding: seconds of threads beside the sampler that reduce, check and write images, summed.
    """

    def __init__(
        self,
        store: ImageStore,
        settings: GenerateSettings,
        image_size: int,
        load: Callable[[], Sampler],
        load_filters: Callable[[], Sequence[ImageFilter | Scorer]],
        record: Note,
        interrupt: Interrupt,
    ):
        self._store, self._settings, self._image_size = store, settings, image_size
        self._load, self._load_filters = load, load_filters
        self._record, self._interrupt = record, interrupt
        self._models: tuple[Sampler, Sequence[ImageFilter | Scorer]] | None = None
        self._start = 0.0
        self.images = self.batches = 0
        self.sampling = self.filtering = self.stalled = self.encoding = 0.0
        self._encoded = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the models were loaded; 0 if they are not."""
        return 0.0 if self._models is None else time.monotonic() - self._start

    @property
    def parts(self) -> Mapping[str, float]:
        """Part of the sampler's work -> seconds, as far as the sampler measures them."""
        return {} if self._models is None else dict(self._models[0].seconds)

    @property
    def small_decoders(self) -> bool:
        """As of the sampler."""
        return self._models is not None and self._models[0].small_decoders

    def make(
        self,
        batches: Sequence[Sequence[PlannedImage]],
        attempt: int,
        is_missing: Callable[[PlannedImage], bool],
        note: Note,
    ) -> None:
        """Makes the missing images of these batches; all are recorded when this returns.

        The others of a batch are sampled too, so that each image has the same neighbours, and dropped.

        Args:
            attempt: at each of the images.
            note: called with the outcomes of a batch once they are recorded, by the thread that calls this.

        Raises:
            Exception: from ``note``, the sampler, a filter, or the writing of an image or record.
            Interrupted: between two batches.
        """
        if batches and self._models is None:
            self._models = self._load(), self._load_filters()
            self._start = time.monotonic()

        def done(outcomes: Sequence[Outcome]) -> None:
            self.images += len(outcomes)
            self.batches += 1
            note(outcomes)

        before = 0.0
        with closing(self._store), Writer(self._on_disk, done) as writer:
            for batch in batches:
                self._interrupt.check()
                writer.put(self._sample(batch, attempt, is_missing))
                self.stalled, before = self.stalled + writer.stalled - before, writer.stalled
        self.stalled += writer.stalled - before

    def _on_disk(self, outcomes: Sequence[Outcome]) -> None:
        """Records a batch, whose images have been put."""
        self._store.flush()
        self._record(outcomes)

    def _sample(
        self, batch: Sequence[PlannedImage], attempt: int, is_missing: Callable[[PlannedImage], bool]
    ) -> list[Callable[[], Outcome]]:
        """A batch from the sampler: for each missing image, the work that is left."""
        assert self._models is not None
        sampler, filters = self._models
        begin = time.monotonic()
        seeds = [seed_of_attempt(planned, attempt) for planned in batch]
        samples = draw(sampler, batch, seeds)
        sampled = time.monotonic()
        reasons: list[str | None] = [None] * len(batch)
        scores: Sequence[float | None] = [None] * len(batch)
        groups = [planned.group for planned in batch]
        for one in filters:
            if isinstance(one, Scorer):
                scores = one.scores(samples.images, groups)
            else:
                found = one.reasons(samples.images, groups)
                reasons = [first or second for first, second in zip(reasons, found, strict=True)]
        self.sampling += sampled - begin
        self.filtering += time.monotonic() - sampled
        return [
            partial(self._complete, planned.image, attempt, pixels, bool(finite), reason, score)
            for planned, pixels, finite, reason, score in zip(batch, *samples, reasons, scores, strict=True)
            if is_missing(planned)
        ]

    def _complete(
        self,
        number: int,
        attempt: int,
        pixels: npt.NDArray[np.uint8],
        finite: bool,
        reason: str | None,
        score: float | None,
    ) -> Outcome:
        """Reduces, checks and writes an image."""
        with self._measured():
            image = Image.fromarray(pixels)
            if len(pixels) > self._image_size:
                image = Image.fromarray(fit(image, self._image_size))
            reduced = np.asarray(image)
            reason = blank(reduced, finite) or reason
            if reason is not None:
                return Outcome(image=number, attempt=attempt, reason=reason)
            digest, suffix = content_digest(image)[:DIGITS], self._settings.image_format
            self._store.put(image_name(number, digest, suffix), encode(reduced, suffix))
            near = dhash(image) if self._settings.filters.hashed else None
            return Outcome(image=number, attempt=attempt, digest=digest, hash=near, score=score)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Adds the time inside to :attr:`encoding`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            with self._encoded:
                self.encoding += time.monotonic() - begin


def draw(sampler: Sampler, batch: Sequence[PlannedImage], seeds: Sequence[int]) -> Samples:
    """A batch of a plan, all of whose images are made from real ones, or none."""
    texts = [planned.text for planned in batch]
    sources = [planned.source for planned in batch if planned.source is not None]
    if not sources:
        return sampler.sample(texts, seeds)
    assert isinstance(sampler, Editor)
    return sampler.edit(texts, seeds, sources)
