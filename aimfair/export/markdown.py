"""Texts of others in Markdown, as text and nothing else."""

import html
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!@]|:(?=\S)|(?<=www)\.)", re.IGNORECASE)
"""What means something within a line, in CommonMark 0.31 or in GitHub's tables, links without brackets and formulas; a
backslash before it takes the meaning away. No text of others begins a line."""


def one_line(text: str) -> str:
    """``text`` without line breaks; control characters, and those that turn the direction of writing, become spaces."""
    return " ".join("".join(symbol if symbol.isprintable() else " " for symbol in text).split())


def escape(text: str) -> str:
    """``text`` on one line: no heading, link, code, table, HTML or front matter comes of it."""
    pieces = (
        html.escape(piece, quote=False) if piece in "<>&" else _SPECIAL.sub(r"\\\1", piece)
        for piece in re.split("([<>&])", one_line(text))
        if piece
    )
    return "".join(pieces) or "\N{EN DASH}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; the first column is to the left, the others to the right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
