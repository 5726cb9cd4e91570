"""The documentation: links lead somewhere, code runs, every public name is in the reference, and the site builds."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aimfair

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"masks.svg", "speedups.svg", "selections.svg"}
"""Figures that exist in the site alone."""


def links(text: str) -> Iterator[str]:
    """Targets within the repository, outside code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() or file.name in MADE, target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("name", ["index", "concepts", "howto", "audit"])
def test_code_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), flags=re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert name != "index" or "no unselected element changed" in capsys.readouterr().out


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    listed = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", text, flags=re.M)}
    assert set(aimfair.__all__) <= listed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in PAGES[1:]} <= pages.keys()
    for name in aimfair.__all__:
        assert f'id="aimfair.selective.{name}"' in pages["reference"] or f'.{name}"' in pages["reference"]
    assert ":meth:" not in pages["reference"]
    assert (tmp_path / "site" / "source" / "examples" / "debias.ipynb.txt").is_file()
    assert "figures/speedups.svg" in pages["performance"]
    assert "<path" in (tmp_path / "site" / "figures" / "masks.svg").read_text()
