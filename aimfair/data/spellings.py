"""Values of an attribute that are probably one value in several spellings: "Male" and "male", "true" and "1"."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TRUTH = {"true": "1", "false": "0"}
_BESIDE_A_SIGN = re.compile(r" (?=\W)|(?<=\W) ")
_SHOWN = 3

SPLIT = "data.split_column"
"""The key of names of splits, which are read without regard to spelling."""


@dataclass(frozen=True)
class Spellings:
    """Values of one attribute, clusters or names of splits that differ only in spelling.

    Attributes:
        key: the setting that names the attribute, such as "data.protected".
        name: of the attribute.
        groups: for each value that is spelled in several ways, its spellings and how often each occurs.
    """

    key: str
    name: str
    groups: tuple[tuple[tuple[str, int], ...], ...]

    @classmethod
    def of(cls, key: str, name: str, counts: Mapping[str, int]) -> Iterator["Spellings"]:
        """Nothing if every value has one spelling.

        Args:
            counts: how often each spelling occurs.
        """
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for text in sorted(counts):
            groups[folded(text)].append(text)
        several = tuple(tuple((text, counts[text]) for text in texts) for texts in groups.values() if len(texts) > 1)
        if several:
            yield cls(key, name, several)

    @property
    def advice(self) -> str:
        """What to do."""
        if self.key == SPLIT:
            return "they are read as one split; rename what is not meant as such"
        return "give each value one spelling; until then each spelling is a value of its own"

    def __str__(self) -> str:
        shown = "; ".join(map(_counted, self.groups[:_SHOWN]))
        more = f"; and {len(self.groups) - _SHOWN:,} more" if len(self.groups) > _SHOWN else ""
        return f"{self.key}: values of {self.name!r} differ only in spelling (case, spaces, Unicode): {shown}{more}"


def folded(text: str) -> str:
    """Equal for spellings of one value: without case, Unicode form (NFKC) and a final period; one space between words,
    none beside signs; true as 1, false as 0."""
    text = _BESIDE_A_SIGN.sub("", " ".join(folded_unicode(text).split()))
    text = text.removesuffix(".") or text
    return _TRUTH.get(text, text)


def folded_unicode(text: str) -> str:
    """Equal for texts that differ in case, Unicode form (NFKC) or spaces around them."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


def distinct(texts: Sequence[str]) -> list[str]:
    """Quoted; with escapes where they would look alike."""
    alike = len({unicodedata.normalize("NFC", text) for text in texts}) < len(texts)
    return [ascii(text) if alike else repr(text) for text in texts]


def _counted(group: Sequence[tuple[str, int]]) -> str:
    quoted = distinct([text for text, _ in group])
    return " and ".join(f"{text} ({count:,})" for text, (_, count) in zip(quoted, group, strict=True))
