"""The doctor: what is fine, what is missing, what is broken, and what mends it."""

import subprocess
import sys
from collections import namedtuple

import pytest

from aimfair.commands import doctor
from aimfair.selective import ops


def test_a_sound_installation(tmp_path, capsys):
    assert doctor.examine(tmp_path / "not" / "there") == 0
    text = capsys.readouterr().out
    for part in ("Python", "torch", "CPU path", "GPU", "compiled kernels", "equal to the reference", "GB free"):
        assert part in " ".join(text.split())
    assert "broken" not in text


def test_packages_that_are_not_there():
    fine, core, extra = doctor.packages(
        [
            "torch>=2.11",
            "no-such-package>=1",
            'no_other; extra == "report"',
            'no-linter; extra == "dev"',
            'aimfair[x]; extra == "y"',
        ]
    )
    assert (fine.name, fine.state) == ("torch", "fine")
    assert (core.state, core.remedy) == ("broken", "pip install 'no-such-package>=1'")
    assert (extra.state, extra.remedy) == ("missing", "pip install 'no_other'")
    assert "report" in extra.found


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


def test_a_full_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(100, 99, 1 << 20))
    assert doctor.disk(tmp_path).state == "missing"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path).state == "broken"


def test_exit_code(tmp_path):
    command = [sys.executable, "-m", "aimfair", "doctor", "--run", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert "fine" in result.stdout
