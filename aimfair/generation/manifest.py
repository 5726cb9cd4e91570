"""Records of the images: a line per attempt while a job runs, a line per kept image at its end.

Every process of a job appends to its own ``shards/<rank>.jsonl``, each line once the image is on disk.
``manifest.jsonl``, the result, does not depend on how many processes there were or how often they were killed.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from aimfair.base.errors import AimfairError
from aimfair.base.files import append_text, way_out, write_json
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lines import Line, as_lines, read_lines, read_record, readable_lines, write_lines
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.base.seeds import derive_seed
from aimfair.base.settings import Record
from aimfair.data.cache import decode_files
from aimfair.data.decode import Fit
from aimfair.data.images import ImageSet
from aimfair.data.sources import Folder, Members, Source
from aimfair.diffusion.sampler import Comparison
from aimfair.generation.plan import PlannedImage

MANIFEST = "manifest.jsonl"

IMAGES = "images"
"""Folder of the images."""

TAR = ".tar"
"""How the name of a file of many images ends."""

DIGITS = 12
"""Of the digest of an image's pixels, in the name of its file."""

MAX_PIXELS = 2**26
"""Of a file: imported images keep their size."""

Format = Literal["png", "webp"]
"""Of generated images."""

Suffix = Literal["png", "webp", "jpg"]
"""Of any image: imported ones keep their format."""

Set = Literal["balanced", "biased", "held_out"]
"""Where an image is used: the name of the last is :data:`aimfair.generation.plan.HELD_OUT`."""

_AGAIN = "aimfair generate"

_COMPARISON = "comparison.json"

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None


class Outcome(Line):
    """The result of one attempt at one image.

    Attributes:
        image: its position in the plan.
        attempt: how many images were rejected before this one.
        digest: of its pixels, :data:`DIGITS` digits; None if it was rejected.
        hash: its perceptual hash, 16 hexadecimal digits, if near-duplicates are filtered.
        score: its quality, if the worst are filtered.
        reason: why it was rejected; None if nothing is wrong with the image on its own. With such a reason there are
            neither hash nor score, with that of a comparison they stay.
    """

    image: int
    attempt: int
    digest: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{DIGITS}}}$")] | None = None
    hash: _Hash = None
    score: float | None = None
    reason: str | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.image, self.attempt


class Measured(Record):
    """What was measured of an attempt, as in :class:`Outcome`."""

    hash: _Hash = None
    score: float | None = None


class ImageRecord(PlannedImage):
    """An image that was kept.

    Attributes:
        seed: of the noise that it was made from (:func:`seed_of_attempt`). For an imported image it is 0, and text and
            prompt are empty, unless its source has a manifest.
        file: relative to the folder of the manifest; named by the image's number and the digest of its pixels. In a tar
            file, the path of that comes first.
        place: of an image in a tar file, from where and how many bytes; None, and missing in files: in none.
        attempt: how many images were rejected before this one.
        rejected: why each was.
        hash, score: as in :class:`Outcome`.
        measured: of each rejected attempt, if filters compare all images of a group, so that their decisions can be
            made again; None, and missing in the file: they do not.
    """

    file: Annotated[
        str, Field(pattern=rf"^images/([0-9]{{5,}}\.tar/)?[0-9]{{6,}}-[0-9a-f]{{{DIGITS}}}\.(png|webp|jpg)$")
    ]
    attempt: int
    rejected: list[str]
    hash: _Hash = None
    score: float | None = None
    measured: list[Measured] | None = None

    place: tuple[NonNegativeInt, NonNegativeInt] | None = None

    _optional: ClassVar[tuple[str, ...]] = ("pair", "source", "score", "measured", "place")

    @property
    def digest(self) -> str:
        """The first :data:`DIGITS` digits."""
        return PurePosixPath(self.file).stem[-DIGITS:]


