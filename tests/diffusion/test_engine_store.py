"""The engine cache: built once, used only when complete, up to date and in agreement with eager."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.log import Log
from aimfair.diffusion.engines import store
from aimfair.diffusion.engines.agreement import Agreement

FACTS = {"engine": "some", "model": "0123", "opset": 20}
TOOLS = {"exporter": "1.0"}
GOOD = Agreement(differences={"denoiser": 1e-6, "decoder": 2e-6}, tolerance=1e-4)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "aimfair" / "engines"


class Maker:
    """Counts how often it makes an engine."""

    def __init__(self, agreement: Agreement = GOOD):
        self.calls, self.agreement = 0, agreement

    def __call__(self, folder: Path) -> Agreement:
        self.calls += 1
        (folder / "graph").write_text(f"graph {self.calls}")
        (folder / "graph.data").write_bytes(bytes(1000))
        return self.agreement


def obtain(make: Callable[[Path], Agreement], facts: dict = FACTS, tools: dict = TOOLS, **options: object) -> Path:
    return store.obtain(facts, make, model="/models/some", tools=tools, **options)  # type: ignore[arg-type]


def test_an_engine_is_made_once(cache_home: Path) -> None:
    make = Maker()
    place = obtain(make)
    assert place.parent == cache_home
    assert obtain(make) == place
    assert make.calls == 1
    assert (place / "graph").read_text() == "graph 1"
    ((found, entry),) = store.entries()
    assert (found, entry.facts, entry.tools, entry.agreement) == (place, FACTS, TOOLS, GOOD)


def test_other_facts_are_another_engine() -> None:
    make = Maker()
    places = {obtain(make), obtain(make, {**FACTS, "opset": 21}), obtain(make, {**FACTS, "model": "0124"})}
    assert len(places) == make.calls == 3


def truncated(place: Path) -> None:
    (place / "graph.data").write_bytes(bytes(999))


def other_bytes(place: Path) -> None:
    (place / "graph.data").write_bytes(bytes(999) + b"1")


def lost(place: Path) -> None:
    (place / "graph").unlink()


def half_an_entry(place: Path) -> None:
    (place / "entry.json").write_bytes((place / "entry.json").read_bytes()[:50])


def no_entry(place: Path) -> None:
    (place / "entry.json").unlink()


def a_file(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.write_text("foreign")


def never_agreed(place: Path) -> None:
    change_entry(place, agreement={"differences": {"denoiser": 0.5, "decoder": 0.0}, "tolerance": 1e-4})


def of_another_model(place: Path) -> None:
    change_entry(place, facts={**FACTS, "model": "ffff"})


def change_entry(place: Path, **values: object) -> None:
    entry = json.loads((place / "entry.json").read_text())
    (place / "entry.json").write_text(json.dumps({**entry, **values}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, r"graph\.data is damaged"),
        (other_bytes, r"graph\.data is damaged"),
        (lost, "graph is missing"),
        (half_an_entry, r"entry\.json is damaged"),
        (no_entry, r"has no entry\.json"),
        (a_file, r"entry\.json is damaged"),
        (never_agreed, "the engine was not found to agree with eager"),
        (of_another_model, "is of another model or setting"),
    ],
)
def test_an_invalid_entry_is_rebuilt_with_a_notice(damage: Callable[[Path], None], reason: str) -> None:
    make = Maker()
    damage(place := obtain(make))
    with pytest.warns(UserWarning, match=rf"{place.name}: {reason}.*; building it again"):
        assert obtain(make) == place
    assert (place / "graph").read_text() == "graph 2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        obtain(make)
    assert make.calls == 2


def test_other_exporters_make_it_anew_but_absent_ones_do_not() -> None:
    make = Maker()
    obtain(make)
    obtain(make, tools={})
    assert make.calls == 1
    with pytest.warns(UserWarning, match=r"was made with exporter 1\.0, now there is 1\.1"):
        obtain(make, tools={"exporter": "1.1"})
    assert make.calls == 2


@pytest.mark.parametrize("differences", [(1e-3, 0.0), (0.0, 1e-3), (1e30, 0.0)])
def test_an_engine_that_differs_is_refused_and_not_kept(cache_home: Path, differences: tuple[float, float]) -> None:
    bad = Agreement(differences=dict(zip(("denoiser", "decoder"), differences, strict=True)), tolerance=1e-4)
    with pytest.raises(AimfairError, match=r"some is not to be trusted .*; use --generate\.engine eager"):
        obtain(Maker(bad))
    with pytest.raises(AimfairError, match=r"some is not to be trusted .*; leave out generate\.quantization"):
        obtain(Maker(bad), FACTS | {"quantization": {"kind": "int8"}})  # which eager does not run
    assert {path.suffix for path in cache_home.iterdir()} == {".lock"}


def test_a_killed_build_leaves_no_entry(cache_home: Path) -> None:
    program = f"""
import os, signal
from aimfair.diffusion.engines import store
def make(folder):
    (folder / "graph").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
store.obtain({FACTS!r}, make, model="", tools={TOOLS!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in cache_home.iterdir() if path.name.endswith(".tmp")] != []
    place = obtain(Maker())
    assert sorted(path.name for path in cache_home.iterdir()) == [place.name, f"{place.name}.lock"]
    assert (place / "graph").read_text() == "graph 1"


def test_whoever_waits_for_the_lock_can_be_interrupted(cache_home: Path) -> None:
    class Asked(Interrupt):
        def check(self) -> None:
            raise Interrupted(signal.SIGINT)

    def make(folder: Path) -> Agreement:
        with pytest.raises(Interrupted):
            obtain(Maker(), interrupt=Asked(), log=told)
        other = {**FACTS, "opset": 21}
        assert obtain(Maker(), other).is_dir()  # another engine is made meanwhile
        return Maker()(folder)

    said: list[str] = []
    told = Log(None, show=said.append)
    obtain(make)
    (line,) = said
    assert "waiting for another process, which is building" in line


def test_a_folder_that_cannot_be_written(cache_home: Path) -> None:
    cache_home.parent.mkdir()
    cache_home.write_text("a file")
    with pytest.raises(OSError, match=re.escape(str(cache_home))) as caught:
        obtain(Maker())
    assert caught.value.__notes__ == ["an engine is as large as its model"]


def test_the_list_tells_damage_and_leaves_other_things_out(cache_home: Path) -> None:
    assert list(store.entries()) == []
    (place := obtain(Maker())).joinpath("graph").write_text("x")
    (cache_home / "notes").write_text("mine")
    assert list(store.entries()) == [(place, "graph is damaged")]
