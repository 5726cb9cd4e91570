"""The doctor: what is fine, missing or broken, and how to fix it."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections import namedtuple

import pytest

from aimfair.commands import doctor, imports
from aimfair.selective import ops


@pytest.fixture
def no_imports(monkeypatch):
    """Takes every package for importable; to import them all takes ten seconds."""
    monkeypatch.setattr(imports, "failures", lambda modules: {})


@pytest.mark.usefixtures("no_imports")
def test_a_sound_installation(tmp_path, capsys):
    assert doctor.examine(tmp_path / "not" / "there") == 0
    text = capsys.readouterr().out
    for part in ("Python", "torch", "CPU path", "GPU", "compiled kernels", "equal to the reference", "GB free"):
        assert part in " ".join(text.split())
    assert "broken" not in text


def test_packages_that_are_not_there():
    fine, core, extra = doctor.packages(
        [
            "rich>=13",
            "no-such-package>=1",
            'no_other; extra == "report"',
            'no_other; extra == "page"',
            'no-linter; extra == "dev"',
            'no-site; extra == "docs"',
            'aimfair[x]; extra == "y"',
        ]
    )
    assert (fine.name, fine.state) == ("rich", "fine")
    assert (core.state, core.remedy) == ("broken", "pip install 'no-such-package>=1'")
    assert (extra.state, extra.remedy) == ("missing", "pip install 'no_other'")
    assert extra.found == "not installed, needed for report, page"


def test_the_packages_it_imports_are_modules(monkeypatch):
    """Under the names that it derives from those of the packages."""
    modules = []
    monkeypatch.setattr(imports, "failures", lambda names: modules.extend(names) or {})
    list(doctor.packages(importlib.metadata.requires("aimfair")))
    assert "yaml" in modules
    assert [name for name in modules if importlib.util.find_spec(name.split(":")[0].split(".")[0]) is None] == []


def test_packages_that_cannot_be_imported(tmp_path, monkeypatch):
    """Neither the one that raises nor the one that ends the process keeps the others from being tried."""
    programs = {
        "raises": "raise OSError('no libcuda.so')",
        "prints": "print('null')",
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "exits": "import sys; sys.exit('not on this platform')",
        "imports-it": "import raises",
        "lives": "",
    }
    for name, program in programs.items():
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(program)
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    checks = {check.name: check for check in doctor.packages([f'{name}>=1; extra == "x"' for name in programs])}
    assert [name for name, check in checks.items() if check.state == "fine"] == ["prints", "lives"]
    assert checks["raises"].found == "raises 1.2 is installed but cannot be imported: no libcuda.so"
    assert (checks["imports-it"].found, checks["imports-it"].remedy) == (
        checks["raises"].found,
        checks["raises"].remedy,
    )
    assert "uninstall raises" in checks["raises"].remedy
    assert checks["crashes"].found == "cannot be imported: the process was killed by SIGSEGV"
    assert checks["crashes"].remedy == "pip install --force-reinstall 'crashes>=1'"
    assert "not on this platform" in checks["exits"].found
    assert {check.state for check in checks.values()} == {"fine", "broken"}


@pytest.mark.usefixtures("no_imports")
@pytest.mark.parametrize(
    ("installed", "state"), [("0.9.12", "broken"), ("0.42rc1", "fine"), ("0.42.1+cpu", "fine"), ("1", "fine")]
)
def test_a_package_that_is_too_old(monkeypatch, installed, state):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: installed)
    (check,) = doctor.packages(['diffusers>=0.42; extra == "generate"'])
    assert check.state == state
    if state == "broken":
        assert (check.found, check.remedy) == ("0.9.12, too old", "pip install --upgrade 'diffusers>=0.42'")


@pytest.mark.usefixtures("no_imports")
@pytest.mark.parametrize("kernel", ["accumulate_", "select_", "masked_adamw_"])
def test_a_kernel_that_computes_something_else(monkeypatch, tmp_path, kernel, capsys):
    real = getattr(ops, kernel)

    def wrong(*args, **kwargs):
        real(*args, **kwargs)
        written = args[1][0] if kernel == "accumulate_" else args[0] if kernel == "select_" else args[0][0]
        written[3] += 1

    monkeypatch.setattr(ops, kernel, wrong)
    assert doctor.kernels().state == "broken"
    assert doctor.examine(tmp_path) == 1
    assert "differ from the reference" in " ".join(capsys.readouterr().out.split())


def test_the_cpu_path_is_as_before():
    from aimfair.selective.build import build_info

    before = build_info()["cpu_path"]
    doctor.kernels()
    assert build_info()["cpu_path"] == before


def test_an_extension_that_does_not_load(monkeypatch):
    def fails() -> doctor.Check:
        raise ImportError("undefined symbol: x\nmore")

    check = doctor._guarded("compiled kernels", fails)
    assert (check.state, check.found) == ("broken", "ImportError: undefined symbol: x")
    assert check.remedy.startswith("pip install")


def test_a_file_in_place_of_the_folder_of_runs(tmp_path):
    (tmp_path / "runs").touch()
    check = doctor.disk(tmp_path / "runs" / "mine")
    assert (check.state, check.found) == ("broken", f"{tmp_path / 'runs'} is a file, expected a folder")


def test_a_full_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(100, 99, 1 << 20))
    assert doctor.disk(tmp_path).state == "missing"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path).state == "broken"


@pytest.mark.slow  # imports all that is installed
def test_the_real_process(tmp_path):
    command = [sys.executable, "-m", "aimfair", "doctor", "--run", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert "broken" not in result.stdout
