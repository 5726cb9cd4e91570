"""The list of finished images: one JSON line for each, added only when the image is on disk."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from aimfair.files import write_text
from aimfair.generation.lines import as_lines, read_lines
from aimfair.generation.plan import PlannedImage
from aimfair.seeds import derive_seed

DIGITS = 12
"""Of the digest of an image's pixels, in the name of its file."""


class ImageRecord(PlannedImage):
    """A finished image.

    Attributes:
        seed: of the noise that it was made from: :func:`seed_of_attempt`.
        file: relative to the folder of the manifest; its name is the image's number and the digest of its pixels.
        attempt: how many images were rejected before this one.
        rejected: why each was.
    """

    file: Annotated[str, Field(pattern=rf"^images/[0-9]{{6,}}-[0-9a-f]{{{DIGITS}}}\.png$")]
    attempt: int
    rejected: list[str]

    @property
    def digest(self) -> str:
        """The first :data:`DIGITS` digits."""
        return self.file.removesuffix(".png")[-DIGITS:]


class Manifest:
    """``manifest.jsonl`` in a folder, or its beginning.

    Attributes:
        records: number of the image -> its record, in order.

    Raises:
        AimfairError: a line is damaged; but the half line that a killed process left at the end is dropped.
    """

    def __init__(self, folder: Path):
        self.path = folder / "manifest.jsonl"
        lines = read_lines(self.path, ImageRecord, appended=True) if self.path.exists() else []
        self.records: dict[int, ImageRecord] = {record.image: record for record in lines}

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Adds lines, on disk when this returns. Their files are there already."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(as_lines(records))
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.image, record) for record in records)

    def keep(self, records: Mapping[int, ImageRecord]) -> None:
        """Replaces the file by these records, sorted by number."""
        self.records = dict(sorted(records.items()))
        write_text(self.path, as_lines(list(self.records.values())))


def file_name(image: int, digest: str) -> str:
    """No text of a prompt becomes part of a path."""
    return f"images/{image:06d}-{digest[:DIGITS]}.png"


def seed_of_attempt(planned: PlannedImage, attempt: int) -> int:
    """The planned seed, and for each new attempt another."""
    return derive_seed(planned.seed, "attempt", attempt) if attempt else planned.seed
