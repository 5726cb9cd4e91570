"""A finished run of a data set whose every name tries to be more than a name."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfair.run.directory import Run


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny / "run", tmp_path_factory.mktemp("run") / "inks"))


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """The finished run, open; exports go to other folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = Run.config_of(finished)
    assert settings is not None
    with Run.open(finished, settings, quiet=True) as opened:
        yield opened