class Manifest:
    """``manifest.jsonl`` in a folder, as the rest of the pipeline reads it.

    Attributes:
        records: number of the image -> its record, in the order of the file; empty if there is no file yet.

    Raises:
        AimfairError: a line is damaged, or two name the same file.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / MANIFEST
        lines = read_lines(self.path, ImageRecord, _AGAIN) if self.path.exists() else []
        if twice := [name for name, times in Counter(record.file for record in lines).items() if times > 1]:
            raise AimfairError(
                f"{self.path}: {twice[0]!r} is in several lines, expected one; restore the file, or remove it and do:"
                f" {_AGAIN}"
            )
        self.records: dict[int, ImageRecord] = {record.image: record for record in lines}

    @cached_property
    def source(self) -> Source:
        """Reads the images, by their files."""
        places = {record.file: record.place for record in self.records.values() if record.place is not None}
        return Members(self.folder, places) if places else Folder(self.folder)

    def stored(self, record: ImageRecord) -> Path:
        """The file on disk that holds an image."""
        path = self.folder / record.file
        return path if record.place is None else path.parent

    def load(
        self,
        which: Set,
        size: int,
        fit: Fit,
        *,
        log: Log = NOWHERE,
        progress: Progress | None = None,
        interrupt: Interrupt = NEVER,
    ) -> ImageSet:
        """The images of one of the sets, in the order of the records.

        They are decoded once, into ``decoded`` beside the manifest: a run directory is self-contained.

        Args:
            size: pixels along each side.
            fit: how images become squares. As for the real images: any difference would tell the two apart.

        Raises:
            AimfairError: the set is empty, or an image is missing or damaged.
        """
        records = [record for record in self.records.values() if which in record.sets]
        if not records:
            raise AimfairError(f"{self.path}: the {which} set has no images; run: aimfair generate")
        files = [record.file for record in records]
        cache = self.folder / "decoded"
        decoded = decode_files(
            self.source,
            files,
            size,
            MAX_PIXELS,
            fit=fit,
            folder=cache,
            log=log,
            progress=progress,
            interrupt=interrupt,
        )
        if decoded.rejected:
            name, reason = decoded.rejected[0]
            path = self.folder / name
            raise AimfairError(f"{path}: {reason}; {way_out(path, 'run: aimfair generate')}")
        y, a = np.array([record.group for record in records], dtype=np.int64).T.copy()
        return ImageSet(decoded.images, y, a, tuple(files))


def write_manifest(folder: Path, records: Iterable[ImageRecord]) -> None:
    """Replaces the file by these records, which are in the order of their numbers."""
    write_lines(folder / MANIFEST, records)


def known_outcomes(folder: Path) -> tuple[list[Outcome], int]:
    """The result of every attempt in the lines of a manifest that can be read, and the number of the other lines."""
    lines, damaged = readable_lines(folder / MANIFEST, ImageRecord)
    times = Counter(record.image for record in lines)
    usable = [
        record
        for record in lines
        if times[record.image] == 1
        and record.attempt == len(record.rejected)
        and record.attempt == len(record.measured or record.rejected)
    ]
    outcomes = []
    for record in usable:
        image = record.image
        measured = record.measured or [Measured()] * record.attempt
        outcomes += [
            Outcome(image=image, attempt=attempt, reason=why, **dict(one))
            for attempt, (why, one) in enumerate(zip(record.rejected, measured, strict=True))
        ]
        outcomes.append(
            Outcome(image=image, attempt=record.attempt, digest=record.digest, hash=record.hash, score=record.score)
        )
    return outcomes, damaged + len(lines) - len(usable)


class Shards:
    """``shards/*.jsonl`` in a folder: the outcomes of a job that has not ended, one file for each process.

    ``comparison.json`` beside them is that of the process that made the first images, if another one runs the job.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "shards"

    def read(self) -> tuple[list[Outcome], int]:
        """The lines of all files that can be read, and the number of the others.

        A killed process may have left a partial line at the end of its file.
        """
        found = [readable_lines(path, Outcome, appended=True) for path in self._paths()]
        return [line for lines, _ in found for line in lines], sum(damaged for _, damaged in found)

    def replace(self, outcomes: Iterable[Outcome]) -> None:
        """Replaces all files by a single one with these lines."""
        first = self._path(0)
        self.folder.mkdir(exist_ok=True)
        lines = sorted(outcomes, key=lambda outcome: outcome.key)
        write_lines(first, lines)
        for path in self._paths():
            if path != first:
                path.unlink()

    def append(self, rank: int, outcomes: Sequence[Outcome]) -> None:
        """Adds lines to the file of one process, on disk when this returns. Their images are already there.

        Raises:
            OSError: they cannot be written, for example because the disk is full; the file is cut back to its previous
                length if possible.
        """
        self.folder.mkdir(exist_ok=True)
        append_text(self._path(rank), as_lines(outcomes))

    def resume(self, rank: int) -> list[Outcome]:
        """The lines of the file of one process that can be read; it has no others when this returns."""
        lines, damaged = readable_lines(self._path(rank), Outcome)
        if damaged:
            write_lines(self._path(rank), lines)
        return lines

    def compared(self, comparison: Comparison) -> None:
        """Keeps a comparison for the process that runs the job."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / _COMPARISON, comparison.model_dump(mode="json"))

    def comparison(self) -> Comparison | None:
        """What :meth:`compared` has kept.

        Raises:
            AimfairError: it is damaged.
        """
        path = self.folder / _COMPARISON
        return read_record(path, Comparison, "remove it") if path.exists() else None

    def remove(self) -> None:
        if self.exist():
            shutil.rmtree(self.folder)

    def exist(self) -> bool:
        return self.folder.exists()

    def _path(self, rank: int) -> Path:
        return self.folder / f"{rank}.jsonl"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.jsonl"))


def file_name(image: int, digest: str, suffix: Suffix = "png") -> str:
    """The prompt is not part of it: no user input enters a path."""
    return f"{IMAGES}/{image_name(image, digest, suffix)}"


def image_name(image: int, digest: str, suffix: Suffix) -> str:
    """The last part of :func:`file_name`."""
    return f"{image:06d}-{digest[:DIGITS]}.{suffix}"


def seed_of_attempt(planned: PlannedImage, attempt: int) -> int:
    """The planned seed for the first attempt, another for each further one."""
    return derive_seed(planned.seed, "attempt", attempt) if attempt else planned.seed
