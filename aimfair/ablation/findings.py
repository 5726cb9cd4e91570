"""What an ablation adds to the table of its arms: figures, sentences, columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    chart: Markup


@dataclass(frozen=True)
class Heat:
    """A table of values that are coloured by size.

    Attributes:
        cells: [rows][columns] of (text, shade in [0, 1]); None: an arm that is not there.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[tuple[str, float] | None]]


@dataclass(frozen=True)
class Findings:
    """
    Attributes:
        sentences: what was found, no more than the figures allow.
        columns: further column of the table -> label of the arm -> text.
        data: more for the JSON file, of what JSON can hold.
    """

    figures: Sequence[Figure]
    sentences: Sequence[str]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    heats: Sequence[Heat] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
