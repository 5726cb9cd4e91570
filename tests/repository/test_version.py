"""The version is in one place, aimfair/__init__.py: the extension and the metadata have it from there."""

import re
import tomllib
from pathlib import Path

import aimfair

ROOT = Path(__file__).parents[2]


def test_the_extension_was_built_with_this_version() -> None:
    assert aimfair.build_info()["version"] == aimfair.__version__, "built before the version changed: make clean build"


def test_nothing_else_states_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "aimfair.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", aimfair.__version__)
    sources = [ROOT / "CMakeLists.txt", ROOT / "setup.py"]
    sources += [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert [path for path in sources if f'"{aimfair.__version__}"' in path.read_text()] == []
