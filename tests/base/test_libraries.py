"""Libraries that are not installed or cannot be imported: which one it is, however its failure was worded since."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.libraries import broken_library, optional

Install = Callable[[str, str], None]

LAZY = """
def __getattr__(name):
    try:
        import low_level
    except Exception as error:
        raise ModuleNotFoundError(f"Could not import module {name!r}. Requirements?") from error
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package of one module where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, program: str) -> None:
        (tmp_path / f"{name}.py").write_text(program)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")

    return write


def refusal(module: str) -> str:
    """The one line when a module is imported."""
    with pytest.raises(AimfairError) as caught, optional("this test", "things"):
        importlib.import_module(module)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_library_that_is_not_installed():
    assert refusal("no_such.module") == "no_such is not installed; this test needs: pip install things"


@pytest.mark.parametrize("program", [
    "raise RuntimeError('operator x::nms does not exist')",
    "raise OSError('operator x::nms does not exist\\nmore')",
    "None.operator",
    "from json import operator",
    "import ctypes; ctypes.CDLL('operator.so')",
    "operator =",
])  # fmt: skip
def test_a_library_that_cannot_be_imported(install, program):
    install("low_level", program)
    text = refusal("low_level")
    assert text.startswith(("low_level 1.2 is installed but cannot be imported: ", "an import failed: invalid syntax"))
    assert "operator" in text or "syntax" in text
    assert "pip uninstall low_level" in text or "syntax" in text


def test_the_library_below_is_named(install):
    install("low_level", "def load(): raise OSError('no libcuda')\nload()")
    install("high_level", "import low_level")
    assert refusal("high_level").startswith("low_level 1.2 is installed but cannot be imported: no libcuda; reinstall")


def test_what_a_library_lacks_is_named(install):
    install("high_level", "import no_such.thing")
    assert refusal("high_level") == "high_level needs no_such, which is not installed; pip install no_such"


def test_an_error_that_hides_the_import_is_followed_back(install):
    """As transformers words it when torchvision is broken."""
    install("low_level", "raise RuntimeError('operator x::nms does not exist')")
    install("lazy_level", LAZY)
    try:
        try:
            _ = importlib.import_module("lazy_level").Model
        except Exception as error:
            raise AimfairError("model.config: no model can be made of it: Could not import module 'Model'") from error
    except AimfairError as error:
        broken = broken_library(error)
    assert broken is not None
    assert broken.found == "low_level 1.2 is installed but cannot be imported: operator x::nms does not exist"
    assert "low_level" in broken.remedy


def test_other_errors_are_of_no_library(install, tmp_path):
    install("sound_level", "def fail(): raise RuntimeError('not at import')")
    (tmp_path / "module_of_the_user.py").write_text("raise RuntimeError('of a program that is not installed')")
    for action in (
        lambda: importlib.import_module("sound_level").fail(),
        lambda: importlib.import_module("module_of_the_user"),
        lambda: importlib.import_module("no_such"),
        lambda: int("x"),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            action()
        assert broken_library(caught.value) is None
