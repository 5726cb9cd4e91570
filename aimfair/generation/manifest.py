"""What is known of the images: a line for each one made, while a job goes on, and one for each one kept, at its end.

``shards/<rank>.jsonl`` is what one process adds to, each line once the image is on disk; ``manifest.jsonl`` is the
result, in which nothing tells any more how many processes there were, or how often they were killed.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aimfair.base.files import append_text, write_text
from aimfair.base.lines import Line, as_lines, read_lines
from aimfair.base.seeds import derive_seed
from aimfair.generation.plan import PlannedImage

DIGITS = 12
"""Of the digest of an image's pixels, in the name of its file."""

Format = Literal["png", "webp"]
"""Of images that are made here."""

Suffix = Literal["png", "webp", "jpg"]
"""Of any: an image that was made elsewhere is kept as it came."""


class Outcome(Line):
    """What came of one attempt at one image.

    Attributes:
        image: its position in the plan.
        attempt: how many images were rejected before this one.
        digest: of its pixels, :data:`DIGITS` digits; None if it was rejected.
        hash: its perceptual hash, 16 hexadecimal digits, where near-duplicates are looked for; None if it was rejected.
        reason: why it was rejected; None if nothing was wrong with the image by itself.
    """

    image: int
    attempt: int
    digest: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{DIGITS}}}$")] | None
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None
    reason: str | None

    @property
    def key(self) -> tuple[int, int]:
        return self.image, self.attempt


class ImageRecord(PlannedImage):
    """An image that was kept.

    Attributes:
        seed: of the noise that it was made from: :func:`seed_of_attempt`. Of an image that was made elsewhere it is 0,
            and text and prompt are empty, unless a manifest came with it.
        file: relative to the folder of the manifest; its name is the image's number and the digest of its pixels.
        attempt: how many images were rejected before this one.
        rejected: why each was.
        hash: as in :class:`Outcome`.
    """

    file: Annotated[str, Field(pattern=rf"^images/[0-9]{{6,}}-[0-9a-f]{{{DIGITS}}}\.(png|webp|jpg)$")]
    attempt: int
    rejected: list[str]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None

    @property
    def digest(self) -> str:
        """The first :data:`DIGITS` digits."""
        return self.file.partition(".")[0][-DIGITS:]


class Manifest:
    """``manifest.jsonl`` in a folder.

    Attributes:
        records: number of the image -> its record, in order; empty before the job has ended.

    Raises:
        AimfairError: a line is damaged.
    """

    def __init__(self, folder: Path):
        self.path = folder / "manifest.jsonl"
        lines = read_lines(self.path, ImageRecord) if self.path.exists() else []
        self.records: dict[int, ImageRecord] = {record.image: record for record in lines}

    def keep(self, records: Mapping[int, ImageRecord]) -> None:
        """Replaces the file by these records, sorted by number."""
        self.records = dict(sorted(records.items()))
        write_text(self.path, as_lines(list(self.records.values())))

    def outcomes(self) -> list[Outcome]:
        """What the records say of every attempt."""
        return [
            outcome
            for record in self.records.values()
            for outcome in (
                *(
                    Outcome(image=record.image, attempt=attempt, digest=None, hash=None, reason=reason)
                    for attempt, reason in enumerate(record.rejected)
                ),
                Outcome(
                    image=record.image, attempt=record.attempt, digest=record.digest, hash=record.hash, reason=None
                ),
            )
        ]


class Shards:
    """``shards/*.jsonl`` in a folder: what the processes of a job have made that has not ended."""

    def __init__(self, folder: Path):
        self.folder = folder / "shards"

    def read(self) -> list[Outcome]:
        """All lines of all of them, but for the half line that a killed process left at the end of one.

        Raises:
            AimfairError: a line is damaged.
        """
        return [line for path in self._paths() for line in read_lines(path, Outcome, appended=True)]

    def replace(self, outcomes: Iterable[Outcome]) -> None:
        """Puts one file with these lines in place of all that is there."""
        first = self._path(0)
        self.folder.mkdir(exist_ok=True)
        lines = sorted(outcomes, key=lambda outcome: outcome.key)
        write_text(first, as_lines(lines))
        for path in self._paths():
            if path != first:
                path.unlink()

    def append(self, rank: int, outcomes: Sequence[Outcome]) -> None:
        """Adds lines to the file of one process, on disk when this returns. Their images are there already.

        Raises:
            OSError: they cannot be written, of a full disk say; the file is cut back to what it was, if it can be.
        """
        append_text(self._path(rank), as_lines(outcomes))

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
    """No text of a prompt becomes part of a path."""
    return f"images/{image:06d}-{digest[:DIGITS]}.{suffix}"


def seed_of_attempt(planned: PlannedImage, attempt: int) -> int:
    """The planned seed, and for each new attempt another."""
    return derive_seed(planned.seed, "attempt", attempt) if attempt else planned.seed
