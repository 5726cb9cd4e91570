import markdown_it
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfair.report.tables import escape, markdown_table

PAGE = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
TAGS = {"<p>", "</p>"}


def shown(text: str) -> str:
    """The text that a browser shows of one paragraph; fails if there is anything but text."""
    import html
    import re

    page = PAGE.render(f"is {escape(text)}.").strip()
    assert set(re.findall(r"<[^>]*>", page)) == TAGS, page
    return html.unescape(page.removeprefix("<p>").removesuffix("</p>")).removeprefix("is ").removesuffix(".")


@given(st.text(alphabet="ab \\`*_{}[]()<>#+-.!|~&:@$;/'\"=\n\t\u202e1&amp;", max_size=30))
def test_text_stays_text(text: str) -> None:
    plain = " ".join("".join(symbol if symbol.isprintable() else " " for symbol in text).split())
    assert shown(text) == (plain or "\N{EN DASH}")


@pytest.mark.parametrize("text", ["http://evil.example", "www.evil.example", "a@b.example", "$x$", "|", "mailto:a@b"])
def test_what_github_would_make_of_it_is_escaped(text: str) -> None:
    assert "\\" in escape(text)


def test_a_table_keeps_its_cells() -> None:
    page = PAGE.render(markdown_table(["a", "b"], [[escape("x | y"), escape("</td>")], ["1", "2"]]))
    assert (page.count("<tr>"), page.count("<td"), page.count("</td>")) == (3, 4, 4)
