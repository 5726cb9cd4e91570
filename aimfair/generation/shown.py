"""What images show, as classifiers see it: the reasons for rejecting them, and the confusions counted from those."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from aimfair.base.settings import Record
from aimfair.generation.plan import Group
from aimfair.generation.reasons import BLANK, OTHER_GROUP, SHOWS

Attribute = Literal["target", "protected"]
"""The attribute of a group, y or a."""

UNCLEAR = -1
"""In place of a value: the right one is the likeliest, but not likely enough."""

_LETTERS: dict[Attribute, str] = {"target": "y", "protected": "a"}
_VALUE = r"(\d+|_unclear)"
_REASON = re.compile(rf"{SHOWS}(?:_y{_VALUE})?(?:_a{_VALUE})?", re.ASCII)
_BEFORE = BLANK | {OTHER_GROUP}  # decided before what an image shows


class Confusion(Record):
    """What the images of a group (y, a) show of one attribute, as a classifier sees them.

    Attributes:
        shown: images for each value; they include rejected ones.
        unclear: further images, of which it is not sure enough.
    """

    attribute: Attribute
    y: int
    a: int
    shown: list[int]
    unclear: int

    @property
    def right(self) -> float:
        """The share that shows what it should; NaN without any image."""
        total = sum(self.shown) + self.unclear
        own = self.y if self.attribute == "target" else self.a
        return self.shown[own] / total if total else float("nan")


def reason(group: Group, shown: Mapping[Attribute, int]) -> str | None:
    """The reason for rejecting an image of ``group``, such as "shows_y1_a0"; None if it shows what it should.

    Args:
        shown: of each attribute that is checked, the value or :data:`UNCLEAR`.
    """
    own: dict[Attribute, int] = {"target": group[0], "protected": group[1]}
    if all(own[attribute] == value for attribute, value in shown.items()):
        return None
    parts = [f"{_LETTERS[name]}{value if value != UNCLEAR else '_unclear'}" for name, value in shown.items()]
    return "_".join([SHOWS, *parts])


def values_in(reason: str) -> dict[Attribute, int] | None:
    """What :func:`reason` worded; None if this is another reason."""
    found = _REASON.fullmatch(reason)
    if found is None or (found.group(1) is None and found.group(2) is None):
        return None
    values = zip(_LETTERS, found.groups(), strict=True)
    return {name: UNCLEAR if text == "_unclear" else int(text) for name, text in values if text is not None}


def merged(rejected: Mapping[str, int]) -> Counter[str]:
    """Reason -> images, with all that :func:`reason` words as "shows_other"."""
    counts: Counter[str] = Counter()
    for why, images in rejected.items():
        counts[f"{SHOWS}_other" if values_in(why) is not None else why] += images
    return counts


def confusions(
    groups: Sequence[Group],
    kept: Mapping[Group, int],
    rejected: Iterable[tuple[Group, str]],
    checked: Iterable[Attribute],
) -> list[Confusion]:
    """Of every group and attribute that is checked.

    Args:
        groups: all of them.
        kept: images kept of each; they show what they should, as do those that other filters rejected later.
        rejected: the group of each other image and the reason.
    """
    counts: dict[tuple[Attribute, Group], Counter[int]] = {}
    checked = list(checked)
    for group in groups:
        counts["target", group] = Counter({group[0]: kept[group]})
        counts["protected", group] = Counter({group[1]: kept[group]})
    for group, why in rejected:
        if why in _BEFORE:
            continue
        shown = values_in(why) or {"target": group[0], "protected": group[1]}
        for attribute, value in shown.items():
            counts[attribute, group][value] += 1
    sizes = {"target": max(y for y, _ in groups) + 1, "protected": max(a for _, a in groups) + 1}
    return [
        Confusion(
            attribute=attribute,
            y=group[0],
            a=group[1],
            shown=[counts[attribute, group][value] for value in range(sizes[attribute])],
            unclear=counts[attribute, group][UNCLEAR],
        )
        for attribute in checked
        for group in groups
    ]
