"""The result of ``aimfair scan``, and the schema of the file that ``--json`` writes.

Arrays over groups are [Y][A]: target class, then protected value, in the order of
``target_names`` and ``protected_names``. Names of files are relative to ``root``. There are no timestamps: the
same files and settings give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from aimfair.base.files import write_text
from aimfair.base.settings import Record
from aimfair.data.catalogue import Rejected, by_reason

Groups = list[list[int]]
"""[Y][A], numbers of images."""


EXAMPLES = 5
"""Named examples of each finding, at most."""


def readable(name: str) -> str:
    """A name with bytes that are not UTF-8, which JSON cannot hold, as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


class Reason(Record):
    """A reason for skipping rows or files.

    Attributes:
        reason: with names and numbers replaced by "...", unless all are equal.
        examples: (name, the reason in full), the first few.
    """

    reason: str
    count: int
    examples: list[tuple[str, str]]


class LeftOut(Record):
    """The unusable ones of ``total`` rows or files; the most frequent reason first."""

    total: int
    left_out: int
    reasons: list[Reason]

    @classmethod
    def of(cls, rejected: Sequence[Rejected], total: int) -> Self:
        """Grouped as :func:`aimfair.data.catalogue.by_reason` does."""
        return cls(
            total=total,
            left_out=len(rejected),
            reasons=[
                Reason(
                    reason=readable(reason),
                    count=len(found),
                    examples=[(readable(one.name), readable(one.reason)) for one in found[:EXAMPLES]],
                )
                for reason, found in by_reason(rejected)
            ],
        )


class Copies(Record):
    """Images that several files contain, equal in every pixel.

    Attributes:
        images: number of different images; files: number of files that contain them.
        examples: the files of the first few.
    """

    images: int
    files: int
    examples: list[list[str]]


class NearCopies(Record):
    """Pairs of images of different splits that are similar but not equal.

    Attributes:
        pairs: their number; with_test: number of pairs with an image of the test set.
        examples: the first few.
        complete: False if too many images are similar to compare all pairs.
    """

    pairs: int
    with_test: int
    examples: list[tuple[str, str]]
    complete: bool


class Duplicates(Record):
    """Copies and near-copies.

    Attributes:
        within: copies with equal labels within a split, or within a data set without splits.
        contradictory: copies with different labels, in any split.
        train_val: images both in training and in validation, but not in the test set.
        test: images of the test set that are in another split as well.
        near: None if the splits are unknown.
    """

    within: Copies
    contradictory: Copies
    train_val: Copies
    test: Copies
    near: NearCopies | None


class Extent(Record):
    """Range and median."""

    least: float
    median: float
    greatest: float


class ImageFacts(Record):
    """The decodable files, as stored, upright.

    Attributes:
        width, height: in pixels. elongation: the longer side over the shorter one.
        not_square: number that is cropped or stretched; smaller: number that is enlarged to data.image_size.
        grey: number with three equal channels.
        dark: number without a value above 31 of 255, once decoded; dark_examples: the first few.
        formats: JPEG, PNG, WEBP -> number.
    """

    total: int
    width: Extent
    height: Extent
    elongation: Extent
    not_square: int
    smaller: int
    grey: int
    dark: int
    dark_examples: list[str]
    formats: dict[str, int]


class Taken(Record):
    """What a run with these settings would use.

    Attributes:
        refusal: the error with which it would fail; None: it would not.
        warnings: which it would log.
        groups: train, val, test -> images of each group; None if the data set itself is refused.
        association: as in :class:`Scan`, of its training images.
    """

    refusal: str | None
    warnings: list[str]
    groups: dict[str, Groups] | None
    association: float | None


class AttributeCounts(Record):
    """An attribute for further groups in evaluate: of ``data.audit``, or of an intersection.

    Attributes:
        counts: split, as in :class:`Scan`'s groups -> decodable images of each of ``names``.
    """

    name: str
    names: list[str]
    counts: dict[str, list[int]]


class Spelled(Record):
    """Values of an attribute that differ only in spelling.

    Attributes:
        key, name: the setting that names the attribute, and its name.
        groups: for each value that is spelled in several ways, its spellings and how often each occurs.
        what, advice: as a problem.
    """

    key: str
    name: str
    groups: list[list[tuple[str, int]]]
    what: str
    advice: str


class Imported(Record):
    """The images of ``generate.folder``.

    Attributes:
        refusal: the error with which a run would fail; None: it would not. warnings: which it would log.
        files: undecodable images. None, as ``found`` and ``usable``, if the folder cannot be read.
        found: images of each group; usable: the decodable ones among them, without copies.
        copies: number skipped as copies; two_groups: number skipped because they are in two groups.
        leaks: train, val, test -> number of its real images in the folder; leak_examples: file and real image.
    """

    folder: str
    refusal: str | None
    warnings: list[str]
    files: LeftOut | None
    found: Groups | None
    usable: Groups | None
    copies: int
    two_groups: int
    leaks: dict[str, int]
    leak_examples: list[tuple[str, str]]


class Problem(Record):
    """A problem and its fix.

    Attributes:
        level: "error": no run is possible; "warning": results suffer; "note": may be intended.
    """

    level: Literal["error", "warning", "note"]
    what: str
    advice: str


class Scan(Record):
    """Facts and problems of a data set.

    Attributes:
        root: folder of the data set; None for generated data, which has no rows, files, images and duplicates.
        groups: split -> decodable images of each group; "all" if the data set has no splits.
        association: Cramer's V of class and protected value (phi for two of each) in the training images, or in all
            if there are no splits: 0 independent, 1 one determines the other. None if undefined.
        protected: the attribute, or those whose combinations are the protected values: "colour x size".
        attributes: further attributes.
        spellings: one for each attribute with values that differ only in spelling.
        imported: None if a run would generate the synthetic images.
        small_group: groups with fewer test images are flagged.
    """

    schema_version: Literal[2] = 2
    kind: str
    root: str | None
    target: str
    protected: str
    target_names: list[str]
    protected_names: list[str]
    small_group: int
    rows: LeftOut | None
    files: LeftOut | None
    groups: dict[str, Groups]
    attributes: list[AttributeCounts]
    spellings: list[Spelled]
    association: float | None
    images: ImageFacts | None
    duplicates: Duplicates | None
    taken: Taken
    imported: Imported | None
    problems: list[Problem]

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")
