"""Hooks of mkdocs: what the pages link to outside ``docs/``, and figures that are computed while the site is built."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs_figures import FIGURES

ROOT = Path(__file__).parents[1]
_FIGURES_OF_RESULTS = (
    "![Speed-up of the compact masked step over torch's fused AdamW](figures/speedups.svg)",
    "",
    "![Speed-up of the exact selection over kthvalue](figures/selections.svg)",
    "",
)
_LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the figures, and copies of the linked files as text."""
    linked = {path for file in files.documentation_pages() for _, path in _LINK.findall(file.content_string)}
    for path in sorted(linked):
        if (ROOT / path).is_file():
            files.append(File.generated(config, _place(path), content=(ROOT / path).read_text(encoding="utf-8")))
    for name, draw in FIGURES.items():
        files.append(File.generated(config, f"figures/{name}.svg", content=draw()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lets links to files of the repository point to their copies; those to folders become text. The newest results of
    the benches become figures of the page on performance."""

    def replaced(found: re.Match[str]) -> str:
        title, path = found.groups()
        return f"[{title}]({_place(path)})" if (ROOT / path).is_file() else title

    if page.file.src_uri == "performance.md":
        title, rest = markdown.split("\n", 1)
        markdown = "\n".join((title, "", *_FIGURES_OF_RESULTS, rest))
    return _LINK.sub(replaced, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are in reStructuredText where Markdown would do: roles and the colons before code."""
    html = re.sub(r":(?:attr|class|data|func|meth|mod):(<code>)~?", r"\1", html)
    return re.sub(r"(?:<p>::|(\S):)</p>", lambda found: f"{found[1]}:</p>" if found[1] else "", html)


def _place(path: str) -> str:
    return f"source/{path}.txt"
