"""What ``aimfair scan`` finds, and the file that ``--json`` writes.

The classes below are the schema. Arrays over groups are [Y][A]: target class, then protected value, in the order of
``target_names`` and ``protected_names``. Names of files are relative to ``root``. It holds no times and no dates: the
same files and settings give the same bytes.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from aimfair.base.files import write_text
from aimfair.data.catalogue import Rejected

Groups = list[list[int]]
"""[Y][A], numbers of images."""


EXAMPLES = 5
"""Of whatever is found, so many are named."""

_PARTICULARS = re.compile(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|\d[\d,.]*")


def readable(name: str) -> str:
    """A name that is no UTF-8, which JSON could not hold, with its odd bytes as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reason(_Part):
    """Why some are left out.

    Attributes:
        reason: names and numbers in it are replaced by "...".
        examples: (name, the reason in full), the first few.
    """

    reason: str
    count: int
    examples: list[tuple[str, str]]


class LeftOut(_Part):
    """Of ``total`` rows or files those that cannot be used; reasons by number, the most frequent first."""

    total: int
    left_out: int
    reasons: list[Reason]

    @classmethod
    def of(cls, rejected: Sequence[Rejected], total: int) -> Self:
        """By reason; what differs from file to file, names and numbers, makes no reason of its own."""
        reasons: defaultdict[str, list[Rejected]] = defaultdict(list)
        for one in rejected:
            reasons[_PARTICULARS.sub("...", one.reason)].append(one)
        ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
        return cls(
            total=total,
            left_out=len(rejected),
            reasons=[
                Reason(
                    reason=reason,
                    count=len(found),
                    examples=[(readable(one.name), readable(one.reason)) for one in found[:EXAMPLES]],
                )
                for reason, found in ordered
            ],
        )


class Copies(_Part):
    """Pictures, equal to the last pixel, that are in several files.

    Attributes:
        pictures: how many; files: in how many files they are, all told.
        examples: the files of the first few.
    """

    pictures: int
    files: int
    examples: list[list[str]]


class NearCopies(_Part):
    """Pairs of images of different splits that look alike but are not equal.

    Attributes:
        pairs: how many; with_test: how many of them have an image of the test set.
        examples: the first few.
        complete: False where so many images are so much alike that not all pairs were compared.
    """

    pairs: int
    with_test: int
    examples: list[tuple[str, str]]
    complete: bool


class Duplicates(_Part):
    """
    Attributes:
        within: copies within a split, or within the whole where the data set has no splits, with equal labels.
        contradictory: copies with different labels, wherever they are.
        train_val: pictures in training and validation, but not in the test set.
        test: pictures of the test set that are in another split, too.
        near: None where it is not known which images would be in which split.
    """

    within: Copies
    contradictory: Copies
    train_val: Copies
    test: Copies
    near: NearCopies | None


class Extent(_Part):
    """The least, middle and greatest of some numbers."""

    least: float
    median: float
    greatest: float


class Pictures(_Part):
    """The files that can be decoded, as they lie there, upright.

    Attributes:
        width, height: in pixels. elongation: the longer side over the shorter one.
        not_square: how many lose their margins, or are stretched; smaller: how many are enlarged to data.image_size.
        grey: how many have no colour, to the last bit.
        dark: how many have no value above 31 of 255, once decoded; dark_examples: the first few of them.
        formats: JPEG, PNG, WEBP -> how many.
    """

    images: int
    width: Extent
    height: Extent
    elongation: Extent
    not_square: int
    smaller: int
    grey: int
    dark: int
    dark_examples: list[str]
    formats: dict[str, int]


class Taken(_Part):
    """What a run with these settings would take.

    Attributes:
        refusal: the line with which it would end; None: it would not.
        warnings: what it would warn of.
        groups: train, val, test -> images of each group; None if the data set itself is refused.
        association: as in :class:`Scan`, of its training images.
    """

    refusal: str | None
    warnings: list[str]
    groups: dict[str, Groups] | None
    association: float | None


class AttributeCounts(_Part):
    """An attribute by which evaluate forms further groups: of ``data.audit``, or one that is crossed with others.

    Attributes:
        counts: split, as in :class:`Scan`'s groups -> images of each of ``names`` that can be decoded.
    """

    name: str
    names: list[str]
    counts: dict[str, list[int]]


class Imported(_Part):
    """The images of ``generate.folder``.

    Attributes:
        refusal: the line with which a run would end; None: it would not. warnings: what it would warn of.
        files: images that cannot be decoded. None, as ``found`` and ``usable``, of a folder that cannot be read.
        found: images of each group; usable: of those, what can be decoded, once each.
        copies: left out as there is another of them; two_groups: left out as they are in two groups.
        leaks: train, val, test -> images that are real images of it; leak_examples: such a file, and the real one.
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


class Problem(_Part):
    """What a person should know, and what to do about it.

    Attributes:
        level: "error": no run is possible; "warning": results suffer; "note": it may be as it is.
    """

    level: Literal["error", "warning", "note"]
    what: str
    advice: str


class Scan(_Part):
    """A whole data set.

    Attributes:
        root: folder of the data set; None of those that have none, which have no rows, files, pictures and duplicates.
        groups: split -> images of each group that can be decoded; "all" where the data set has no splits of its own.
        association: Cramer's V of class and protected value (phi for two of each) in the training images, or in all
            where there are no splits: 0 none, 1 one tells the other. None where it is not defined.
        protected: the attribute, or those whose combinations are the protected values: "colour x size".
        attributes: further ones.
        imported: None where the synthetic images are to be made by a run.
        small_group: groups with fewer test images are flagged.
    """

    schema_version: Literal[1] = 1
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
    association: float | None
    pictures: Pictures | None
    duplicates: Duplicates | None
    taken: Taken
    imported: Imported | None
    problems: list[Problem]

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")
